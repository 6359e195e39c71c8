//! Repairs a vault. Intact records stay where they are; a file that has lost a part goes to
//! `lost+found` with the rest of it; records that do not open go to a file beside the vault. One
//! transaction does everything, sets the sums to the remaining records, and records the repair in
//! the history.
//!
//! A repair must never destroy a record that still opens, nor show an incomplete content as whole.

mod left;
mod quarantine;
mod report;
mod scan;
mod seen;

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use crate::crypto::SecretBytes;
use crate::keyring::{Event, EventKind};
use crate::store::{NodeId, ReadRecords as _};

use super::check::check_records;
use super::commit::transact::Transactions;
use super::content::{CHUNK, Version};
use super::entry::MAX_NAME;
use super::node::{Attributes, DirectoryBody, Kind, NodeBody, ROOT, Timestamp};
use super::records::Records;
use super::tx::repair_tx;
use super::{OpenOptions, Tx, Vault, VaultError};
pub use report::{RepairReport, Repairs};

use left::{Left, found_chunk, missing, opened};
use quarantine::Quarantine;
use seen::Seen;

/// Limit on listed repairs; more are only counted.
const MAX_LISTED: usize = 1000;
/// Limit on repairs listed in the history.
const MAX_RECORDED: usize = 100;
/// The directory for parts of damaged files.
const LOST_FOUND: &str = "lost+found";

/// Opens the vault in `path` for writing and repairs it.
///
/// # Errors
/// When the vault cannot be opened, is in use, or a medium fails; nothing was changed then. The
/// report lists what cannot be repaired.
pub fn repair(path: &Path, options: &OpenOptions) -> Result<RepairReport, VaultError> {
    let vault = Vault::open_to_repair(path, options)?;
    let repairs = repair_records(vault.records(), vault.transactions())?;
    let check = check_records(vault.records())?;
    Ok(RepairReport { repairs, check })
}

fn repair_records(records: &Records, transactions: &Transactions) -> Result<Repairs, VaultError> {
    let now = Timestamp::now().seconds;
    let mut quarantine = Quarantine::of(records.path(), now);
    let mut repairs = Repairs::default();
    let is_changed = transactions.repair(|tx| {
        quarantine.restart()?;
        let mut repair = Repair::new(&mut quarantine);
        repair.run(tx)?;
        repairs = repair.repairs;
        if repairs.count == 0 {
            return Ok(None);
        }
        quarantine.sync()?;
        Ok(Some(Event {
            at: now,
            late: false,
            kind: EventKind::Repaired {
                count: repairs.count,
                done: repairs.done.iter().take(MAX_RECORDED).cloned().collect(),
            },
        }))
    })?;
    match is_changed {
        true => repairs.taken_out = quarantine.path().map(Path::to_owned),
        false => quarantine.discard(),
    }
    Ok(repairs)
}

struct Repair<'a> {
    quarantine: &'a mut Quarantine,
    repairs: Repairs,
    nodes: HashMap<NodeId, Seen>,
    /// Nodes whose records do not open.
    lost: BTreeSet<NodeId>,
    /// Files, existing or not, with a damaged version.
    troubled: BTreeSet<NodeId>,
    /// Names under which damaged nodes were found.
    names: HashMap<NodeId, Vec<u8>>,
    lost_found: Option<NodeId>,
}

impl<'a> Repair<'a> {
    fn new(quarantine: &'a mut Quarantine) -> Self {
        Self {
            quarantine,
            repairs: Repairs::default(),
            nodes: HashMap::new(),
            lost: BTreeSet::new(),
            troubled: BTreeSet::new(),
            names: HashMap::new(),
            lost_found: None,
        }
    }

    fn did(&mut self, what: impl std::fmt::Display) {
        self.repairs.count += 1;
        if self.repairs.done.len() < MAX_LISTED {
            self.repairs.done.push(what.to_string());
        }
    }

    fn run(&mut self, tx: &mut Tx<'_>) -> Result<(), VaultError> {
        let agreed = tx.recount()?;
        self.scan_nodes(tx)?;
        self.scan_versions(tx)?;
        self.scan_orphans(tx)?;
        self.root(tx)?;
        self.directories(tx)?;
        self.entries_of_no_directory(tx)?;
        for id in std::mem::take(&mut self.lost) {
            tx.run(&mut |tx| self.lost_node(tx, id))??;
        }
        for id in std::mem::take(&mut self.troubled) {
            tx.run(&mut |tx| self.troubled_file(tx, id))??;
        }
        let mut ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        ids.sort_unstable();
        for id in ids {
            tx.run(&mut |tx| self.place(tx, id))??;
        }
        let salvage = tx.records().salvage();
        let strays = salvage.map_or(Ok(0), |salvage| salvage.delete_stray_chunks())?;
        if strays > 0 {
            self.did(format_args!(
                "removed {strays} chunks that belonged to no version"
            ));
        }
        if !agreed && self.repairs.count == 0 {
            self.did(
                "set the sums to what is there: nodes or versions had been replayed, inserted or \
                 deleted, and which cannot be told",
            );
        }
        Ok(())
    }

    /// Makes a new root directory if it is lost: without one, nothing has a place.
    fn root(&mut self, tx: &mut Tx<'_>) -> Result<(), VaultError> {
        if self
            .nodes
            .get(&ROOT)
            .is_some_and(|root| root.kind == Kind::Directory)
        {
            return Ok(());
        }
        if self.lost.remove(&ROOT) || self.nodes.remove(&ROOT).is_some() {
            self.quarantine_node(tx, ROOT)?;
            tx.run(&mut |tx| {
                repair_tx::discard_node(tx, ROOT);
                Ok(())
            })??;
        }
        tx.run(&mut |tx| repair_tx::replace_root(tx))??;
        self.did("made the root directory anew; what was in it is in lost+found");
        let root = Seen {
            kind: Kind::Directory,
            links: 1,
            found: 0,
            said_at: Some((ROOT, [0; 32])),
            found_at: None,
            version: 0,
            size: 0,
            whole: true,
            left_overs: false,
            is_orphan: false,
        };
        self.nodes.insert(ROOT, root);
        Ok(())
    }

    fn quarantine_node(&mut self, tx: &mut Tx<'_>, id: NodeId) -> Result<(), VaultError> {
        match tx.records().node(id)? {
            Some(record) => self.quarantine.record("node", &[id], &record),
            None => Ok(()),
        }
    }

    /// Handles a node whose record does not open: its entries give its name, its versions its
    /// content.
    fn lost_node(&mut self, tx: &mut Tx<'_>, id: NodeId) -> Result<(), VaultError> {
        self.quarantine_node(tx, id)?;
        repair_tx::discard_node(tx, id);
        self.did(format_args!("took out node {id}, which does not open"));
        Ok(())
    }

    /// Handles a file with damaged versions, or versions of a node that is not a file.
    fn troubled_file(&mut self, tx: &mut Tx<'_>, id: NodeId) -> Result<(), VaultError> {
        let seen = self.nodes.get(&id).filter(|seen| seen.kind == Kind::File);
        let (size, whole) = seen.map_or((0, true), |seen| (seen.size, seen.whole));
        // A file of version 0 has no content.
        let current = seen.map(|seen| seen.version).filter(|version| *version > 0);
        let mut content = None;
        let versions = tx.records().versions_of(id)?;
        for version in &versions {
            let version = *version;
            let Some(record) = tx.records().version(id, version)? else {
                continue;
            };
            if Some(version) == current && whole {
                continue;
            }
            let left = self.left_of(tx, id, version)?;
            // An old version of a file whose current version is whole: reaping removes it.
            let replaced = Some(version) < current && whole;
            match left {
                Some(left) if Some(version) == current => {
                    let complete = left.missing.is_empty();
                    if complete && left.content.len() as u64 == size {
                        repair_tx::replace_content(tx, id, version, record, &left.content)?;
                        if let Some(seen) = self.nodes.get_mut(&id) {
                            seen.whole = true;
                        }
                        self.did(format_args!(
                            "stored version {version} of node {id} anew: all its chunks were found"
                        ));
                        return Ok(());
                    }
                    content = Some((version, record, left));
                }
                Some(left) if replaced && left.missing.is_empty() => {}
                Some(left) => {
                    self.quarantine_version(tx, id, version, &left.missing)?;
                    tx.delete_version(id, version);
                    let parts = missing(&left.missing);
                    let name = self.keep_stray_content(tx, id, version, &left.content)?;
                    self.did(format_args!(
                        "moved version {version} of node {id}, which is not its content{parts}, to \
                         {name}"
                    ));
                }
                None => {
                    self.quarantine_version(tx, id, version, &[])?;
                    tx.delete_version(id, version);
                    self.did(format_args!(
                        "took out version {version} of node {id}, which does not open"
                    ));
                }
            }
        }
        if whole {
            return Ok(());
        }
        match content {
            Some((version, record, left)) => {
                self.quarantine_version(tx, id, version, &left.missing)?;
                repair_tx::replace_content(tx, id, version, record, &left.content)?;
                repair_tx::set_file(tx, id, version, left.content.len() as u64)?;
                self.did(format_args!(
                    "node {id} has lost part of its content{}",
                    missing(&left.missing)
                ));
            }
            None => {
                repair_tx::set_file(tx, id, 0, 0)?;
                match current {
                    Some(current) => self.did(format_args!(
                        "node {id} has lost its content, version {current}"
                    )),
                    None => self.did(format_args!(
                        "node {id} has no content, and says so now; it said that it has {size} bytes"
                    )),
                }
            }
        }
        Ok(())
    }

    /// The part of a version that opens, wherever its chunks are; `None` if no part does.
    fn left_of(
        &self,
        tx: &mut Tx<'_>,
        id: NodeId,
        number: u64,
    ) -> Result<Option<Left>, VaultError> {
        let Some(record) = tx.records().version(id, number)? else {
            return Ok(None);
        };
        let Some(version) = opened(Version::open(tx.keyring, id, number, &record))? else {
            return Ok(None);
        };
        let padded = (0..version.chunks()).map(|index| version.plain_len(index));
        let mut content = SecretBytes::zeroed(padded.sum())?;
        let mut missing = Vec::new();
        for (index, plain) in (0..version.chunks()).zip(content.chunks_mut(CHUNK)) {
            if !found_chunk(tx.records(), &version, index, plain)? {
                missing.push(index);
            }
        }
        if missing.len() as u64 == u64::from(version.chunks()) && version.length() > 0 {
            return Ok(None);
        }
        content.resize(usize::try_from(version.length()).map_err(|_| VaultError::Invalid)?)?;
        Ok(Some(Left { content, missing }))
    }

    fn quarantine_version(
        &mut self,
        tx: &mut Tx<'_>,
        id: NodeId,
        version: u64,
        chunks: &[u32],
    ) -> Result<(), VaultError> {
        if let Some(record) = tx.records().version(id, version)? {
            self.quarantine.record("version", &[id, version], &record)?;
        }
        for index in chunks {
            if let Some(Some(sealed)) = opened(
                tx.records()
                    .chunk((id, version, *index))
                    .map_err(VaultError::from),
            )? {
                self.quarantine
                    .chunk(&[id, version, u64::from(*index)], &sealed)?;
            }
        }
        Ok(())
    }

    /// Makes a new file of a content that belongs to no node.
    fn keep_stray_content(
        &mut self,
        tx: &mut Tx<'_>,
        id: NodeId,
        version: u64,
        content: &SecretBytes,
    ) -> Result<String, VaultError> {
        let now = tx.now;
        let attributes = Attributes::of_new(
            0o600,
            (0, 0),
            now,
            NodeBody::File(super::FileBody {
                version: 1,
                replaced: 1,
                size: content.len() as u64,
            }),
        );
        let new = tx.create_node(Kind::File, attributes)?;
        tx.put_version(new, 1, &[content])?;
        let known = self.names.get(&id).cloned();
        self.adopt(
            tx,
            new,
            Kind::File,
            &format!("{id}-version-{version}"),
            known,
        )
    }

    /// Gives a node that opens the names and the place that its record states, or a name in
    /// `lost+found`.
    fn place(&mut self, tx: &mut Tx<'_>, id: NodeId) -> Result<(), VaultError> {
        let Some(seen) = self.nodes.get(&id) else {
            return Ok(());
        };
        let (kind, links, found) = (seen.kind, seen.links, seen.found);
        if id <= ROOT {
            if links > 1 {
                tx.change(id)?.attributes.links = 1;
                self.did("the root directory has no name, and says so now");
            }
            return Ok(());
        }
        let dead = links == 0 && found == 0;
        if (seen.left_overs || dead) && !seen.is_orphan {
            tx.put_orphan(id);
            self.did(format_args!(
                "node {id} has left-overs, which the next mount removes"
            ));
        }
        if dead {
            return Ok(());
        }
        let seen = self.nodes.get(&id);
        if found == 0 {
            tx.change(id)?.attributes.links = 1;
            let known = self.names.get(&id).cloned();
            let name = self.adopt(tx, id, kind, &id.to_string(), known)?;
            self.did(format_args!("moved node {id} to {name}"));
            return Ok(());
        }
        let moved = seen.filter(|s| kind == Kind::Directory && s.said_at != s.found_at);
        if let Some((parent, tag)) = moved.and_then(|seen| seen.found_at) {
            let body = tx.change(id)?.directory_mut()?;
            (body.parent, body.tag) = (parent, tag);
            self.did(format_args!(
                "directory {id} says now that it is where it is"
            ));
        }
        if links != found {
            tx.change(id)?.attributes.links = found;
            self.did(format_args!("node {id} has {found} names, and not {links}"));
        }
        Ok(())
    }

    /// Gives a node a name in `lost+found`, and reports it without its old name.
    fn adopt(
        &mut self,
        tx: &mut Tx<'_>,
        id: NodeId,
        kind: Kind,
        label: &str,
        known: Option<Vec<u8>>,
    ) -> Result<String, VaultError> {
        let directory = self.lost_found(tx)?;
        let rest = known.map_or(Vec::new(), |name| [b"-", &name[..]].concat());
        for attempt in 0.. {
            let mut name = label.as_bytes().to_vec();
            if attempt > 0 {
                name.extend(format!("-{attempt}").into_bytes());
            }
            let room = MAX_NAME - name.len();
            name.extend(&rest[..rest.len().min(room)]);
            if tx.find(directory, &name)?.is_some() {
                continue;
            }
            let tag = tx.put_entry(directory, &name, id, kind)?;
            if kind == Kind::Directory {
                let body = tx.change(id)?.directory_mut()?;
                (body.parent, body.tag) = (directory, tag);
            }
            let shown = String::from_utf8_lossy(&name[..name.len() - rest.len().min(room)]);
            let more = if rest.is_empty() { "" } else { "-NAME" };
            return Ok(format!("{LOST_FOUND}/{shown}{more}"));
        }
        Err(VaultError::Exists)
    }

    /// The directory `lost+found`, created when needed.
    fn lost_found(&mut self, tx: &mut Tx<'_>) -> Result<NodeId, VaultError> {
        if let Some(directory) = self.lost_found {
            return Ok(directory);
        }
        let found = tx.find(ROOT, LOST_FOUND.as_bytes())?;
        let directory = match found {
            Some((entry, _)) if entry.kind == Kind::Directory => entry.node,
            other => {
                let name = match other {
                    Some(_) => format!("{LOST_FOUND}-{}", tx.now.seconds),
                    None => LOST_FOUND.to_owned(),
                };
                let now = tx.now;
                let attributes = Attributes::of_new(
                    0o700,
                    (0, 0),
                    now,
                    NodeBody::Directory(DirectoryBody::new(ROOT, [0; 32])),
                );
                let id = tx.create_node(Kind::Directory, attributes)?;
                let tag = tx.put_entry(ROOT, name.as_bytes(), id, Kind::Directory)?;
                tx.change(id)?.directory_mut()?.tag = tag;
                id
            }
        };
        self.lost_found = Some(directory);
        Ok(directory)
    }
}
