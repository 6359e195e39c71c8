//! The control directory `.secretfs` at the root of a mount: reachable by name, not listed, so
//! that `cp -a`, `tar` and `rm -rf *` never meet it.
//!
//! Its files are rendered when they are opened.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;

use crate::crypto::memory::{self, KeyHome};
use crate::vault::{Findings, Integrity, Kind, ROOT, Summary, Timestamp};

use super::command::Refusal;
use super::directories::DirectoryEntry;
use super::errno::UNAUTHENTIC;
use super::io::ReadDone;
use super::open::Opened;
use super::{Attr, Done, Errno, FileHandle, FileSystem};

/// The directory's name.
pub(super) const CONTROL_NAME: &[u8] = b".secretfs";
/// The directory's inode number; nodes have none as high.
pub const CONTROL_DIRECTORY: u64 = 1 << 63;
/// Its files'.
const STATUS: u64 = CONTROL_DIRECTORY + 1;
const CONTROL: u64 = CONTROL_DIRECTORY + 2;
const AUDIT: u64 = CONTROL_DIRECTORY + 3;
/// The files: inode number, name, permissions.
const FILES: [(u64, &[u8], u32); 3] = [
    (CONTROL, b"control", 0o600),
    (STATUS, b"status", 0o444),
    (AUDIT, b"audit", 0o400),
];
/// Handles of control files are numbered from here.
const FIRST_HANDLE: FileHandle = 1 << 63;
/// What is rendered is padded to a multiple of this, so that its length seldom changes.
const ROUND: usize = 1024;

/// Whether an inode number belongs to the control directory.
pub(super) fn is_control(ino: u64) -> bool {
    ino >= CONTROL_DIRECTORY
}

/// Whether a handle is that of a control file.
pub(super) fn is_control_handle(fh: FileHandle) -> bool {
    fh >= FIRST_HANDLE
}

/// Open control files.
#[derive(Default)]
pub(super) struct Control {
    open: Mutex<HashMap<FileHandle, OpenControl>>,
    next: AtomicU64,
}

/// An open one: what it holds, and whether it takes commands.
#[derive(Clone)]
struct OpenControl {
    text: Arc<Vec<u8>>,
    commands: bool,
}

impl Control {
    fn get(&self, fh: FileHandle) -> Option<OpenControl> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.get(&fh).cloned()
    }

    /// Number of open control files.
    pub(super) fn len(&self) -> usize {
        self.open
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }
}

/// How a mount is.
#[derive(Serialize)]
pub(crate) struct Status {
    #[serde(flatten)]
    vault: Summary,
    mountpoint: String,
    /// `unlocked`: keys are in memory. `condemned`: they are, and nothing is served.
    state: &'static str,
    integrity: String,
    /// The commit as of which the vault was counted.
    integrity_commit: Option<u64>,
    /// When that was, or when it was condemned, in seconds since 1970.
    integrity_since: Option<i64>,
    /// `before` anything was served, or in the `background`.
    verify: &'static str,
    findings: Findings,
    open_files: usize,
    /// `woken`, or why those who watch files are not.
    watchers: String,
    published: u64,
    failed_publications: u64,
    memory: Memory,
    protection: serde_json::Value,
    pid: u32,
    uptime_seconds: u64,
    program: &'static str,
}

#[derive(Serialize)]
struct Memory {
    drafts_and_snapshots: u64,
    limit: u64,
    /// What that follows from: `default`, `cgroup` or `option`.
    limit_from: &'static str,
    /// What is remembered of each record.
    records: u64,
    locked: u64,
    unlocked: u64,
    master_keys: &'static str,
}

/// Integrity in words; the first is what programs look at.
fn said_of(integrity: &Integrity, findings: &Findings) -> String {
    match (integrity, findings.listed.first()) {
        (Integrity::Condemned { why, .. }, _) => format!("failed: {why}"),
        (_, Some(first)) => match findings.count {
            1 => format!("failed: {}", first.what),
            count => format!("failed: {}; {count} reads met that or the like", first.what),
        },
        (Integrity::Counting, None) => "counting".into(),
        (Integrity::Verified { .. }, None) => match UNAUTHENTIC.load(Ordering::Relaxed) {
            0 => "verified".into(),
            count => format!("failed: {count} reads did not authenticate; the log names them"),
        },
    }
}

impl FileSystem {
    /// How the mount is, and its vault.
    pub(crate) fn status(&self) -> Status {
        let report = memory::report();
        let (integrity, findings) = (self.vault.integrity(), self.vault.findings());
        let (records, _) = self.vault.known_records();
        Status {
            vault: self.vault.summary(),
            mountpoint: self.settings.mountpoint.clone(),
            state: match self.vault.is_condemned() {
                true => "condemned",
                false => "unlocked",
            },
            integrity: match self.vault.check_unmoved() {
                Ok(()) => said_of(&integrity, &findings),
                Err(error) => format!("failed: {error}"),
            },
            integrity_commit: match integrity {
                Integrity::Verified { commit, .. } => Some(commit),
                Integrity::Counting | Integrity::Condemned { .. } => None,
            },
            integrity_since: match integrity {
                Integrity::Verified { at, .. } | Integrity::Condemned { at, .. } => Some(at),
                Integrity::Counting => None,
            },
            verify: self.settings.verify,
            findings,
            open_files: self.open_files(),
            watchers: self.touches.said(),
            published: self.counters.published.load(Ordering::Relaxed),
            failed_publications: self.counters.failed_publications.load(Ordering::Relaxed),
            memory: Memory {
                drafts_and_snapshots: self.budget.used(),
                limit: self.settings.max_memory,
                limit_from: self.settings.max_memory_from,
                records,
                locked: report.locked,
                unlocked: report.unlocked,
                master_keys: match report.master_keys {
                    KeyHome::MemfdSecret => "memfd_secret",
                    KeyHome::Locked => "locked pages",
                    KeyHome::Unlocked => "pages that may be swapped out",
                },
            },
            protection: self.settings.protection.clone(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            program: concat!("secretfs ", env!("CARGO_PKG_VERSION")),
        }
    }

    fn render_status(&self) -> Vec<u8> {
        let status = self.status();
        // Structs of strings and numbers always have a JSON form.
        let mut text = serde_json::to_vec_pretty(&status).unwrap_or_default();
        let padded = (text.len() + 1).next_multiple_of(ROUND);
        text.resize(padded - 1, b' ');
        text.push(b'\n');
        text
    }

    /// The key-management history, one JSON object a line.
    fn render_audit(&self) -> Result<Vec<u8>, Errno> {
        let events = self.vault.history()?;
        let lines = events.iter().map(|event| {
            let mut line = serde_json::to_vec(event).unwrap_or_default();
            line.push(b'\n');
            line
        });
        Ok(lines.flatten().collect())
    }

    fn render(&self, ino: u64) -> Result<Vec<u8>, Errno> {
        match ino {
            STATUS => Ok(self.render_status()),
            AUDIT => self.render_audit(),
            _ => Ok(self.keeper.last().into_bytes()),
        }
    }

    pub(super) fn control_attr(&self, ino: u64) -> Attr {
        let now = Timestamp::now();
        let is_directory = ino == CONTROL_DIRECTORY;
        let owner = self
            .vault
            .node(ROOT)
            .map(|root| (root.attributes.uid, root.attributes.gid));
        let (uid, gid) = owner.unwrap_or((0, 0));
        Attr {
            ino,
            kind: if is_directory {
                Kind::Directory
            } else {
                Kind::File
            },
            mode: FILES
                .iter()
                .find(|(file, ..)| *file == ino)
                .map_or(0o555, |(.., mode)| *mode),
            links: if is_directory { 2 } else { 1 },
            uid,
            gid,
            device: 0,
            size: if is_directory {
                0
            } else {
                // Opening it tells what is wrong.
                self.render(ino).map_or(0, |text| text.len() as u64)
            },
            accessed: now,
            modified: now,
            changed: now,
            ttl: Duration::ZERO,
            version: 0,
        }
    }

    /// A node of the control directory, if there is one of that number.
    pub(super) fn control_node(&self, ino: u64) -> Result<Attr, Errno> {
        let is_there = ino == CONTROL_DIRECTORY || FILES.iter().any(|(file, ..)| *file == ino);
        match is_there {
            true => Ok(self.control_attr(ino)),
            false => Err(Errno(libc::ENOENT)),
        }
    }

    pub(super) fn lookup_control(&self, parent: u64, name: &[u8]) -> Result<Attr, Errno> {
        if parent != CONTROL_DIRECTORY {
            return Err(Errno(libc::ENOTDIR));
        }
        let file = FILES.iter().find(|(_, file, _)| *file == name);
        let (ino, ..) = file.ok_or(Errno(libc::ENOENT))?;
        Ok(self.control_attr(*ino))
    }

    pub(super) fn open_control(&self, ino: u64, flags: i32) -> Result<Opened, Errno> {
        if ino == CONTROL_DIRECTORY {
            return Err(Errno(libc::EISDIR));
        }
        let commands = flags & libc::O_ACCMODE != libc::O_RDONLY;
        if commands && ino != CONTROL {
            return Err(Errno(libc::EACCES));
        }
        if commands && self.vault.is_read_only() {
            return Err(Errno(libc::EROFS));
        }
        let fh = FIRST_HANDLE + self.control.next.fetch_add(1, Ordering::Relaxed);
        let text = Arc::new(self.render(ino)?);
        self.control
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(fh, OpenControl { text, commands });
        Ok(Opened { fh, flushes: false })
    }

    pub(super) fn read_control(&self, fh: FileHandle, offset: u64, size: u32, done: ReadDone) {
        match self.control.get(fh) {
            Some(open) => done(Ok(super::io::window(&open.text, offset, size))),
            None => done(Err(Errno(libc::EBADF))),
        }
    }

    /// One write is one command, wherever it is written to.
    pub(super) fn write_control(self: &Arc<Self>, fh: FileHandle, data: &[u8], done: Done<u32>) {
        match self.control.get(fh) {
            Some(open) if open.commands => {
                let count = data.len() as u32;
                let told = move |begun: Result<(), Refusal>| match begun {
                    Ok(()) => done(Ok(count)),
                    Err(refusal) => done(Err(refusal.errno)),
                };
                self.command(data, Box::new(told));
            }
            _ => done(Err(Errno(libc::EBADF))),
        }
    }

    pub(super) fn release_control(&self, fh: FileHandle) {
        self.control
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&fh);
    }

    pub(super) fn read_control_directory(
        &self,
        position: u64,
        mut take: impl FnMut(&DirectoryEntry) -> bool,
    ) -> Result<(), Errno> {
        let dots = [
            (CONTROL_DIRECTORY, Kind::Directory, &b"."[..]),
            (ROOT, Kind::Directory, b".."),
        ];
        let files = FILES.map(|(ino, name, _)| (ino, Kind::File, name));
        for (at, (ino, kind, name)) in dots.into_iter().chain(files).enumerate() {
            let entry = DirectoryEntry {
                ino,
                kind,
                name: name.to_vec(),
                position: at as u64 + 1,
            };
            if at as u64 >= position && take(&entry) {
                break;
            }
        }
        Ok(())
    }
}
