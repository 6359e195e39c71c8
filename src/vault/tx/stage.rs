//! Publishing a large content in several transactions, between which others write.
//!
//! Its version is *begun*: the record is stored first, and then its chunks, a piece at a time. Its
//! number is above that of the current version, and of no other that was begun: by the commits that the
//! vault has had. Who reads beside has seen no other version under it. The transaction that stores the last of them has the node name
//! it, so that nobody reads it before it is whole. Until then the node is on the list of what is to be
//! reaped: whatever ends this in its middle, what is there goes when that is cleared up.
//!
//! Of one node, no two contents may be under way at once: the caller keeps them in order.

use crate::crypto::padding::padded_content;
use crate::store::NodeId;

use super::super::VaultError;
use super::super::content::{self, CHUNK, Version};
use super::super::node::Timestamp;
use super::super::ops::Publication;
use super::Tx;
use super::op::Op;

/// Chunks that are stored in one transaction of several: 1 MiB.
const CHUNKS: u32 = 16;

/// Bytes of a piece: that much of a content, or less, is published in one transaction.
pub const PIECE: u64 = CHUNKS as u64 * CHUNK as u64;

/// In how many transactions a content of so many bytes is published: in one, unless it is large.
pub fn pieces_of(length: u64) -> u32 {
    let pieces = padded_content(length).div_ceil(PIECE);
    // One that has too many pieces has too many chunks.
    u32::try_from(pieces).unwrap_or(1)
}

/// Stores a piece of a content that is published in [several](pieces_of), but not the last: the
/// pieces come in their order, each in a transaction of its own.
///
/// # Errors
/// When the node is gone or no regular file.
pub fn stage_piece(
    tx: &mut Tx<'_>,
    node: NodeId,
    parts: &[&[u8]],
    piece: u32,
) -> Result<(), VaultError> {
    let current = tx.node(node)?.file()?.version;
    if piece > 0 {
        // Somebody who replaces all data keys has removed it: then the last piece stores all.
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
/// As there.
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
