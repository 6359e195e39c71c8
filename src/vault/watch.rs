//! What this host remembers of a vault, against what the vault is now: before any key is touched,
//! and again when everything is authentic.

use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use crate::crypto::schedule::{VaultId, digest};
use crate::keyring::{EventKind, Keyring, UnverifiedKeyring};
use crate::kms::KeyUri;

use super::anchor::{Anchor, Anchors, hex};
use super::open::OpenOptions;
use super::state::State;
use super::{Vault, VaultError};

/// The comparison of a vault with what this host remembers of it.
pub(super) struct Watch {
    pub(super) anchors: Option<Anchors>,
    anchor: Option<Anchor>,
    pub(super) pins: Vec<KeyUri>,
    vault: VaultId,
    path: PathBuf,
    keyring_digest: String,
    other_vault: bool,
    /// The keyring has the sequence that was seen, and is another.
    forked: bool,
}

impl Watch {
    /// Looks at who the vault says it is, before any key is touched.
    pub(super) fn begin(
        path: &Path,
        unverified: &UnverifiedKeyring,
        options: &OpenOptions,
    ) -> Result<Self, VaultError> {
        let vault = unverified.vault();
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
            path: path.to_owned(),
            keyring_digest,
            other_vault,
            forked,
        })
    }

    /// Compares sequences, now that they are authentic. Returns what is to be recorded when an
    /// older state was accepted.
    pub(super) fn compare(
        &self,
        keyring: &Keyring,
        state: &State,
        options: &OpenOptions,
    ) -> Result<Option<EventKind>, VaultError> {
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

    /// Remembers what was opened.
    pub(super) fn remember(self, vault: &mut Vault, lower: bool) -> Result<(), VaultError> {
        let Some(anchors) = self.anchors else {
            return Ok(());
        };
        let mut uris: Vec<String> = self.pins.iter().map(ToString::to_string).collect();
        // Keys pinned for this time only do not make the host forget the others.
        for known in self.anchor.iter().flat_map(|anchor| &anchor.kms_keys) {
            if !uris.contains(known) {
                uris.push(known.clone());
            }
        }
        let mut anchor = Anchor::new(self.vault, &self.path, uris);
        // Looking at a copy does not move the vault: what is bound to its place stays bound.
        if vault.read_only
            && let Some(old) = &self.anchor
        {
            anchor.path.clone_from(&old.path);
        }
        // Another process may just be storing the keyring that was read: the anchor must not know
        // what a power cut can still take away.
        if vault.read_only
            && let Err(error) = vault.sync()
        {
            tracing::warn!("{error}; this host does not remember what it has seen of the vault");
            return Ok(());
        }
        let keyring = vault.keyring();
        anchor.keyring_sequence = keyring.body().sequence;
        anchor.keyring_digest = match lower {
            // The event of the rollback has changed the record.
            true => hex(&digest(&[&keyring.encode()])),
            false => self.keyring_digest,
        };
        drop(keyring);
        // Only a writer knows that what it has read is on disk: it has synced.
        anchor.commit_sequence = match (vault.read_only, &self.anchor) {
            (false, _) => vault.state().commit,
            (true, Some(old)) => old.commit_sequence,
            (true, None) => 0,
        };
        let stored = match lower {
            true => anchors.take_over(&anchor),
            false => anchors.store(&anchor, false),
        };
        if let Err(error) = stored {
            if lower {
                return Err(error);
            }
            // A read-only root file system is common in containers; what is pinned by options or
            // by an anchor already there still holds.
            tracing::warn!("{error}; older states of the vault cannot be told");
        }
        vault.anchored = true;
        *vault
            .anchor
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner) = Some((anchors, anchor));
        Ok(())
    }
}

impl Vault {
    /// Remembers on this host that the vault has come as far as `commit`, which must be on disk,
    /// or a power cut would look like an attack.
    ///
    /// # Errors
    /// When the anchor cannot be written.
    pub fn refresh_anchor(&self, commit: u64) -> Result<(), VaultError> {
        let mut guard = self.anchor.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((anchors, anchor)) = guard.as_mut() else {
            return Ok(());
        };
        if !self.read_only && anchor.commit_sequence < commit {
            anchor.commit_sequence = commit;
            anchors.store(anchor, false)?;
        }
        Ok(())
    }

    /// Has this host allow KMS keys that the vault is about to be wrapped by.
    pub(super) fn pin(&self, keys: &[KeyUri]) -> Result<(), VaultError> {
        let mut guard = self.anchor.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((anchors, anchor)) = guard.as_mut() else {
            return Ok(());
        };
        for key in keys {
            if !anchor.kms_keys.iter().any(|known| known == key.as_str()) {
                anchor.kms_keys.push(key.to_string());
            }
        }
        anchors.store(anchor, false)
    }

    /// Remembers on this host the keyring that was just stored. A failure costs only how soon an
    /// older one is noticed.
    pub(super) fn refresh_anchor_keyring(&self) {
        let mut guard = self.anchor.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((anchors, anchor)) = guard.as_mut() else {
            return;
        };
        let keyring = self.keyring();
        anchor.keyring_sequence = keyring.body().sequence;
        anchor.keyring_digest = hex(&digest(&[&keyring.encode()]));
        // Once all is over, keys that it was under need not be asked any more.
        if keyring.body().change.is_none()
            && let Ok(keys) = keyring.kms_keys()
        {
            anchor.kms_keys = keys.iter().map(ToString::to_string).collect();
        }
        if let Err(error) = anchors.store(anchor, false) {
            tracing::warn!("{error}");
        }
    }
}

/// Which KMS keys may be asked.
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
