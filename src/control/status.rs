//! The status of a mount, as JSON. A commander sees all of it; other users see what monitoring
//! needs, and no path, key, process or protection. Members that change by themselves
//! (`uptime_seconds`, the age of the anchor) change once a second, so readers within one second
//! share one text.

use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use serde_json::Value;

use crate::crypto::memory::{self, KeyHome};
use crate::fs::FileSystem;
use crate::os;
use crate::vault::{Findings, Integrity, Summary, Vault, with_times};

/// Name and version of this program.
const PROGRAM: &str = concat!("secretfs ", env!("CARGO_PKG_VERSION"));

/// The full status.
#[derive(Serialize)]
struct Status {
    /// `full` for commanders, `public` for other users.
    view: &'static str,
    #[serde(flatten)]
    vault: Summary,
    mountpoint: String,
    /// The device number of the mount, as `major:minor`; none when another process mounted it.
    device: Option<String>,
    /// `unlocked`: keys are in memory. `condemned`: keys are in memory, but nothing is served.
    state: &'static str,
    integrity: String,
    /// The commit at which the vault was counted.
    integrity_commit: Option<u64>,
    /// The time of that count, or of the condemnation, in seconds since 1970.
    integrity_since: Option<i64>,
    /// When the vault is counted: `before` anything is served, or in the `background`.
    verify: &'static str,
    findings: Findings,
    open_files: usize,
    /// `woken`, or the reason that watchers of files are not woken.
    watchers: String,
    published: u64,
    failed_publications: u64,
    memory: Memory,
    protection: Value,
    pid: u32,
    /// The start of the process, in clock ticks since boot. A process in another PID namespace
    /// recognizes the daemon by it.
    started_ticks: Option<u64>,
    uptime_seconds: u64,
    program: &'static str,
}

#[derive(Serialize)]
struct Memory {
    drafts_and_snapshots: u64,
    limit: u64,
    /// The source of the limit: `default`, `cgroup` or `option`.
    limit_from: &'static str,
    /// Bytes in the cache of records.
    records: u64,
    locked: u64,
    unlocked: u64,
    master_keys: &'static str,
}

/// The public status. Every user of the host sees each member added here.
#[derive(Serialize)]
struct Public {
    view: &'static str,
    state: &'static str,
    mode: &'static str,
    format: u16,
    /// Only the first word: the rest may name anything.
    integrity: String,
    integrity_since: Option<i64>,
    program: &'static str,
}

/// Integrity in words; programs look at the first word. `unauthentic`: number of reads that did not
/// return what was stored.
fn said_of(integrity: &Integrity, findings: &Findings, unauthentic: u64) -> String {
    match (integrity, findings.listed.first()) {
        (Integrity::Condemned { why, .. }, _) => format!("failed: {why}"),
        (_, Some(first)) => match findings.count {
            1 => format!("failed: {}", first.what),
            count => format!("failed: {}; {count} reads met that or the like", first.what),
        },
        (Integrity::Counting, None) => "counting".into(),
        (Integrity::Verified { .. }, None) => match unauthentic {
            0 => "verified".into(),
            count => format!("failed: {count} reads did not authenticate; the log names them"),
        },
    }
}

/// The time since which this integrity holds.
fn since(integrity: &Integrity) -> Option<i64> {
    match integrity {
        Integrity::Verified { at, .. } | Integrity::Condemned { at, .. } => Some(*at),
        Integrity::Counting => None,
    }
}

/// Facts about a mount for `status` only.
#[derive(Clone, Debug)]
pub struct Shown {
    /// The mount point.
    pub mountpoint: String,
    /// When the vault is counted: `before` or `background`.
    pub verify: &'static str,
    /// The source of the limit on contents in memory.
    pub max_memory_from: &'static str,
    /// The protection of the process.
    pub protection: Value,
}

/// Reports the status of a mount.
pub(crate) struct Reporter {
    vault: Arc<Vault>,
    fs: Arc<FileSystem>,
    shown: Shown,
    started: Instant,
}

impl Reporter {
    /// Reports on `fs`; its uptime begins now.
    pub(crate) fn of(fs: &Arc<FileSystem>, shown: Shown) -> Self {
        Self {
            vault: Arc::clone(fs.vault()),
            fs: Arc::clone(fs),
            shown,
            started: Instant::now(),
        }
    }

    /// The full status.
    pub(crate) fn full(&self) -> Value {
        let report = memory::report();
        let (integrity, findings) = (self.vault.integrity(), self.vault.findings());
        let (records, _) = self.vault.known_records();
        let activity = self.fs.activity();
        let device = activity.device;
        let status = Status {
            view: "full",
            vault: self.vault.summary(),
            mountpoint: self.shown.mountpoint.clone(),
            device: device.map(|(major, minor)| format!("{major}:{minor}")),
            state: self.state_in_a_word(&integrity),
            integrity: self.integrity_in_words(&integrity, &findings),
            integrity_commit: match integrity {
                Integrity::Verified { commit, .. } => Some(commit),
                Integrity::Counting | Integrity::Condemned { .. } => None,
            },
            integrity_since: since(&integrity),
            verify: self.shown.verify,
            findings,
            // Without open control files, which would make each reader's text differ.
            open_files: activity.open_files,
            watchers: activity.watchers,
            published: activity.published,
            failed_publications: activity.failed_publications,
            memory: Memory {
                drafts_and_snapshots: activity.memory_used,
                limit: activity.memory_limit,
                limit_from: self.shown.max_memory_from,
                records,
                locked: report.locked,
                unlocked: report.unlocked,
                master_keys: match report.master_keys {
                    KeyHome::MemfdSecret => "memfd_secret",
                    KeyHome::Locked => "locked pages",
                    KeyHome::Unlocked => "pages that may be swapped out",
                },
            },
            protection: self.shown.protection.clone(),
            pid: std::process::id(),
            started_ticks: os::process::started("self"),
            uptime_seconds: self.started.elapsed().as_secs(),
            program: PROGRAM,
        };
        // Structs of strings and numbers always convert to JSON.
        with_times(serde_json::to_value(status).unwrap_or_default())
    }

    /// The part that every user may see.
    pub(crate) fn public(&self) -> Value {
        let (integrity, findings) = (self.vault.integrity(), self.vault.findings());
        let words = self.integrity_in_words(&integrity, &findings);
        let public = Public {
            view: "public",
            state: self.state_in_a_word(&integrity),
            mode: match self.vault.is_read_only() {
                true => "read-only",
                false => "read-write",
            },
            format: crate::keyring::FORMAT,
            integrity: words.split(':').next().unwrap_or_default().to_owned(),
            integrity_since: since(&integrity),
            program: PROGRAM,
        };
        with_times(serde_json::to_value(public).unwrap_or_default())
    }

    fn state_in_a_word(&self, integrity: &Integrity) -> &'static str {
        // A salvaging mount serves a condemned vault.
        match matches!(integrity, Integrity::Condemned { .. }) && self.vault.is_condemned() {
            true => "condemned",
            false => "unlocked",
        }
    }

    fn integrity_in_words(&self, integrity: &Integrity, findings: &Findings) -> String {
        match self.vault.check_unmoved() {
            Ok(()) => said_of(integrity, findings, self.fs.failures().unauthentic()),
            Err(error) => format!("failed: {error}"),
        }
    }
}
