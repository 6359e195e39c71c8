//! Records that were prepared outside of the transaction, and take the place of those that they were
//! made from if these are still there.

use crate::store::{KeyedRecord, Write};

use super::super::VaultError;
use super::super::keys::Key;
use super::super::state::{Element, Elements};

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

    /// What it comes to, before and after.
    pub(super) fn elements(&self) -> &[Element; 2] {
        &self.elements
    }

    /// Stores it if what it was made from is still there; whether it was.
    pub(super) fn store(&self, records: &mut dyn Write) -> Result<bool, VaultError> {
        let Self { old, new, .. } = self;
        Ok(match (self.key, &self.chunks) {
            (Key::Node(id), _) => records.exchange_node(id, old, new)?,
            (Key::Version(node, version), None) => {
                records.exchange_version(node, version, old, new)?
            }
            (Key::Version(node, version), Some(chunks)) => {
                let is_same = records.version(node, version)?.as_ref() == Some(old);
                if is_same {
                    let mut chunks = chunks.iter().cloned();
                    records.replace_version(node, version, new, &mut chunks)?;
                }
                is_same
            }
        })
    }
}
