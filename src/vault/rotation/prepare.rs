//! Making the records that take the place of others, outside of any transaction and on any thread.

use crate::crypto::Nonces;
use crate::keyring::Keyring;
use crate::store::{KeyedRecord, NodeId, Read};

use super::super::VaultError;
use super::super::content::{self, Version};
use super::super::keys::Key;
use super::super::node::Node;
use super::super::records::Records;
use super::super::state::SystemKeys;
use super::super::tx::Exchange;

/// Contents are sealed anew outside of a transaction up to this many bytes at a time.
const CONTENTS: u64 = 1 << 20;

/// A record, and what it belongs to.
pub(super) type Keyed = (Key, KeyedRecord);

/// What became of some records.
#[derive(Default)]
pub(super) struct Prepared {
    pub(super) exchanges: Vec<Exchange>,
    /// Those that a transaction has to look at by itself: it finds out what is wrong with them, or
    /// they are large.
    pub(super) rest: Vec<Key>,
    /// Those for which there was no more room here.
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
            (Key::Node(id), false) => Node::rewrapped(keyring, &mut nonces, id, &old),
            (Key::Node(id), true) => renewed(keyring, id, &old),
            (Key::Version(node, version), _) => {
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

/// Seals the contents of versions under other content keys.
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
            let Key::Version(node, version) = *key else {
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

/// A node's record under another metadata key.
fn renewed(keyring: &Keyring, id: NodeId, old: &KeyedRecord) -> Result<KeyedRecord, VaultError> {
    let mut node = Node::open(keyring, id, old)?;
    node.renew_key(keyring)?;
    let new = node.seal(keyring.vault())?;
    // What it takes the place of is gone then.
    Node::open(keyring, id, &new)?;
    Ok(new)
}

/// A version under another content key, and the length of its content. `None` for one that is not
/// what it was, or is long.
#[allow(clippy::type_complexity)]
fn content_anew(
    keyring: &Keyring,
    records: &mut dyn Read,
    (node, number): (NodeId, u64),
    old: &KeyedRecord,
) -> Result<Option<(u64, KeyedRecord, Vec<Vec<u8>>)>, VaultError> {
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
