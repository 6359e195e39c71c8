//! Finds the records of the vault, and those that are as they should be.

use crate::crypto::SecretBytes;
use crate::store::{NameTag, NodeId, Read, ReadRecords as _};

use super::super::content::Version;
use super::super::entry::{DirectoryKeys, Entry};
use super::super::leftovers::is_listed;
use super::super::node::{Kind, Node, NodeBody, ROOT, SYSTEM};
use super::super::tx::repair_tx;
use super::super::{Tx, VaultError};
use super::{Repair, Seen, opened};

const BATCH: usize = 256;

impl Seen {
    fn of(node: &Node) -> Self {
        let (version, size) = match &node.attributes.body {
            NodeBody::File(file) => (file.version, file.size),
            _ => (0, 0),
        };
        Self {
            kind: node.kind,
            links: node.attributes.links,
            found: 0,
            said_at: node.directory().ok().map(|body| (body.parent, body.tag)),
            found_at: None,
            version,
            size,
            whole: version == 0 && size == 0,
            left_overs: false,
            is_orphan: false,
        }
    }
}

impl Repair<'_> {
    pub(super) fn scan_nodes(&mut self, tx: &mut Tx<'_>) -> Result<(), VaultError> {
        let mut after = None;
        loop {
            let batch = tx.records().scan_nodes(after, BATCH)?;
            for (id, record) in &batch {
                tx.has_seen(*id);
                match opened(Node::open(tx.keyring, *id, record))? {
                    Some(_) if *id == SYSTEM => {}
                    Some(node) => drop(self.nodes.insert(*id, Seen::of(&node))),
                    None => drop(self.lost.insert(*id)),
                }
            }
            after = batch.last().map(|(id, _)| *id);
            if batch.len() < BATCH {
                return Ok(());
            }
        }
    }

    pub(super) fn scan_versions(&mut self, tx: &mut Tx<'_>) -> Result<(), VaultError> {
        let mut after = None;
        loop {
            let batch = tx.records().scan_versions(after, BATCH)?;
            for ((id, number), record) in &batch {
                tx.has_seen(*id);
                let version = opened(Version::open(tx.keyring, *id, *number, record))?;
                let length = match &version {
                    Some(version) if all_chunks_open(tx.records(), version)? => {
                        Some(version.length())
                    }
                    _ => None,
                };
                // The next version, interrupted while it was stored: reaping removes it.
                let is_begun = match &version {
                    Some(version) => {
                        !version.has_end(tx.records())? && is_listed(tx.records(), *id)?
                    }
                    None => false,
                };
                match self.nodes.get_mut(id) {
                    Some(seen) if seen.kind == Kind::File && *number > seen.version && is_begun => {
                        seen.left_overs = true;
                    }
                    Some(seen) if seen.kind == Kind::File && *number < seen.version => {
                        seen.left_overs = true;
                        if length.is_none() {
                            self.troubled.insert(*id);
                        }
                    }
                    // A file of version 0 has no content.
                    Some(seen)
                        if seen.kind == Kind::File && *number == seen.version && *number > 0 =>
                    {
                        seen.whole = length == Some(seen.size);
                    }
                    _ => drop(self.troubled.insert(*id)),
                }
            }
            after = batch.last().map(|(key, _)| *key);
            if batch.len() < BATCH {
                break;
            }
        }
        let broken = self.nodes.iter().filter(|(_, seen)| !seen.whole);
        self.troubled.extend(broken.map(|(id, _)| *id));
        Ok(())
    }

    pub(super) fn scan_orphans(&mut self, tx: &mut Tx<'_>) -> Result<(), VaultError> {
        let mut after = None;
        loop {
            let batch = tx.records().orphans(after, BATCH)?;
            for id in &batch {
                if let Some(seen) = self.nodes.get_mut(id) {
                    seen.is_orphan = true;
                    continue;
                }
                let id = *id;
                tx.run(&mut |tx| {
                    tx.delete_orphan(id);
                    Ok(())
                })??;
                self.did(format_args!(
                    "node {id} is not to be reaped: it is not there"
                ));
            }
            after = batch.last().copied();
            if batch.len() < BATCH {
                return Ok(());
            }
        }
    }

    pub(super) fn directories(&mut self, tx: &mut Tx<'_>) -> Result<(), VaultError> {
        let directories = self.nodes.iter();
        let directories = directories.filter(|(_, seen)| seen.kind == Kind::Directory);
        let mut directories: Vec<NodeId> = directories.map(|(id, _)| *id).collect();
        directories.sort_unstable();
        for id in directories {
            tx.run(&mut |tx| self.directory(tx, id))??;
        }
        Ok(())
    }

    /// Removes entries of a directory that do not open or name nothing, and corrects its count and
    /// sum.
    fn directory(&mut self, tx: &mut Tx<'_>, id: NodeId) -> Result<(), VaultError> {
        let keys = tx.directory_keys(id)?;
        let said = tx.node(id)?.directory()?.clone();
        let mut counted = said.uncounted();
        let mut after: Option<NameTag> = None;
        loop {
            let batch = tx.records().entries(id, after.as_ref(), BATCH)?;
            for row in &batch {
                let why = match opened(keys.open(&row.tag, &row.value))? {
                    None => "an entry that does not open",
                    Some(entry) => match self.refused(tx, id, &keys, &entry)? {
                        Some(why) => why,
                        None => {
                            let is_directory = entry.kind == Kind::Directory;
                            keys.count(&mut counted, &row.tag, &row.value, is_directory);
                            continue;
                        }
                    },
                };
                self.quarantine.entry(id, &row.tag, &row.value)?;
                repair_tx::discard_entry(tx, id, row.tag);
                self.did(format_args!("took out of directory {id} {why}"));
            }
            after = batch.last().map(|row| row.tag);
            if batch.len() < BATCH {
                break;
            }
        }
        if counted != said {
            self.did(format_args!(
                "directory {id} has {} entries, and says so now; it said {}",
                counted.entries, said.entries
            ));
            repair_tx::set_directory(tx, id, counted)?;
        }
        Ok(())
    }

    /// Why a name cannot stay; `None` if it can.
    fn refused(
        &mut self,
        tx: &mut Tx<'_>,
        directory: NodeId,
        keys: &DirectoryKeys,
        entry: &Entry,
    ) -> Result<Option<&'static str>, VaultError> {
        let here = (directory, entry.tag);
        // The name has moved to the new key, and an attacker has put the old entry back.
        let tag = keys.tag(&entry.name)?;
        if tag != entry.tag && tx.records().entry(directory, &tag)?.is_some() {
            return Ok(Some("a name that is there twice"));
        }
        let damaged = match self.nodes.get(&entry.node) {
            _ if entry.node == ROOT => return Ok(Some("a name of the root directory")),
            None => Some("the name of a node that is missing or does not open"),
            Some(seen) if seen.kind != entry.kind => Some("the name of a node of another kind"),
            Some(seen) if !seen.whole && !self.is_all_there(tx, entry.node)? => {
                Some("the name of a file that has lost its content, or part of it")
            }
            Some(_) => None,
        };
        if damaged.is_some() {
            self.names.insert(entry.node, entry.name.clone());
            return Ok(damaged);
        }
        let said = self.nodes.get(&entry.node).and_then(|seen| seen.said_at);
        let elsewhere = match said {
            Some(said) if said != here => self.is_at(tx, said, entry.node)?,
            _ => false,
        };
        let Some(seen) = self.nodes.get_mut(&entry.node) else {
            return Ok(None);
        };
        if entry.kind == Kind::Directory && (elsewhere || seen.found > 0) {
            return Ok(Some("the name of a directory that is elsewhere"));
        }
        seen.found += 1;
        seen.found_at = Some(here);
        Ok(None)
    }

    /// Whether the whole content still opens, wherever its chunks are.
    fn is_all_there(&self, tx: &mut Tx<'_>, id: NodeId) -> Result<bool, VaultError> {
        let Some(seen) = self.nodes.get(&id) else {
            return Ok(false);
        };
        let left = self.left_of(tx, id, seen.version)?;
        Ok(left
            .is_some_and(|left| left.missing.is_empty() && left.content.len() as u64 == seen.size))
    }

    /// Whether a directory is at the place that its record states.
    fn is_at(
        &self,
        tx: &mut Tx<'_>,
        (directory, tag): (NodeId, NameTag),
        id: NodeId,
    ) -> Result<bool, VaultError> {
        if self
            .nodes
            .get(&directory)
            .is_none_or(|seen| seen.kind != Kind::Directory)
        {
            return Ok(false);
        }
        let keys = tx.directory_keys(directory)?;
        let Some(record) = tx.records().entry(directory, &tag)? else {
            return Ok(false);
        };
        Ok(opened(keys.open(&tag, &record))?.is_some_and(|entry| entry.node == id))
    }

    /// Removes entries of nodes that are not directories, or do not open: their names are lost with
    /// the key.
    pub(super) fn entries_of_no_directory(&mut self, tx: &mut Tx<'_>) -> Result<(), VaultError> {
        let mut after: Option<(NodeId, NameTag)> = None;
        loop {
            let from = after.as_ref().map(|(id, tag)| (*id, tag));
            let batch = tx.records().scan_entries(from, BATCH)?;
            for row in &batch {
                let seen = self.nodes.get(&row.directory);
                if seen.is_some_and(|seen| seen.kind == Kind::Directory) {
                    continue;
                }
                self.quarantine.entry(row.directory, &row.tag, &row.value)?;
                let (directory, tag) = (row.directory, row.tag);
                tx.run(&mut |tx| {
                    repair_tx::discard_entry(tx, directory, tag);
                    Ok(())
                })??;
                self.did(format_args!(
                    "took out an entry of directory {directory}, which is lost"
                ));
            }
            after = batch.last().map(|row| (row.directory, row.tag));
            if batch.len() < BATCH {
                return Ok(());
            }
        }
    }
}

fn all_chunks_open(
    records: &mut (impl Read + ?Sized),
    version: &Version,
) -> Result<bool, VaultError> {
    // A chunk beyond the last does not belong to the version.
    let beyond = (version.node(), version.number(), version.chunks());
    if matches!(records.chunk(beyond), Ok(Some(_))) {
        return Ok(false);
    }
    for index in 0..version.chunks() {
        let mut plain = SecretBytes::zeroed(version.plain_len(index))?;
        let key = (version.node(), version.number(), index);
        let sealed = opened(records.chunk(key).map_err(VaultError::from))?.flatten();
        if sealed.is_none_or(|sealed| version.open_chunk(index, &sealed, &mut plain).is_err()) {
            return Ok(false);
        }
    }
    Ok(true)
}
