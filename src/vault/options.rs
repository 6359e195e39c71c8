//! Options for creating and opening a vault.

use std::path::PathBuf;

use crate::config::Settings;
use crate::kms::{KeyUri, KmsSettings};

use super::VaultError;

/// Options for creating a vault.
#[derive(Clone, Debug)]
pub struct InitOptions {
    /// The KMS keys that wrap its master key; any one of them unlocks it.
    pub kms_keys: Vec<KeyUri>,
    /// Owner of the root directory.
    pub uid: u32,
    /// Group of the root directory.
    pub gid: u32,
    /// Time limits and locations for KMS calls.
    pub kms: KmsSettings,
    /// The directory of this host's anchors; `None` if there is none.
    pub anchor_dir: Option<PathBuf>,
}

/// Options for opening a vault.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// Open for reading only, beside a writer.
    pub read_only: bool,
    /// Accept the vault although this host has seen a newer state, or another vault in its place.
    pub accept_rollback: bool,
    /// The only KMS keys that may be asked; if empty, those of the anchor.
    pub pinned_keys: Vec<KeyUri>,
    /// The only vault id accepted, in hexadecimal.
    pub pinned_vault_id: Option<String>,
    /// Refuse a vault without an anchor on this host, or whose anchor it cannot store.
    pub require_anchor: bool,
    /// Refuse a vault older than this commit.
    pub min_commit: Option<u64>,
    /// Open for reading although nodes or versions were replayed, inserted or deleted: to find out
    /// which, or to save the rest.
    pub salvage: bool,
    /// If opened for reading: nobody changes the vault's files meanwhile, and opening creates none
    /// beside them.
    pub still: bool,
    /// Accept a network or FUSE file system below the vault.
    pub unsafe_filesystem: bool,
    /// Time limits and locations for KMS calls.
    pub kms: KmsSettings,
    /// The directory of this host's anchors; `None` if there is none.
    pub anchor_dir: Option<PathBuf>,
    /// The mount point, which the lock shows to other processes.
    pub mountpoint: Option<PathBuf>,
}

impl OpenOptions {
    /// As a mount is to open its vault, save for where it is going to be mounted.
    pub fn of(settings: &Settings) -> Self {
        Self {
            read_only: settings.read_only,
            accept_rollback: settings.accept_rollback,
            pinned_keys: settings.kms_keys.clone(),
            pinned_vault_id: settings.vault_id.clone(),
            require_anchor: settings.require_anchor,
            min_commit: settings.min_commit,
            salvage: settings.salvage,
            still: false,
            unsafe_filesystem: settings.unsafe_filesystem,
            kms: settings.kms.clone(),
            anchor_dir: settings.anchor_dir.clone(),
            mountpoint: None,
        }
    }

    /// For commands that only look.
    pub fn to_look(settings: &Settings) -> Self {
        Self {
            read_only: true,
            accept_rollback: false,
            salvage: false,
            ..Self::of(settings)
        }
    }

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
