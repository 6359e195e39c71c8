//! How a vault is made and opened.

use std::path::PathBuf;

use crate::kms::{KeyUri, KmsSettings};

use super::VaultError;

/// How a vault is made.
#[derive(Clone, Debug)]
pub struct InitOptions {
    /// The KMS keys that wrap its master key; any one of them unlocks it.
    pub kms_keys: Vec<KeyUri>,
    /// Owner of the root directory.
    pub uid: u32,
    /// Group of the root directory.
    pub gid: u32,
    /// Bounds and places of KMS calls.
    pub kms: KmsSettings,
    /// Where this host remembers the vaults it has seen; `None` when there is no such place.
    pub anchor_dir: Option<PathBuf>,
}

/// How a vault is opened.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// Beside a writer, without being able to change anything.
    pub read_only: bool,
    /// Go on although this host has seen a newer state, or another vault in its place.
    pub accept_rollback: bool,
    /// The only KMS keys that may be asked; empty: those of the anchor.
    pub pinned_keys: Vec<KeyUri>,
    /// The only vault that will do, in hexadecimal.
    pub pinned_vault_id: Option<String>,
    /// Refuse a vault that this host has never seen, or that it cannot remember.
    pub require_anchor: bool,
    /// Refuse a vault that has not come as far as this commit.
    pub min_commit: Option<u64>,
    /// Open it, for reading only, although nodes or versions were replayed, inserted or deleted: to
    /// find out which, or to get out what is left.
    pub salvage: bool,
    /// Of one that is opened for reading: nobody changes its files, and none is made beside them.
    pub still: bool,
    /// Accept a network or FUSE file system below the vault.
    pub unsafe_filesystem: bool,
    /// Bounds and places of KMS calls.
    pub kms: KmsSettings,
    /// Where this host remembers the vaults it has seen; `None` when there is no such place.
    pub anchor_dir: Option<PathBuf>,
    /// Where it is going to be mounted: told to others who want it.
    pub mountpoint: Option<PathBuf>,
}

impl OpenOptions {
    pub(super) fn must_fit(&self) -> Result<(), VaultError> {
        match self.salvage && !self.read_only {
            true => Err(VaultError::Setting(
                "salvage is for getting out what is left of a damaged vault: use it with `ro`"
                    .into(),
            )),
            false => Ok(()),
        }
    }
}
