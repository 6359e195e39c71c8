//! Reads part of a content: the needed part of each chunk, from one snapshot, opened and verified.

use crate::crypto::SecretBytes;
use crate::store::{Read, ReadRecords as _};

use super::content::{CHUNK, Snapshot, Version};
use super::records::Records;
use super::{Failure, VaultError};

/// The last chunk that was read in part, for later small reads in it.
#[derive(Debug, Default)]
pub struct LastChunk(Option<(u32, SecretBytes)>);

impl LastChunk {
    /// The bytes that it takes.
    pub fn size(&self) -> u64 {
        self.0.as_ref().map_or(0, |(_, chunk)| chunk.len() as u64)
    }

    /// Copies the bytes that it has from `at` on; returns their number.
    fn copy_to(&self, at: u64, out: &mut [u8]) -> usize {
        let (index, skip) = position(at);
        let part = match &self.0 {
            Some((held, chunk)) if *held == index => chunk.get(skip..).unwrap_or_default(),
            _ => &[],
        };
        let length = part.len().min(out.len());
        out[..length].copy_from_slice(&part[..length]);
        length
    }

    /// Fills `out` with a version's content from `offset` on. The content must be long enough.
    /// After an error the caller must not use `out`.
    ///
    /// # Errors
    /// When a chunk is missing or does not authenticate.
    pub(super) fn read(
        &mut self,
        from: &Records,
        version: &Version,
        offset: u64,
        out: &mut [u8],
    ) -> Result<(), VaultError> {
        let held = self.copy_to(offset, out);
        if held == out.len() {
            return Ok(());
        }
        from.read(|records| {
            let mut filled = held;
            while filled < out.len() {
                let at = offset + filled as u64;
                let (index, skip) = position(at);
                let rest = &mut out[filled..];
                let length = version.plain_len(index);
                if skip >= length {
                    return Err(VaultError::Invalid);
                }
                // Open a whole chunk directly into its place.
                filled += if skip == 0 && length <= rest.len() {
                    chunk_into(records, from, version, index, &mut rest[..length])?;
                    length
                } else {
                    let mut plain = SecretBytes::zeroed(length)?;
                    chunk_into(records, from, version, index, &mut plain)?;
                    self.0 = Some((index, plain));
                    self.copy_to(at, rest)
                };
            }
            Ok(())
        })
    }
}

fn position(at: u64) -> (u32, usize) {
    let chunk = CHUNK as u64;
    let index = u32::try_from(at / chunk).unwrap_or(u32::MAX);
    (index, (at % chunk) as usize)
}

/// Opens one chunk into `plain`, with its padding.
fn chunk_into(
    records: &mut dyn Read,
    from: &Records,
    version: &Version,
    index: u32,
    plain: &mut [u8],
) -> Result<(), VaultError> {
    match version.read_chunk(records, index, Snapshot::Later, plain) {
        // The same content may be under another key by now.
        Err(error) if error.failure() == Failure::Integrity => {
            let (node, number) = (version.node(), version.number());
            let record = records.version(node, number)?.ok_or(error)?;
            Version::open(&from.keyring(), node, number, &record)?.read_chunk(
                records,
                index,
                Snapshot::OfRecord,
                plain,
            )
        }
        other => other,
    }
}
