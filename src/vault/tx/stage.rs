//! Publishes a large content in several transactions, between which others write.
//!
//! Its version is *begun*: the record is stored first, then its chunks, a piece at a time. Its
//! number is above that of the current version, and comes from the number of commits, so no other
//! begun version has it, and readers have never seen another version under it. The transaction that
//! stores the last piece makes the node name the version, so nobody reads it before it is complete.
//! Until then the node is on the list for reaping: if the publication is interrupted, reaping
//! removes the pieces.
//!
//! Only one content of a node may be under way at a time: the caller keeps them in order.

use crate::crypto::padding::padded_content;
use crate::store::{NodeId, ReadRecords as _};

use super::super::VaultError;
use super::super::content::{self, CHUNK, Version};
use super::super::node::Timestamp;
use super::super::ops::Publication;
use super::Tx;
use super::op::Op;

/// Number of chunks that one of several transactions stores: 1 MiB.
const CHUNKS: u32 = 16;

/// Bytes of a piece. A content of at most this length is published in one transaction.
pub const PIECE: u64 = CHUNKS as u64 * CHUNK as u64;

/// The number of transactions that publish a content of `length` bytes.
pub fn pieces_of(length: u64) -> u32 {
    let pieces = padded_content(length).div_ceil(PIECE);
    // A content with too many pieces has too many chunks, and is refused.
    u32::try_from(pieces).unwrap_or(1)
}

/// Stores a piece, except the last, of a content in [several pieces](pieces_of). The pieces come in
/// order, each in a transaction of its own.
///
/// # Errors
/// When the node is gone, or is not a regular file.
pub fn stage_piece(
    tx: &mut Tx<'_>,
    node: NodeId,
    parts: &[&[u8]],
    piece: u32,
) -> Result<(), VaultError> {
    let current = tx.node(node)?.file()?.version;
    if piece > 0 {
        // A rotation that replaces all data keys has removed the version; the last piece then
        // stores the whole content.
        return match begun(tx, node, parts)? {
            Some(version) => put_piece(tx, &version, parts, piece),
            None => Ok(()),
        };
    }
    if let Some(given_up) = tx.begun_version(node)? {
        tx.delete_version(node, given_up);
    }
    let number = current.max(tx.commits()) + 1;
    let length = content::length_of(parts);
    let (record, version) = content::begin(tx.keyring, node, number, length)?;
    tx.push(Op::BeginVersion {
        node,
        version: number,
        record,
        chunks: version.chunks(),
    });
    tx.put_orphan(node);
    put_piece(tx, &version, parts, piece)
}

/// Stores the last piece of a content, and publishes it as [`publish`](Tx::publish) does.
///
/// # Errors
/// As for [`publish`](Tx::publish).
pub fn publish_staged(
    tx: &mut Tx<'_>,
    node: NodeId,
    parts: &[&[u8]],
    publication: Publication,
    modified: Option<Timestamp>,
    keep: &[u64],
) -> Result<u64, VaultError> {
    let Some(version) = begun(tx, node, parts)? else {
        return tx.publish_parts(node, parts, publication, modified, keep);
    };
    let (number, size) = (version.number(), version.length());
    put_piece(tx, &version, parts, pieces_of(size) - 1)?;
    tx.replace_current(node, (number, size), publication, modified)?;
    let stored = tx.records().versions_of(node)?;
    let kept = tx.leave_behind(node, &stored, number, keep);
    if !kept && tx.node(node)?.attributes.links > 0 {
        tx.delete_orphan(node);
    }
    Ok(number)
}

fn begun(tx: &mut Tx<'_>, node: NodeId, parts: &[&[u8]]) -> Result<Option<Version>, VaultError> {
    let Some(number) = tx.begun_version(node)? else {
        return Ok(None);
    };
    let Some(record) = tx.records().version(node, number)? else {
        return Ok(None);
    };
    let version = Version::open(tx.keyring, node, number, &record)?;
    match version.length() == content::length_of(parts) {
        true => Ok(Some(version)),
        false => Err(VaultError::Invalid),
    }
}

fn put_piece(
    tx: &mut Tx<'_>,
    version: &Version,
    parts: &[&[u8]],
    piece: u32,
) -> Result<(), VaultError> {
    let index = piece * CHUNKS;
    let end = version.chunks().min(index + CHUNKS);
    tx.push(Op::PutChunks {
        node: version.node(),
        version: version.number(),
        index,
        chunks: version.seal_chunks(parts, index..end)?,
    });
    Ok(())
}
