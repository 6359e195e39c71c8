//! Records that were prepared outside of the transaction, and take the place of those that they were
//! made from if these are still there.

use crate::store::KeyedRecord;

use super::super::VaultError;
use super::super::keys::Key;
use super::super::state::{Element, Elements};
use super::Tx;

/// A record under the active master key, beside the one that it was made from.
pub(in crate::vault) struct Exchange {
    pub(in crate::vault) key: Key,
    old: KeyedRecord,
    new: KeyedRecord,
    /// The chunks of a version whose content was sealed anew.
    chunks: Option<Vec<Vec<u8>>>,
    elements: [Element; 2],
}

impl Exchange {
    pub(in crate::vault) fn new(
        elements: &Elements,
        key: Key,
        old: KeyedRecord,
        new: KeyedRecord,
        chunks: Option<Vec<Vec<u8>>>,
    ) -> Self {
        let elements = [elements.of(key, &old), elements.of(key, &new)];
        Self {
            key,
            old,
            new,
            chunks,
            elements,
        }
    }
}

impl Tx<'_> {
    /// Puts a record in the place of the one that it was made from. If that has changed meanwhile,
    /// who changed it has put it under the active key, and nothing is to be done.
    pub(in crate::vault) fn exchange(&mut self, exchange: &Exchange) -> Result<(), VaultError> {
        let Exchange { old, new, .. } = exchange;
        let done = match (exchange.key, &exchange.chunks) {
            (Key::Node(id), _) => self.records.exchange_node(id, old, new)?,
            (Key::Version(node, version), None) => {
                self.records.exchange_version(node, version, old, new)?
            }
            (Key::Version(node, version), Some(chunks)) => {
                let same = self.records.version(node, version)?.as_ref() == Some(old);
                if same {
                    let mut chunks = chunks.iter().cloned();
                    self.records
                        .replace_version(node, version, new, &mut chunks)?;
                }
                same
            }
        };
        if done {
            let [old, new] = &exchange.elements;
            self.state.count(old, false);
            self.state.count(new, true);
            self.touched = true;
            if let Key::Node(id) = exchange.key {
                self.exchanged.push(id);
            }
        }
        Ok(())
    }
}
