//! Counts the names of one directory and compares them with the sum in the directory's record.

use crate::keyring::Keyring;
use crate::store::{NodeId, Read, ReadRecords as _, Record};

use super::super::VaultError;
use super::super::current::{Current, Names};
use super::super::entry::DirectoryKeys;
use super::super::keys::BATCH;
use super::super::node::{DirectoryBody, Node};

/// Compares a directory's names with the sum in the directory.
pub(in crate::vault) fn recount_names(
    records: &mut dyn Read,
    (keyring, current): (&Keyring, &Current),
    id: NodeId,
) -> Result<(), VaultError> {
    let record = records.node(id)?.ok_or(VaultError::NotFound)?;
    names_in(records, (keyring, current), id, &record).map(drop)
}

/// All names of a directory, confirmed by the sum in its record.
pub(in crate::vault) fn names_in(
    records: &mut dyn Read,
    (keyring, current): (&Keyring, &Current),
    id: NodeId,
    record: &Record,
) -> Result<Names, VaultError> {
    let node = Node::open(keyring, id, record)?;
    let keys = DirectoryKeys::of(keyring.vault(), &node)?;
    let said = node.directory()?;
    let (mut found, mut names) = (said.uncounted(), Names::with_room(said.entries));
    let mut after = None;
    loop {
        let batch = records.entries(id, after.as_ref(), BATCH)?;
        for row in &batch {
            keys.count(&mut found, &row.tag, &row.value, false);
            names.add(current.name(row));
        }
        after = batch.last().map(|row| row.tag);
        if batch.len() < BATCH {
            break;
        }
    }
    must_agree(id, said, &found)?;
    Ok(names)
}

/// Fails if the names do not match the sum of their directory.
pub(in crate::vault) fn must_agree(
    id: NodeId,
    said: &DirectoryBody,
    found: &DirectoryBody,
) -> Result<(), VaultError> {
    if said.agrees_with(found) {
        return Ok(());
    }
    Err(VaultError::Integrity(format!(
        "names of directory {id} were replayed, inserted or deleted: it should have {} and has \
         {}, and their sums differ; `secretfs check` names what does not fit, `secretfs check --repair` \
         moves it aside",
        said.entries, found.entries,
    )))
}
