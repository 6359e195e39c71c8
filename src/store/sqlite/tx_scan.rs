//! Scans in a transaction. Rows come in the order of their keys, or the scan fails: the next one
//! continues after the last key, and would otherwise never end on a forged tree.

use rusqlite::{Params, Row};

use crate::store::bounds::{MAX_ENTRY, MAX_EVENT, MAX_NODE, MAX_VERSION};
use crate::store::{NameTag, NodeId, Range, Record, RecordId, Scan, StoreError};

use super::hostile::{self, Fault};
use super::tx::{Tx, key, rows};

/// A row as a record.
type Found = Result<(RecordId, Record), Fault>;

fn bare() -> Record {
    Record {
        generation: 0,
        value: Vec::new(),
    }
}

fn node(row: &Row<'_>) -> Found {
    Ok((
        RecordId::Node(hostile::id(row, 0)?),
        hostile::keyed(row, 1, MAX_NODE)?,
    ))
}

fn node_id(row: &Row<'_>) -> Found {
    Ok((RecordId::Node(hostile::id(row, 0)?), bare()))
}

fn version_at(row: &Row<'_>) -> Result<RecordId, Fault> {
    Ok(RecordId::Version(
        hostile::id(row, 0)?,
        hostile::id(row, 1)?,
    ))
}

fn version(row: &Row<'_>) -> Found {
    Ok((version_at(row)?, hostile::keyed(row, 2, MAX_VERSION)?))
}

fn version_id(row: &Row<'_>) -> Found {
    Ok((version_at(row)?, bare()))
}

fn entry(row: &Row<'_>) -> Found {
    Ok((
        RecordId::Entry(hostile::id(row, 0)?, hostile::tag(row, 1)?),
        hostile::plain(row, 2, MAX_ENTRY)?,
    ))
}

/// The records that `scan` asks for.
pub(super) fn scan(tx: &mut Tx, scan: &Scan) -> Result<Vec<(RecordId, Record)>, StoreError> {
    match (scan.range, scan.but) {
        (Range::Nodes(after), None) => nodes(tx, scan, after),
        (Range::Nodes(after), Some(but)) => nodes_but(tx, scan, after, but),
        (Range::Versions(after), None) => versions(tx, scan, after),
        (Range::Versions(after), Some(but)) => versions_but(tx, scan, after, but),
        (Range::VersionsOf(node), _) => versions_of_node(tx, scan, node),
        (Range::Entries(after), _) => entries_of_all(tx, scan, after),
        (Range::EntriesOf(directory, after), _) => entries_of_one(tx, scan, directory, after),
        (Range::Orphans(after), _) => orphaned(tx, scan, after),
        (Range::Events(after), _) => history(tx, scan, after),
    }
}

/// The rows of a statement, checked to be in order.
fn list(
    tx: &mut Tx,
    what: &str,
    sql: &str,
    params: impl Params,
    scan: &Scan,
    take: impl FnMut(&Row<'_>) -> Found,
) -> Result<Vec<(RecordId, Record)>, StoreError> {
    let mut bytes: usize = 0;
    let enough = |(_, record): &(RecordId, Record)| {
        bytes = bytes.saturating_add(record.value.len());
        bytes >= scan.bytes
    };
    let found = tx.until(what, sql, params, take, enough)?;
    let ids = found.iter().map(|(id, _)| id);
    tx.ordered(what, scan.range.after().as_ref(), ids)?;
    Ok(found)
}

fn nodes(
    tx: &mut Tx,
    scan: &Scan,
    after: Option<NodeId>,
) -> Result<Vec<(RecordId, Record)>, StoreError> {
    let what = "cannot scan the nodes";
    let limit = rows(scan.limit);
    match after {
        // A page from the beginning has no lower bound, here and below, so that a key that
        // sorts below all others shows, too.
        None => {
            let sql = "SELECT id, generation, value FROM node ORDER BY id LIMIT ?1";
            list(tx, what, sql, [limit], scan, node)
        }
        Some(after) => {
            let sql = "SELECT id, generation, value FROM node WHERE id > ?1 \
                       ORDER BY id LIMIT ?2";
            list(tx, what, sql, (key(after)?, limit), scan, node)
        }
    }
}

fn nodes_but(
    tx: &mut Tx,
    scan: &Scan,
    after: Option<NodeId>,
    but: u64,
) -> Result<Vec<(RecordId, Record)>, StoreError> {
    let what = "cannot look for nodes to re-wrap";
    let from = after.map_or(0, |after| after + 1);
    let params = (key(from)?, key(but)?, rows(scan.limit));
    match scan.with_values {
        true => {
            let sql = "SELECT id, generation, value FROM node \
                       WHERE id >= ?1 AND generation <> ?2 ORDER BY id LIMIT ?3";
            list(tx, what, sql, params, scan, node)
        }
        false => {
            let sql = "SELECT id FROM node \
                       WHERE id >= ?1 AND generation <> ?2 ORDER BY id LIMIT ?3";
            list(tx, what, sql, params, scan, node_id)
        }
    }
}

fn versions(
    tx: &mut Tx,
    scan: &Scan,
    after: Option<(NodeId, u64)>,
) -> Result<Vec<(RecordId, Record)>, StoreError> {
    let what = "cannot scan the versions";
    let limit = rows(scan.limit);
    match after {
        None => {
            let sql = "SELECT node, version, generation, value FROM version \
                       ORDER BY node, version LIMIT ?1";
            list(tx, what, sql, [limit], scan, version)
        }
        Some((node, number)) => {
            let sql = "SELECT node, version, generation, value FROM version \
                       WHERE (node, version) > (?1, ?2) ORDER BY node, version LIMIT ?3";
            let params = (key(node)?, key(number)?, limit);
            list(tx, what, sql, params, scan, version)
        }
    }
}

fn versions_but(
    tx: &mut Tx,
    scan: &Scan,
    after: Option<(NodeId, u64)>,
    but: u64,
) -> Result<Vec<(RecordId, Record)>, StoreError> {
    let what = "cannot look for versions to re-wrap";
    let (from, number) = after.map_or((0, 0), |(node, version)| (node, version + 1));
    let params = (key(from)?, key(number)?, key(but)?, rows(scan.limit));
    match scan.with_values {
        true => {
            let sql = "SELECT node, version, generation, value FROM version \
                       WHERE (node, version) >= (?1, ?2) AND generation <> ?3 \
                       ORDER BY node, version LIMIT ?4";
            list(tx, what, sql, params, scan, version)
        }
        false => {
            let sql = "SELECT node, version FROM version \
                       WHERE (node, version) >= (?1, ?2) AND generation <> ?3 \
                       ORDER BY node, version LIMIT ?4";
            list(tx, what, sql, params, scan, version_id)
        }
    }
}

fn versions_of_node(
    tx: &mut Tx,
    scan: &Scan,
    node: NodeId,
) -> Result<Vec<(RecordId, Record)>, StoreError> {
    let what = "cannot list the versions of a node";
    let params = (key(node)?, rows(scan.limit));
    match scan.with_values {
        true => {
            let sql = "SELECT node, version, generation, value FROM version \
                       WHERE node = ?1 ORDER BY version LIMIT ?2";
            list(tx, what, sql, params, scan, version)
        }
        false => {
            let sql = "SELECT version FROM version WHERE node = ?1 ORDER BY version LIMIT ?2";
            list(tx, what, sql, params, scan, |row| {
                Ok((RecordId::Version(node, hostile::id(row, 0)?), bare()))
            })
        }
    }
}

fn entries_of_all(
    tx: &mut Tx,
    scan: &Scan,
    after: Option<(NodeId, NameTag)>,
) -> Result<Vec<(RecordId, Record)>, StoreError> {
    let what = "cannot scan the entries";
    let limit = rows(scan.limit);
    match after {
        None => {
            let sql = "SELECT directory, tag, value FROM entry \
                       ORDER BY directory, tag LIMIT ?1";
            list(tx, what, sql, [limit], scan, entry)
        }
        Some((directory, tag)) => {
            let sql = "SELECT directory, tag, value FROM entry \
                       WHERE (directory, tag) > (?1, ?2) ORDER BY directory, tag LIMIT ?3";
            list(tx, what, sql, (key(directory)?, tag, limit), scan, entry)
        }
    }
}

fn entries_of_one(
    tx: &mut Tx,
    scan: &Scan,
    directory: NodeId,
    after: Option<NameTag>,
) -> Result<Vec<(RecordId, Record)>, StoreError> {
    let what = "cannot list a directory";
    let (id, limit) = (key(directory)?, rows(scan.limit));
    let found = match after {
        None => {
            let sql = "SELECT directory, tag, value FROM entry WHERE directory = ?1 \
                       ORDER BY tag LIMIT ?2";
            list(tx, what, sql, (id, limit), scan, entry)
        }
        Some(tag) => {
            let sql = "SELECT directory, tag, value FROM entry \
                       WHERE directory = ?1 AND tag > ?2 ORDER BY tag LIMIT ?3";
            list(tx, what, sql, (id, tag, limit), scan, entry)
        }
    }?;
    let is_another = |id: &RecordId| !matches!(id, RecordId::Entry(of, _) if *of == directory);
    if found.iter().any(|(id, _)| is_another(id)) {
        return Err(tx.blame(what, Fault::corrupt("an entry of another directory")));
    }
    Ok(found)
}

fn orphaned(
    tx: &mut Tx,
    scan: &Scan,
    after: Option<NodeId>,
) -> Result<Vec<(RecordId, Record)>, StoreError> {
    let what = "cannot list the orphans";
    let limit = rows(scan.limit);
    let take = |row: &Row<'_>| Ok((RecordId::Orphan(hostile::id(row, 0)?), bare()));
    match after {
        None => {
            let sql = "SELECT id FROM orphan ORDER BY id LIMIT ?1";
            list(tx, what, sql, [limit], scan, take)
        }
        Some(after) => {
            let sql = "SELECT id FROM orphan WHERE id > ?1 ORDER BY id LIMIT ?2";
            list(tx, what, sql, (key(after)?, limit), scan, take)
        }
    }
}

fn history(
    tx: &mut Tx,
    scan: &Scan,
    after: Option<u64>,
) -> Result<Vec<(RecordId, Record)>, StoreError> {
    let sql = "SELECT sequence, value FROM event WHERE sequence >= ?1 ORDER BY sequence LIMIT ?2";
    let from = after.map_or(0, |after| after + 1);
    let params = (key(from)?, rows(scan.limit));
    list(tx, "cannot read the history", sql, params, scan, |row| {
        let id = RecordId::Event(hostile::id(row, 0)?);
        Ok((id, hostile::plain(row, 1, MAX_EVENT)?))
    })
}
