//! Putting nodes under the active master key. A directory whose key is replaced gets its new one at
//! once, beside the one before; its entries are moved from that to the new one a few at a time. Each
//! transaction leaves a directory of which all that it says is true.

use std::time::Instant;

use crate::store::{EntryRow, NameTag, NodeId};

use super::super::entry::DirectoryKeys;
use super::super::node::Kind;
use super::super::{Failure, VaultError};
use super::Tx;
use super::op::Op;

/// Entries looked at in one transaction.
fn at_most() -> usize {
    fail::fail_point!("names-at-a-time", |number| {
        number.and_then(|number| number.parse().ok()).unwrap_or(1)
    });
    256
}

/// How far a node has come.
pub(in crate::vault) enum Migrated {
    /// It stands under the active master key.
    Done,
    /// It does, and entries that cannot be moved, or that are missing, were given up.
    LeftBehind,
    /// Its entries after this one remain to be looked at. Why one of those before cannot be moved.
    GoOn(NameTag, Option<VaultError>),
    /// What remains cannot be moved, or is not what should be there: it keeps its previous key.
    Stuck(VaultError),
}

/// Has a node stand under the active master key, with another metadata key if those are being
/// replaced. One that is gone needs nothing. With `despite`, entries of a directory that do not
/// open are left where they are.
pub(in crate::vault) fn migrate_node(
    tx: &mut Tx<'_>,
    id: NodeId,
    despite: bool,
    until: Instant,
) -> Result<Migrated, VaultError> {
    let node = match tx.node(id) {
        Ok(node) if !node.is_under(tx.keyring.active()) => node,
        Ok(_) | Err(VaultError::NotFound) => return Ok(Migrated::Done),
        Err(error) => return Err(error),
    };
    match (node.kind, &node.previous) {
        (Kind::Directory, Some(_)) => {}
        (Kind::Directory, None) if tx.keyring.renews_data_keys() => {
            let keyring = tx.keyring;
            tx.change(id)?.begin_epoch(keyring)?;
        }
        // Whatever is changed is sealed under the active key.
        _ => return tx.change(id).map(|_| Migrated::Done),
    }
    move_names(tx, id, (None, None), despite, until)
}

/// Moves entries of a directory with two keys from the previous to the new one, those filed
/// after the one that it had come to, with the trouble that it met before. None is filed under
/// the previous key meanwhile, so once all were looked at, and the directory says the same, that
/// key goes.
pub(in crate::vault) fn move_names(
    tx: &mut Tx<'_>,
    id: NodeId,
    (after, mut trouble): (Option<&NameTag>, Option<VaultError>),
    despite: bool,
    until: Instant,
) -> Result<Migrated, VaultError> {
    match tx.node(id) {
        Ok(node) if node.previous.is_some() => {}
        Ok(_) | Err(VaultError::NotFound) => return Ok(Migrated::Done),
        Err(error) => return Err(error),
    }
    let keys = tx.directory_keys(id)?;
    let (rows, limit) = match next_entries(tx, id, after) {
        // What lies behind a row that is none cannot be told.
        Err(error) if despite && error.failure() == Failure::Integrity => {
            trouble.get_or_insert(error);
            (Vec::new(), 0)
        }
        found => found?,
    };
    for (at, row) in rows.iter().enumerate() {
        if row.value.is_empty() {
            let what = format_args!("an entry of directory {id}");
            trouble.get_or_insert(VaultError::tampered(what, "is not what was stored last"));
        }
        if keys.is_previous(&row.value) {
            match move_name(tx, id, &keys, row, despite) {
                Err(error) if error.failure() == Failure::Integrity => {
                    trouble.get_or_insert(error);
                }
                moved => moved?,
            }
        }
        if at + 1 == limit || Instant::now() >= until {
            return Ok(Migrated::GoOn(row.tag, trouble));
        }
    }
    let node = tx.node(id)?;
    let remainder = node.directory()?.remainder.as_ref();
    let fits = trouble.is_none() && remainder.is_none_or(|remainder| remainder.is_nothing());
    if !fits && !despite {
        return Ok(Migrated::Stuck(trouble.unwrap_or_else(|| {
            VaultError::Integrity(format!(
                "directory {id} does not hold what it should: names were removed, replayed or \
                 inserted"
            ))
        })));
    }
    // What does not fit goes on not to fit: the sum over all entries was not made anew.
    tx.change(id)?.end_epoch()?;
    Ok(match fits {
        true => Migrated::Done,
        false => Migrated::LeftBehind,
    })
}

/// Entries after the one that was come to, and how many there would be if there were more. Up to
/// a row that is none, one at a time.
fn next_entries(
    tx: &mut Tx<'_>,
    directory: NodeId,
    after: Option<&NameTag>,
) -> Result<(Vec<EntryRow>, usize), VaultError> {
    let many = at_most();
    if let Ok(rows) = tx.records().entries(directory, after, many) {
        return Ok((rows, many));
    }
    Ok((tx.records().entries(directory, after, 1)?, 1))
}

fn move_name(
    tx: &mut Tx<'_>,
    directory: NodeId,
    keys: &DirectoryKeys,
    row: &EntryRow,
    despite: bool,
) -> Result<(), VaultError> {
    let mut entry = keys.open(&row.tag, &row.value)?;
    entry.tag = keys.tag(&entry.name)?;
    // A name is under one key at a time: this one was put back after it had moved.
    if tx.records().entry(directory, &entry.tag)?.is_some() {
        let what = format_args!("an entry of directory {directory}");
        return Err(VaultError::tampered(what, "is there twice"));
    }
    let is_directory = entry.kind == Kind::Directory;
    if is_directory {
        match tell_child(tx, entry.node, (directory, row.tag), entry.tag) {
            // It stays behind by itself.
            Err(error) if despite && error.failure() == Failure::Integrity => {}
            told => told?,
        }
    }
    let record = keys.seal(&entry)?;
    let body = tx.change(directory)?.directory_mut()?;
    keys.discount(body, &row.tag, &row.value, is_directory);
    keys.count(body, &entry.tag, &record, is_directory);
    tx.push(Op::DeleteEntry {
        directory,
        tag: row.tag,
    });
    tx.push(Op::PutEntry {
        directory,
        tag: entry.tag,
        record,
    });
    Ok(())
}

/// Has a directory that says that it is here know the tag that its name is filed under now.
fn tell_child(
    tx: &mut Tx<'_>,
    id: NodeId,
    here: (NodeId, NameTag),
    tag: NameTag,
) -> Result<(), VaultError> {
    let bad = |why| VaultError::tampered(format_args!("an entry of directory {}", here.0), why);
    let child = match tx.change(id) {
        Err(VaultError::NotFound) => return Err(bad("names a node that is missing")),
        child => child?.directory_mut(),
    };
    let child = child.map_err(|_| bad("names a node of another kind"))?;
    if (child.parent, child.tag) == here {
        child.tag = tag;
    }
    Ok(())
}
