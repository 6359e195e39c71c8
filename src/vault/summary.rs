//! The facts about an open vault that reveal no secrets.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde::Serialize;

use crate::keyring::{PastEvent, RotationKind};
use crate::kms::Kms;
use crate::sync::Mutex;

use super::chronicle::{Chronicle, RetiredGeneration};
use super::host::memory::{AnchorSummary, HostMemory};
use super::records::Records;
use super::rotation::{Progress, Rotation};

/// A vault in the format of `status`.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Its id.
    pub vault: String,
    /// Its path.
    pub path: String,
    /// `read-write` or `read-only`.
    pub mode: &'static str,
    /// Format of the stored records.
    pub format: u16,
    /// The KMS key that unlocked it.
    pub unlocked_by: String,
    /// The source of the AWS credentials for that; `None` for a local key.
    pub credentials: Option<String>,
    /// The master key generation that wraps new keys.
    pub active_generation: u64,
    /// All generations that the keyring holds.
    pub generations: Vec<GenerationSummary>,
    /// Sequence of the keyring record.
    pub keyring_sequence: u64,
    /// Number of write transactions so far.
    pub commit_sequence: u64,
    /// Number of files, directories and other nodes, including the vault's own.
    pub nodes: u64,
    /// Number of stored contents.
    pub versions: u64,
    /// The rotation under way.
    pub rotation: Option<Progress>,
    /// When each kind of rotation last ended, in seconds since 1970.
    pub last_rotations: BTreeMap<RotationKind, i64>,
    /// Master keys that only earlier copies of the vault need.
    pub retired_generations: Vec<RetiredGeneration>,
    /// Number of events in the key-management history.
    pub events: u64,
    /// The newest event.
    pub last_event: Option<PastEvent>,
    /// Whether this host remembers the vault.
    pub anchored: bool,
    /// This host's memory of it.
    pub anchor: Option<AnchorSummary>,
    /// Facts that make the vault less secret than it could be, in words for people.
    pub warnings: Vec<String>,
}

/// A master key generation.
#[derive(Clone, Debug, Serialize)]
pub struct GenerationSummary {
    /// Its number.
    pub generation: u64,
    /// `pending`, `active` or `decrypt-only`.
    pub state: &'static str,
    /// Number of data keys under it; `None` until a rotation has counted them.
    pub keys: Option<u64>,
    /// When it was made, in seconds since 1970.
    pub created: i64,
    /// The KMS keys that wrap it.
    pub wraps: Vec<WrapSummary>,
}

/// A wrap of a master key.
#[derive(Clone, Debug, Serialize)]
pub struct WrapSummary {
    /// The KMS key's URI.
    pub kms_key: String,
    /// The provider's identifier of the key.
    pub key_id: String,
    /// When it was made, in seconds since 1970.
    pub created: i64,
}

/// The parts that a summary reads.
pub(super) struct Parts<'a> {
    pub(super) records: &'a Records,
    pub(super) rotation: &'a Rotation,
    pub(super) host: &'a HostMemory,
    pub(super) chronicle: &'a Mutex<Chronicle>,
    pub(super) kms: &'a Kms,
}

fn warnings(path: &Path, kms: &Kms, body: &crate::keyring::KeyringBody) -> Vec<String> {
    let wraps = body.generations.iter().flat_map(|g| &g.wraps);
    let uris = wraps.map(|wrap| wrap.uri.as_str());
    let mut warnings = match kms.local() {
        Ok(local) => super::host::apart::warnings(local, path, uris),
        // This host has no directory for keys.
        Err(_) => Vec::new(),
    };
    let found = std::fs::metadata(path);
    if let Some(mode) = found.ok().map(|found| found.permissions().mode() & 0o7777)
        && mode & 0o077 != 0
    {
        warnings.push(format!(
            "other users can look into {} (mode {mode:o}), and lock it; keep them out with `chmod 700`",
            path.display()
        ));
    }
    warnings
}

/// The facts about a vault that `status` shows.
pub(super) fn summary(of: &Parts<'_>) -> Summary {
    use crate::keyring::GenerationState;
    let keyring = of.records.keyring();
    let body = keyring.body();
    let state = of.records.state();
    let (rotation, anchor) = (of.rotation.progress(), of.host.summary());
    // Do this before the lock below, which commits need, because it examines files.
    let warnings = warnings(of.records.path(), of.kms, body);
    let chronicle = of.chronicle.lock().clone();
    let generations = body.generations.iter().map(|generation| GenerationSummary {
        generation: generation.number,
        state: match generation.state {
            GenerationState::Pending => "pending",
            GenerationState::Active => "active",
            GenerationState::DecryptOnly => "decrypt-only",
        },
        keys: match &rotation {
            None => Some(state.nodes + state.versions),
            Some(rotation) if rotation.from == rotation.to => Some(state.nodes + state.versions),
            Some(rotation) if rotation.total == 0 => None,
            Some(rotation) if generation.number == rotation.to => Some(rotation.done),
            Some(rotation) => Some(rotation.total.saturating_sub(rotation.done)),
        },
        created: generation.created,
        wraps: generation
            .wraps
            .iter()
            .map(|wrap| WrapSummary {
                kms_key: wrap.uri.clone(),
                key_id: wrap.key_id.clone(),
                created: wrap.created,
            })
            .collect(),
    });
    Summary {
        vault: keyring.vault().to_string(),
        path: of.records.path().display().to_string(),
        mode: if of.records.is_read_only() {
            "read-only"
        } else {
            "read-write"
        },
        format: crate::keyring::FORMAT,
        unlocked_by: keyring.unlocked_by().to_owned(),
        credentials: of.kms.credentials(),
        active_generation: keyring.active(),
        generations: generations.collect(),
        keyring_sequence: body.sequence,
        commit_sequence: state.commit,
        nodes: state.nodes,
        versions: state.versions,
        rotation: rotation.clone(),
        last_rotations: chronicle.finished,
        retired_generations: chronicle.retired,
        events: body.history.length,
        last_event: chronicle.last,
        anchored: anchor
            .as_ref()
            .is_some_and(|a| a.commit.is_some() && a.trouble.is_none()),
        anchor,
        warnings,
    }
}
