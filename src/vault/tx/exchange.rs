//! Records prepared outside the transaction, which replace their originals if those are still
//! there.

use crate::store::{ReadRecords as _, Record, Write, WriteRecords as _};

use super::super::VaultError;
use super::super::keys::KeyedId;
use super::super::state::{Element, Elements};

/// A record under the active master key, with its original.
pub(in crate::vault) struct Exchange {
    pub(in crate::vault) key: KeyedId,
    old: Record,
    new: Record,
    /// The chunks of a version whose content was sealed again.
    chunks: Option<Vec<Vec<u8>>>,
    elements: [Element; 2],
}

impl Exchange {
    pub(in crate::vault) fn new(
        elements: &Elements,
        key: KeyedId,
        old: Record,
        new: Record,
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

    /// The elements of the sum for the old and the new record.
    pub(super) fn elements(&self) -> &[Element; 2] {
        &self.elements
    }

    /// Stores the new record if the old one is still there; returns whether it was.
    pub(super) fn store(&self, records: &mut dyn Write) -> Result<bool, VaultError> {
        let Self { old, new, .. } = self;
        Ok(match (self.key, &self.chunks) {
            (KeyedId::Node(id), _) => records.exchange_node(id, old, new)?,
            (KeyedId::Version(node, version), None) => {
                records.exchange_version(node, version, old, new)?
            }
            (KeyedId::Version(node, version), Some(chunks)) => {
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
