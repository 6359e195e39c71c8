//! Makes replacement records, outside any transaction and on any thread.

use crate::crypto::Nonces;
use crate::keyring::Keyring;
use crate::store::{NodeId, Read, Record};

use super::super::VaultError;
use super::super::content::{self, Version};
use super::super::keys::KeyedId;
use super::super::node::Node;
use super::super::records::Records;
use super::super::state::SystemKeys;
use super::super::tx::Exchange;

/// Limit on the contents that are sealed again at a time outside a transaction, in bytes.
const CONTENTS: u64 = 1 << 20;

/// A record, and its owner.
pub(super) type Keyed = (KeyedId, Record);

/// The outcome of preparing some records.
#[derive(Default)]
pub(super) struct Prepared {
    pub(super) exchanges: Vec<Exchange>,
    /// Records for a transaction to handle itself: it finds their defect, or they are large.
    pub(super) rest: Vec<KeyedId>,
    /// Records that did not fit here.
    pub(super) left: Vec<Keyed>,
}

/// Makes what takes the place of the records of a batch under the active master key.
pub(super) fn prepare(
    records: &Records,
    keyring: &Keyring,
    system: &SystemKeys,
    batch: Vec<Keyed>,
) -> Prepared {
    if keyring.renews_data_keys() && batch.iter().any(|(key, _)| key.node().is_none()) {
        return seal_anew(records, keyring, system, batch);
    }
    let elements = system.elements();
    let mut prepared = Prepared::default();
    let Ok(mut nonces) = Nonces::draw(batch.len()) else {
        prepared.rest = batch.into_iter().map(|(key, _)| key).collect();
        return prepared;
    };
    for (key, old) in batch {
        let new = match (key, keyring.renews_data_keys()) {
            (KeyedId::Node(id), false) => Node::rewrapped(keyring, &mut nonces, id, &old),
            (KeyedId::Node(id), true) => renewed(keyring, id, &old),
            (KeyedId::Version(node, version), _) => {
                content::rewrap(keyring, &mut nonces, node, version, &old)
            }
        };
        match new {
            Ok(new) => {
                let exchange = Exchange::new(&elements, key, old, new, None);
                prepared.exchanges.push(exchange);
            }
            Err(_) => prepared.rest.push(key),
        }
    }
    prepared
}

/// Seals the contents of versions under new content keys.
fn seal_anew(
    records: &Records,
    keyring: &Keyring,
    system: &SystemKeys,
    versions: Vec<Keyed>,
) -> Prepared {
    let elements = system.elements();
    let done = records.read(|records| {
        let mut prepared = Prepared::default();
        let mut bytes = 0;
        for (key, old) in &versions {
            let KeyedId::Version(node, version) = *key else {
                prepared.rest.push(*key);
                continue;
            };
            if bytes >= CONTENTS {
                prepared.left.push((*key, old.clone()));
                continue;
            }
            match content_anew(keyring, records, (node, version), old) {
                Ok(Some((length, new, chunks))) => {
                    bytes += length;
                    let (old, chunks) = (old.clone(), Some(chunks));
                    let exchange = Exchange::new(&elements, *key, old, new, chunks);
                    prepared.exchanges.push(exchange);
                }
                Ok(None) | Err(_) => prepared.rest.push(*key),
            }
        }
        Ok(prepared)
    });
    done.unwrap_or_else(|_| Prepared {
        rest: versions.iter().map(|(key, _)| *key).collect(),
        ..Prepared::default()
    })
}

/// A node's record under a new metadata key.
fn renewed(keyring: &Keyring, id: NodeId, old: &Record) -> Result<Record, VaultError> {
    let mut node = Node::open(keyring, id, old)?;
    node.renew_key(keyring)?;
    let new = node.seal(keyring.vault())?;
    // Open it before it replaces the only other record.
    Node::open(keyring, id, &new)?;
    Ok(new)
}

/// A version under a new content key, and the length of its content. `None` for a version that has
/// changed or is long.
#[allow(clippy::type_complexity)]
fn content_anew(
    keyring: &Keyring,
    records: &mut dyn Read,
    (node, number): (NodeId, u64),
    old: &Record,
) -> Result<Option<(u64, Record, Vec<Vec<u8>>)>, VaultError> {
    let Some((record, first)) = records.version_and_first_chunk(node, number)? else {
        return Ok(None);
    };
    let version = Version::open(keyring, node, number, old)?;
    if record != *old || version.length() > CONTENTS {
        return Ok(None);
    }
    let content = version.whole(records, first.as_deref())?;
    let (new, chunks) = content::seal(keyring, node, number, &[&content])?;
    Ok(Some((version.length(), new, chunks)))
}
