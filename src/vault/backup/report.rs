//! The report of a copy, with the keys that open the copy.

use std::path::Path;

use serde::Serialize;

use crate::keyring::{GenerationState, Keyring};
use crate::kms::local::LocalKms;
use crate::kms::{KeyUri, KmsSettings, Provider};

use super::super::CheckReport;

/// The report of a copy of a vault, of which every record was verified from the disk.
#[derive(Clone, Debug, Serialize)]
pub struct CopyReport {
    /// The path of the copy.
    pub path: String,
    /// The vault's id, in hexadecimal.
    pub vault: String,
    /// The commit that the copy holds.
    pub commit: u64,
    /// Files that have a name.
    pub secrets: u64,
    /// Nodes, including the vault's own.
    pub nodes: u64,
    /// Bytes of content, without padding.
    pub bytes: u64,
    /// Whether any one of the KMS keys opens the copy. In the middle of a `rewrap` it may need
    /// several.
    pub any_key_opens: bool,
    /// The KMS keys that wrap its master keys.
    pub kms_keys: Vec<NeededKey>,
}

/// A KMS key that opens a copy.
#[derive(Clone, Debug, Serialize)]
pub struct NeededKey {
    /// Its URI.
    pub uri: String,
    /// For a key of the local KMS: its file, if this host has it. A copy never contains it.
    pub key_file: Option<String>,
}

impl CopyReport {
    pub(super) fn of(
        path: &Path,
        commit: u64,
        check: &CheckReport,
        keyring: &Keyring,
        kms: &KmsSettings,
    ) -> Self {
        // A pending master key wraps nothing.
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
        let local = LocalKms::new(kms).ok();
        let kms_keys = uris.iter().map(|uri| NeededKey {
            uri: (*uri).to_owned(),
            key_file: key_file(uri, local.as_ref()),
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

/// The file of a key of the local KMS, if this host has it.
fn key_file(uri: &str, local: Option<&LocalKms>) -> Option<String> {
    let key = uri.parse::<KeyUri>().ok()?;
    match key.provider() {
        Provider::Local => {
            let file = local?.file_of(key.key())?;
            Some(file.display().to_string())
        }
        Provider::Aws => None,
    }
}
