//! Checks a whole vault: opens every record, recomputes every sum, and compares facts that two
//! records state. It uses one snapshot, so a vault can be checked while it is mounted and written.

mod report;
mod seen;

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::Path;

use crate::crypto::schedule::VaultId;
use crate::keyring::{History, Keyring, KeyringError, UnverifiedKeyring};
use crate::store::{self, GoOn, NodeId, Read, ReadRecords as _};

use super::content::Version;
use super::entry::DirectoryKeys;
use super::node::{Kind, Node, ROOT, SYSTEM};
use super::records::Records;
use super::state::{State, SystemKeys};
use super::{OpenOptions, Vault, VaultError};

pub use report::{CheckReport, Problem};

use seen::Seen;

const BATCH: usize = 256;

/// Opens the vault in `path` for reading and checks it.
///
/// # Errors
/// When the vault cannot be opened. Problems inside it are in the report.
pub fn check(path: &Path, options: &OpenOptions) -> Result<CheckReport, VaultError> {
    let options = OpenOptions {
        read_only: true,
        salvage: true,
        ..options.clone()
    };
    check_records(Vault::open(path, &options)?.records())
}

/// Checks all records.
///
/// # Errors
/// As for [`check`].
pub(super) fn check_records(vault: &Records) -> Result<CheckReport, VaultError> {
    check_records_while(vault, &|| ControlFlow::Continue(()))
}

/// Checks all records, and ends early once `go_on` breaks; the report says nothing then.
///
/// # Errors
/// As for [`check`].
pub(super) fn check_records_while(
    vault: &Records,
    go_on: GoOn<'_>,
) -> Result<CheckReport, VaultError> {
    vault.read(|records| {
        let keyring = vault.keyring();
        must_be_current(records, &keyring)?;
        let system = vault.system_in(records)?;
        // A bad state record is reported after the count.
        let mut recount = State::empty(ROOT);
        if let Ok(state) = vault.stored_state(records) {
            recount = state.uncounted();
            recount.next_node = ROOT;
        }
        let mut check = Check {
            system: &system,
            keyring: &keyring,
            go_on,
            report: CheckReport::default(),
            nodes: HashMap::new(),
            recount,
        };
        check.report.vault = check.id().to_string();
        check.run(records)?;
        Ok(check.report)
    })
}

/// Fails if a snapshot has another keyring than `keyring`, so that the caller runs again with the
/// present keys.
fn must_be_current(records: &mut dyn Read, keyring: &Keyring) -> Result<(), VaultError> {
    let (header, stored) = (records.header()?, records.keyring()?);
    let stored = header
        .zip(stored)
        .map(|(h, k)| UnverifiedKeyring::parse(&h, &k));
    match stored.transpose()? {
        Some(stored) if stored.sequence() == keyring.body().sequence => Ok(()),
        _ => Err(KeyringError::unknown(0, "the snapshot").into()),
    }
}

struct Check<'a> {
    system: &'a SystemKeys,
    keyring: &'a Keyring,
    go_on: GoOn<'a>,
    report: CheckReport,
    nodes: HashMap<NodeId, Seen>,
    recount: State,
}

impl Check<'_> {
    fn id(&self) -> VaultId {
        self.keyring.vault()
    }

    fn run(&mut self, records: &mut dyn Read) -> Result<(), VaultError> {
        self.history(records)?;
        self.nodes(records)?;
        self.entries(records)?;
        self.versions(records)?;
        self.orphans(records)?;
        self.chunks(records)?;
        self.compare();
        self.state(records)
    }

    /// Whether the caller wants the check to end early.
    fn is_to_end(&self) -> bool {
        (self.go_on)().is_break()
    }

    /// Notes an integrity failure and goes on; stops after any other error.
    fn note<T>(
        &mut self,
        node: NodeId,
        result: Result<T, VaultError>,
    ) -> Result<Option<T>, VaultError> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.failure() == super::Failure::Integrity => {
                self.report.add(Some(node), error);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn history(&mut self, records: &mut dyn Read) -> Result<(), VaultError> {
        let mut history = History::default();
        loop {
            let batch = records.events(self.report.events + 1, BATCH)?;
            for (sequence, bytes) in &batch {
                if let Err(error) = history.next(*sequence, bytes) {
                    self.report.add(None, error);
                    return Ok(());
                }
                self.report.events += 1;
            }
            if batch.len() < BATCH {
                break;
            }
        }
        if let Err(error) = history.must_end_at(&self.keyring.body().history) {
            self.report.add(None, error);
        }
        Ok(())
    }

    fn nodes(&mut self, records: &mut dyn Read) -> Result<(), VaultError> {
        let mut after = None;
        loop {
            let batch = records.scan_nodes(after, BATCH)?;
            for (id, record) in &batch {
                self.recount.count(&self.system.node(*id, record), true);
                self.recount.next_node = self.recount.next_node.max(id + 1);
                self.report.nodes += 1;
                let node = Node::open(self.keyring, *id, record);
                let seen = match self.note(*id, node)? {
                    Some(node) => Seen::of(&node),
                    None => Seen::default(),
                };
                self.report.files += u64::from(seen.kind == Some(Kind::File) && seen.links > 0);
                self.nodes.insert(*id, seen);
            }
            after = batch.last().map(|(id, _)| *id);
            if batch.len() < BATCH || self.is_to_end() {
                return Ok(());
            }
        }
    }

    fn entries(&mut self, records: &mut dyn Read) -> Result<(), VaultError> {
        let directories: Vec<NodeId> = {
            let is_directory = |seen: &Seen| seen.kind == Some(Kind::Directory);
            self.nodes
                .iter()
                .filter(|(_, s)| is_directory(s))
                .map(|(id, _)| *id)
                .collect()
        };
        let mut counted = 0;
        for directory in directories {
            if self.is_to_end() {
                return Ok(());
            }
            counted += self.directory(records, directory)?;
        }
        // Counting all entries finds those of directories that do not exist.
        let mut total = 0;
        let mut after: Option<(NodeId, store::NameTag)> = None;
        loop {
            let batch = records.scan_entries(after.as_ref().map(|(d, t)| (*d, t)), BATCH)?;
            total += batch.len() as u64;
            after = batch.last().map(|row| (row.directory, row.tag));
            if batch.len() < BATCH {
                break;
            }
        }
        if total != counted {
            self.report.add(
                None,
                format_args!("{} names are in no directory", total - counted),
            );
        }
        Ok(())
    }

    fn directory(&mut self, records: &mut dyn Read, id: NodeId) -> Result<u64, VaultError> {
        let Some(record) = records.node(id)? else {
            return Ok(0);
        };
        let Some(node) = self.note(id, Node::open(self.keyring, id, &record))? else {
            return Ok(0);
        };
        let keys = DirectoryKeys::of(self.id(), &node)?;
        let said = node.directory()?;
        let (mut found, mut subdirectories) = (said.uncounted(), 0);
        let mut after = None;
        loop {
            let batch = records.entries(id, after.as_ref(), BATCH)?;
            for row in &batch {
                keys.count(&mut found, &row.tag, &row.value, false);
                let entry = keys.open(&row.tag, &row.value);
                let Some(entry) = self.note(id, entry)? else {
                    continue;
                };
                subdirectories += u32::from(entry.kind == Kind::Directory);
                self.named(id, &entry);
            }
            after = batch.last().map(|row| row.tag);
            if batch.len() < BATCH {
                break;
            }
        }
        let entries = found.entries;
        self.report.entries += entries;
        if !said.agrees_with(&found) || said.subdirectories != subdirectories {
            self.report.add(
                Some(id),
                format_args!(
                    "directory {id} should have {} entries and has {entries}, or other ones: \
                     names were removed, replayed or inserted",
                    said.entries
                ),
            );
        }
        Ok(entries)
    }

    fn named(&mut self, directory: NodeId, entry: &super::Entry) {
        let problem = match self.nodes.get_mut(&entry.node) {
            None => Some("names a node that is missing"),
            Some(seen) => {
                seen.found += 1;
                seen.found_at = Some((directory, entry.tag));
                (seen.kind.is_some_and(|kind| kind != entry.kind))
                    .then_some("names a node of another kind")
            }
        };
        if let Some(problem) = problem {
            self.report.add(
                Some(entry.node),
                format_args!("an entry of directory {directory} {problem}"),
            );
        }
    }

    fn versions(&mut self, records: &mut dyn Read) -> Result<(), VaultError> {
        let mut after = None;
        loop {
            let batch = records.scan_versions(after, BATCH)?;
            for ((id, number), record) in &batch {
                self.recount
                    .count(&self.system.version(*id, *number, record), true);
                self.report.versions += 1;
                let version = Version::open(self.keyring, *id, *number, record);
                let Some(version) = self.note(*id, version)? else {
                    continue;
                };
                self.version(records, *id, &version)?;
                if self.is_to_end() {
                    return Ok(());
                }
            }
            after = batch.last().map(|(key, _)| *key);
            if batch.len() < BATCH {
                return Ok(());
            }
        }
    }

    fn version(
        &mut self,
        records: &mut dyn Read,
        id: NodeId,
        version: &Version,
    ) -> Result<(), VaultError> {
        if self.is_begun(records, id, version)? {
            return self.begun(records, id, version);
        }
        for index in 0..version.chunks() {
            let chunk = version.chunk(records, index);
            if self.note(id, chunk)?.is_some() {
                self.report.chunks += 1;
            }
        }
        self.report.bytes += version.length();
        let problem = match self.nodes.get_mut(&id) {
            None => Some("belongs to no node"),
            Some(seen) => {
                seen.chunks += u64::from(version.chunks());
                if seen.kind.is_some_and(|kind| kind != Kind::File) {
                    Some("belongs to a node that is no file")
                } else if version.number() < seen.version {
                    seen.older_versions = true;
                    None
                } else if version.number() > seen.version {
                    Some("is newer than its node says")
                } else if version.number() == 0 {
                    Some("belongs to a file without a content")
                } else {
                    seen.version_found = true;
                    (version.length() != seen.size)
                        .then_some("has another length than its node says")
                }
            }
        };
        if let Some(problem) = problem {
            self.report.add(
                Some(id),
                format_args!("version {} {problem}", version.number()),
            );
        }
        Ok(())
    }

    /// Whether a version is still being stored, or its storing was interrupted.
    fn is_begun(
        &mut self,
        records: &mut dyn Read,
        id: NodeId,
        version: &Version,
    ) -> Result<bool, VaultError> {
        let is_next =
            |seen: &Seen| seen.kind == Some(Kind::File) && version.number() > seen.version;
        Ok(self.nodes.get(&id).is_some_and(is_next) && !version.has_end(records)?)
    }

    /// Counts the chunks of an incomplete version: only its first ones exist. Reaping removes them.
    fn begun(
        &mut self,
        records: &mut dyn Read,
        id: NodeId,
        version: &Version,
    ) -> Result<(), VaultError> {
        let mut found = 0;
        while found < version.chunks() {
            match version.chunk(records, found) {
                Ok(_) => found += 1,
                // Later chunks are found as chunks of no version.
                Err(error) if error.failure() == super::Failure::Integrity => break,
                Err(error) => return Err(error),
            }
        }
        self.report.chunks += u64::from(found);
        if let Some(seen) = self.nodes.get_mut(&id) {
            seen.chunks += u64::from(found);
            seen.begun = true;
        }
        Ok(())
    }

    fn orphans(&mut self, records: &mut dyn Read) -> Result<(), VaultError> {
        let mut after = None;
        loop {
            let batch = records.orphans(after, BATCH)?;
            for id in &batch {
                match self.nodes.get_mut(id) {
                    Some(seen) => seen.is_orphan = true,
                    None => self
                        .report
                        .add(Some(*id), "is on the orphan list but does not exist"),
                }
            }
            after = batch.last().copied();
            if batch.len() < BATCH {
                return Ok(());
            }
        }
    }

    fn chunks(&mut self, records: &mut dyn Read) -> Result<(), VaultError> {
        let mut found: HashMap<NodeId, u64> = HashMap::new();
        let mut cursor = None;
        let Some(salvage) = records.salvage() else {
            return Ok(());
        };
        loop {
            let (batch, next) = salvage.scan_chunk_keys(cursor, BATCH)?;
            for (node, _, _) in batch {
                *found.entry(node).or_default() += 1;
            }
            if next.is_none() {
                break;
            }
            cursor = next;
        }
        for (node, count) in found {
            let expected = self.nodes.get(&node).map_or(0, |seen| seen.chunks);
            if count > expected {
                self.report.add(
                    Some(node),
                    format_args!("{} chunks belong to no version", count - expected),
                );
            }
        }
        Ok(())
    }

    fn compare(&mut self) {
        let mut nodes: Vec<_> = std::mem::take(&mut self.nodes).into_iter().collect();
        nodes.sort_unstable_by_key(|(id, _)| *id);
        let root = nodes.iter().find(|(id, _)| *id == ROOT);
        if root.is_none_or(|(_, seen)| seen.kind.is_some_and(|kind| kind != Kind::Directory)) {
            self.report.add(Some(ROOT), "the root directory is missing");
        }
        for (id, seen) in nodes.into_iter().filter(|(id, _)| *id > SYSTEM) {
            for problem in seen.problems(id) {
                self.report
                    .add(Some(id), format_args!("node {id} {problem}"));
            }
        }
    }

    fn state(&mut self, records: &mut dyn Read) -> Result<(), VaultError> {
        let sealed = records.state()?;
        let state = match sealed {
            Some(sealed) => self.system.open(self.id(), &sealed),
            None => Err(VaultError::tampered("the state record", "is missing")),
        };
        let Some(state) = self.note(SYSTEM, state)? else {
            return Ok(());
        };
        if !state.agrees_with(&self.recount) {
            self.report.add(
                None,
                format_args!(
                    "nodes or versions were replayed, inserted or deleted: the state record counts \
                     {} nodes and {} versions, found are {} and {}, and their sums differ",
                    state.nodes, state.versions, self.recount.nodes, self.recount.versions
                ),
            );
        }
        if state.next_node < self.recount.next_node {
            self.report
                .add(None, "the next node number was given out already");
        }
        Ok(())
    }
}
