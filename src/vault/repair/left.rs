//! The remains of a damaged content.

use crate::crypto::SecretBytes;
use crate::store::{Read, ReadRecords as _};

use super::super::content::Version;
use super::super::{Failure, VaultError};

/// The remains of a content.
pub(super) struct Left {
    pub(super) content: SecretBytes,
    /// Chunks that were not found; their bytes are zero.
    pub(super) missing: Vec<u32>,
}

/// Turns an integrity failure into `None`.
pub(super) fn opened<T>(result: Result<T, VaultError>) -> Result<Option<T>, VaultError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.failure() == Failure::Integrity => Ok(None),
        Err(error) => Err(error),
    }
}

/// Opens a chunk from its place, or from any other row that claims to be it.
pub(super) fn found_chunk(
    records: &mut (impl Read + ?Sized),
    version: &Version,
    index: u32,
    plain: &mut [u8],
) -> Result<bool, VaultError> {
    let key = (version.node(), version.number(), index);
    let there = opened(records.chunk(key).map_err(VaultError::from))?.flatten();
    if let Some(sealed) = there
        && version.open_chunk(index, &sealed, plain).is_ok()
    {
        return Ok(true);
    }
    let salvage = records.salvage();
    let copies = salvage.map_or(Ok(Vec::new()), |salvage| salvage.chunk_copies(key))?;
    for sealed in copies {
        if version.open_chunk(index, &sealed, plain).is_ok() {
            return Ok(true);
        }
    }
    // A failed attempt may have left bytes in it.
    plain.fill(0);
    Ok(false)
}

/// Names the missing chunks, as the end of a sentence.
pub(super) fn missing(chunks: &[u32]) -> String {
    match chunks {
        [] => String::new(),
        [first, ..] => format!(
            ": {} of its chunks of 64 KiB, the first of them number {first}, are zeros now",
            chunks.len()
        ),
    }
}
