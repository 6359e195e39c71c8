//! The status of a mount, as JSON. A commander sees all of it; everybody else sees what monitoring needs,
//! and no path, key, process or protection. Members that change by themselves (`uptime_seconds`,
//! the age of the anchor) change once a second: readers within that second share one text.

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
    /// `full`; `public` for who may not command.
    view: &'static str,
    #[serde(flatten)]
    vault: Summary,
    mountpoint: String,
    /// The device number of the mount, as `major:minor`; none when somebody else has mounted it.
    device: Option<String>,
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
    protection: Value,
    pid: u32,
    /// When the process was started, in clock ticks since the host was booted: who sees it under
    /// another number knows it by that.
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
    /// Bytes that are remembered of records.
    records: u64,
    locked: u64,
    unlocked: u64,
    master_keys: &'static str,
}

/// The public status. All users of the host see a new member.
#[derive(Serialize)]
struct Public {
    view: &'static str,
    state: &'static str,
    mode: &'static str,
    format: u16,
    /// The first word of it: what comes behind may name anything.
    integrity: String,
    integrity_since: Option<i64>,
    program: &'static str,
}

/// Integrity in words; the first is what programs look at. `unauthentic`: how many reads were not of what
/// was stored.
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

/// Since when it is so.
fn since(integrity: &Integrity) -> Option<i64> {
    match integrity {
        Integrity::Verified { at, .. } | Integrity::Condemned { at, .. } => Some(*at),
        Integrity::Counting => None,
    }
}

/// Facts of how a mount was made that only `status` shows.
#[derive(Clone, Debug)]
pub struct Shown {
    /// Where it is mounted.
    pub mountpoint: String,
    /// When the vault is counted.
    pub verify: &'static str,
    /// The source of the bound on contents in memory.
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
    /// Reports on `fs`, whose uptime begins now.
    pub(crate) fn of(fs: &Arc<FileSystem>, shown: Shown) -> Self {
        Self {
            vault: Arc::clone(fs.vault()),
            fs: Arc::clone(fs),
            shown,
            started: Instant::now(),
        }
    }

    /// All of it.
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
            // Not those of the control directory: each of its files would show another text.
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
        // Structs of strings and numbers always have a JSON form.
        with_times(serde_json::to_value(status).unwrap_or_default())
    }

    /// The part that everybody may see.
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
        // One that is salvaged is served all the same.
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
