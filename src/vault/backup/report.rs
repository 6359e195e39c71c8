//! What a copy of a vault came to, and which keys it takes to open it.

use std::path::Path;

use serde::Serialize;

use crate::keyring::{GenerationState, Keyring};
use crate::kms::{KeyUri, Kms, Provider};

use super::super::CheckReport;

/// What a copy of a vault came to. All of it was verified, from the disk.
#[derive(Clone, Debug, Serialize)]
pub struct CopyReport {
    /// Where it is.
    pub path: String,
    /// The vault's id, in hexadecimal.
    pub vault: String,
    /// The commit that it is as of.
    pub commit: u64,
    /// Files with a name.
    pub secrets: u64,
    /// Nodes, the vault's own among them.
    pub nodes: u64,
    /// Bytes of contents, without padding.
    pub bytes: u64,
    /// Any one of the KMS keys opens it; else, in the middle of a `rewrap`, it takes more than one.
    pub any_key_opens: bool,
    /// The KMS keys that its master keys are wrapped by.
    pub kms_keys: Vec<NeededKey>,
}

/// A KMS key that opens a copy.
#[derive(Clone, Debug, Serialize)]
pub struct NeededKey {
    /// Its URI.
    pub uri: String,
    /// The file of a key of the local KMS, if this host has it. It is never part of a copy.
    pub key_file: Option<String>,
}

impl CopyReport {
    pub(super) fn of(
        path: &Path,
        commit: u64,
        check: &CheckReport,
        keyring: &Keyring,
        kms: &Kms,
    ) -> Self {
        // Nothing stands under a pending key.
        let generations = keyring.body().generations.iter();
        let sets = generations
            .filter(|generation| generation.state != GenerationState::Pending)
            .map(|generation| {
                let mut uris: Vec<&str> = generation.wraps.iter().map(|w| w.uri.as_str()).collect();
                uris.sort_unstable();
                uris.dedup();
                uris
            });
        let sets: Vec<Vec<&str>> = sets.collect();
        let mut uris: Vec<&str> = sets.iter().flatten().copied().collect();
        uris.sort_unstable();
        uris.dedup();
        let kms_keys = uris.iter().map(|uri| NeededKey {
            uri: (*uri).to_owned(),
            key_file: key_file(uri, kms),
        });
        Self {
            path: path.display().to_string(),
            vault: keyring.vault().to_string(),
            commit,
            secrets: check.files,
            nodes: check.nodes,
            bytes: check.bytes,
            any_key_opens: sets.iter().all(|set| *set == uris),
            kms_keys: kms_keys.collect(),
        }
    }
}

fn key_file(uri: &str, kms: &Kms) -> Option<String> {
    let key = uri.parse::<KeyUri>().ok()?;
    match key.provider() {
        Provider::Local => {
            let file = kms.local().ok()?.file_of(key.key())?;
            Some(file.display().to_string())
        }
        Provider::Aws => None,
    }
}
