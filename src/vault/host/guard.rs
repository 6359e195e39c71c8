//! Compares a vault with this host's memory of it: before any key is touched, and again when
//! everything is authentic.

use std::path::{Path, PathBuf};

use crate::crypto::schedule::VaultId;
use crate::keyring::{EventKind, Keyring, UnverifiedKeyring};
use crate::kms::KeyUri;

use super::super::VaultError;
use super::super::options::OpenOptions;
use super::super::state::State;
use super::anchor::{Anchor, Anchors, hex};

/// What this host remembers of a vault, loaded before the records that are compared with it:
/// another process may commit and remember at any time, and records from before that would look
/// like a rollback.
pub(in crate::vault) struct Remembered {
    anchors: Option<Anchors>,
    anchor: Option<Anchor>,
    vault: VaultId,
    path: PathBuf,
    other_vault: bool,
}

impl Remembered {
    /// Loads what this host remembers of the vault with the id that `path` claims, and checks that
    /// id.
    pub(in crate::vault) fn load(
        path: &Path,
        vault: VaultId,
        options: &OpenOptions,
    ) -> Result<Self, VaultError> {
        if let Some(pinned) = &options.pinned_vault_id
            && *pinned != vault.to_string()
        {
            return Err(VaultError::Rollback(format!(
                "{} is vault {vault}, but vault-id={pinned} was asked for",
                path.display()
            )));
        }
        let anchors = options.anchor_dir.as_ref().map(Anchors::at);
        let mut anchor = None;
        let mut other_vault = false;
        if let Some(anchors) = &anchors {
            anchor = anchors.load(vault)?;
            if let Some(other) = anchors.other_vault_at(path, vault)? {
                other_vault = true;
                if !options.accept_rollback {
                    return Err(VaultError::Rollback(format!(
                        "{} holds vault {vault}, but this host last saw vault {other} there; if \
                         you put it there yourself, mount once with --accept-rollback",
                        path.display()
                    )));
                }
            }
        }
        if anchor.is_none() && options.require_anchor {
            return Err(VaultError::Rollback(format!(
                "this host has no anchor of vault {vault}, and require-anchor is set; mount it \
                 once without, where you can trust it"
            )));
        }
        Ok(Self {
            anchors,
            anchor,
            vault,
            path: path.to_owned(),
            other_vault,
        })
    }
}

/// The comparison of a vault with this host's memory of it.
pub(in crate::vault) struct RollbackGuard {
    pub(in crate::vault) anchors: Option<Anchors>,
    pub(super) anchor: Option<Anchor>,
    pub(in crate::vault) pins: Vec<KeyUri>,
    pub(super) vault: VaultId,
    pub(super) path: PathBuf,
    /// The host must be able to store an anchor.
    pub(super) required: bool,
    other_vault: bool,
    /// The keyring differs from the known one of the same sequence.
    forked: bool,
}

impl RollbackGuard {
    /// Compares the keyring record with what is remembered, before any key is touched.
    pub(in crate::vault) fn begin(
        remembered: Remembered,
        unverified: &UnverifiedKeyring,
        options: &OpenOptions,
    ) -> Result<Self, VaultError> {
        let Remembered {
            anchors,
            anchor,
            vault,
            path,
            other_vault,
        } = remembered;
        if unverified.vault() != vault {
            let why = "names another vault than a moment ago";
            return Err(VaultError::tampered("the header", why));
        }
        let keyring_digest = hex(&unverified.digest());
        let forked = anchor.as_ref().is_some_and(|anchor| {
            unverified.sequence() == anchor.keyring_sequence
                && keyring_digest != anchor.keyring_digest
        });
        if let Some(anchor) = &anchor
            && !options.accept_rollback
            && (forked || unverified.sequence() < anchor.keyring_sequence)
        {
            return Err(VaultError::Rollback(format!(
                "the keyring record (sequence {}) is not the one that this host has seen \
                 (sequence {}); after restoring a backup, mount once with --accept-rollback",
                unverified.sequence(),
                anchor.keyring_sequence
            )));
        }
        let pins = pins(&anchor, unverified, options)?;
        Ok(Self {
            anchors,
            anchor,
            pins,
            vault,
            path,
            required: options.require_anchor,
            other_vault,
            forked,
        })
    }

    /// Compares the sequences, which are authentic by now. Returns the event to record if an older
    /// state was accepted.
    pub(in crate::vault) fn compare(
        &self,
        keyring: &Keyring,
        state: &State,
        options: &OpenOptions,
    ) -> Result<Option<EventKind>, VaultError> {
        if let Some(least) = options.min_commit
            && state.commit < least
        {
            return Err(VaultError::Rollback(format!(
                "the vault is at commit {}, but min-commit={least} was asked for: it is older than \
                 it should be",
                state.commit
            )));
        }
        let seen = self
            .anchor
            .as_ref()
            .map(|a| (a.keyring_sequence, a.commit_sequence));
        let (seen_keyring, seen_commit) = seen.unwrap_or_default();
        let accepted_keyring = keyring.body().sequence;
        let older = accepted_keyring < seen_keyring || state.commit < seen_commit;
        if !older && !self.forked && !self.other_vault {
            return Ok(None);
        }
        if !options.accept_rollback {
            return Err(VaultError::Rollback(format!(
                "the vault is older than what this host has seen: commit {} of {seen_commit}; \
                 after restoring a backup, mount once with --accept-rollback",
                state.commit
            )));
        }
        if options.read_only {
            return Err(VaultError::Setting(
                "accepting a rollback is recorded in the vault's history, so it needs a mount for \
                 writing; mount once without `ro`"
                    .into(),
            ));
        }
        Ok(Some(EventKind::RollbackAccepted {
            seen_keyring,
            accepted_keyring,
            seen_commit,
            accepted_commit: state.commit,
        }))
    }
}

/// The KMS keys that may be asked.
fn pins(
    anchor: &Option<Anchor>,
    unverified: &UnverifiedKeyring,
    options: &OpenOptions,
) -> Result<Vec<KeyUri>, VaultError> {
    if !options.pinned_keys.is_empty() {
        return Ok(options.pinned_keys.clone());
    }
    let uris = match anchor {
        Some(anchor) => anchor.kms_keys.clone(),
        // Trust on first use.
        None => unverified.claimed_uris(),
    };
    uris.iter()
        .map(|uri| {
            uri.parse()
                .map_err(|e| VaultError::Integrity(format!("{e}")))
        })
        .collect()
}
