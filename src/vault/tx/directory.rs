//! Moves nodes to the active master key. A directory whose key is replaced gets the new key at
//! once, beside the previous one; its entries are then moved to the new key a few at a time. After
//! each transaction the directory's count and sum are right.

use std::time::Instant;

use crate::store::{EntryRow, NameTag, NodeId, ReadRecords as _};

use super::super::entry::DirectoryKeys;
use super::super::node::Kind;
use super::super::{Failure, VaultError};
use super::Tx;
use super::op::Op;

/// Limit on entries in one transaction.
fn at_most() -> usize {
    fail::fail_point!("names-at-a-time", |number| {
        number.and_then(|number| number.parse().ok()).unwrap_or(1)
    });
    256
}

/// The progress of a node.
pub(in crate::vault) enum Migrated {
    /// It is under the active master key.
    Done,
    /// It is under the active master key, and entries that cannot be moved or are missing were
    /// given up.
    LeftBehind,
    /// Its entries after this one are left to do. The error is of an earlier entry that cannot be
    /// moved.
    GoOn(NameTag, Option<VaultError>),
    /// The remaining entries cannot be moved, or do not match the sum: it keeps its previous key.
    Stuck(VaultError),
}

/// Moves a node to the active master key, with a new metadata key if the rotation replaces those. A
/// node that is gone needs nothing. With `despite`, entries that do not open stay where they are.
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
        // A changed node is sealed under the active key.
        _ => return tx.change(id).map(|_| Migrated::Done),
    }
    move_names(tx, id, (None, None), despite, until)
}

/// Moves entries of a directory with two keys from the previous key to the new one, continuing
/// after an entry, with the trouble met before. No new entry is filed under the previous key
/// meanwhile. So once all entries were visited and the sum agrees, that key is dropped.
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
        // The rows after an invalid one are unknown.
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
    // Entries that did not match still do not match, because the sum over all entries was not
    // recomputed.
    tx.change(id)?.end_epoch()?;
    Ok(match fits {
        true => Migrated::Done,
        false => Migrated::LeftBehind,
    })
}

/// The entries after the last visited one, and the number that a full batch would have. One at a
/// time up to an invalid row.
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
    // A name is under one key at a time: an attacker has put this entry back after it had moved.
    if tx.records().entry(directory, &entry.tag)?.is_some() {
        let what = format_args!("an entry of directory {directory}");
        return Err(VaultError::tampered(what, "is there twice"));
    }
    let is_directory = entry.kind == Kind::Directory;
    if is_directory {
        match tell_child(tx, entry.node, (directory, row.tag), entry.tag) {
            // Only the damaged subdirectory stays behind.
            Err(error) if despite && error.failure() == Failure::Integrity => {}
            other => other?,
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

/// Updates the tag in a subdirectory that states this place, after its name has moved.
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
