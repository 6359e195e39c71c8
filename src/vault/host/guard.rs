//! What this host remembers of a vault, against what the vault is now: before any key is touched,
//! and again when everything is authentic.

use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use serde::Serialize;

use crate::crypto::schedule::{VaultId, digest};
use crate::keyring::{EventKind, Keyring, UnverifiedKeyring};
use crate::kms::KeyUri;

use super::anchor::{Anchor, Anchors, hex};
use super::super::node::Timestamp;
use super::super::open::OpenOptions;
use super::super::state::State;
use super::super::{Vault, VaultError};

/// What this host remembers of an open vault, and whether it does.
pub(in crate::vault) struct Kept {
    anchors: Anchors,
    anchor: Anchor,
    /// When it was stored last, in seconds since 1970.
    stored: Option<i64>,
    /// Why it could not be stored the last time.
    trouble: Option<String>,
}

impl Kept {
    /// Stores the anchor; notes what comes of it.
    fn store(&mut self, lower: bool) -> Result<(), VaultError> {
        fail::fail_point!("anchor-stores");
        let stored = match lower {
            true => self.anchors.take_over(&self.anchor),
            false => self.anchors.store(&self.anchor, false),
        };
        match &stored {
            Ok(()) => (self.stored, self.trouble) = (Some(Timestamp::now().seconds), None),
            Err(error) => self.trouble = Some(error.to_string()),
        }
        stored
    }
}

/// What this host remembers of an open vault, for `status`.
#[derive(Clone, Debug, Serialize)]
pub struct AnchorSummary {
    /// Older states of the vault than this commit are refused; none while nothing is stored.
    pub commit: Option<u64>,
    /// Seconds since it was stored. It is, within seconds, whenever the vault has come further.
    pub age_seconds: Option<i64>,
    /// Why it could not be stored the last time.
    pub trouble: Option<String>,
}

/// The comparison of a vault with what this host remembers of it.
pub(in crate::vault) struct Watch {
    pub(in crate::vault) anchors: Option<Anchors>,
    anchor: Option<Anchor>,
    pub(in crate::vault) pins: Vec<KeyUri>,
    vault: VaultId,
    path: PathBuf,
    /// A host that must have an anchor must be able to store it.
    required: bool,
    other_vault: bool,
    /// The keyring has the sequence that was seen, and is another.
    forked: bool,
}

impl Watch {
    /// Looks at who the vault says it is, before any key is touched.
    pub(in crate::vault) fn begin(
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
            required: options.require_anchor,
            other_vault,
            forked,
        })
    }

    /// Compares sequences, now that they are authentic. Returns what is to be recorded when an
    /// older state was accepted.
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

    /// Remembers what was opened.
    ///
    /// # Errors
    /// When it cannot, and must.
    pub(in crate::vault) fn remember(self, vault: &Vault, lower: bool) -> Result<(), VaultError> {
        let Some(anchors) = self.anchors else {
            return match self.required {
                true => Err(VaultError::Anchor(
                    "require-anchor is set, and there is no place for anchors: set anchor-dir"
                        .into(),
                )),
                false => Ok(()),
            };
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
        // As it is by now: a rotation may have been followed, and an accepted rollback changes it.
        let keyring = vault.keyring();
        anchor.keyring_sequence = keyring.body().sequence;
        anchor.keyring_digest = hex(&digest(&[&keyring.encode()]));
        drop(keyring);
        let old = self.anchor.as_ref().filter(|_| !lower);
        let old = old.map_or(0, |old| old.commit_sequence);
        // As of before the sync below, and never less than another mount has stored.
        anchor.commit_sequence = vault.seen().commit.max(old);
        let mut kept = Kept {
            anchors,
            anchor,
            stored: None,
            trouble: None,
        };
        // Another process may just be storing what was read: the anchor must not know what a power cut
        // can still take away. A writer has synced.
        let synced = match vault.read_only {
            true => vault.sync(),
            false => Ok(()),
        };
        let stored = match synced {
            Ok(()) => kept.store(lower),
            Err(error) => {
                kept.trouble = Some(error.to_string());
                Err(error)
            }
        };
        if let Err(error) = stored {
            if lower || self.required {
                return Err(error);
            }
            // A read-only root file system is common in containers; what is pinned by options or
            // by an anchor already there still holds.
            tracing::warn!("{error}; older states of the vault cannot be told");
        }
        *vault.anchor.lock().unwrap_or_else(PoisonError::into_inner) = Some(kept);
        Ok(())
    }
}

impl Vault {
    /// Remembers on this host how far the vault has come, if it has come further: to be called every
    /// few seconds. What is remembered is on disk first, or a power cut would look like an attack.
    ///
    /// # Errors
    /// When the vault cannot be read or synced, or the anchor cannot be written.
    pub fn keep_anchor(&self) -> Result<(), VaultError> {
        match self.read_only {
            true => self.look()?,
            false => self.look_at_own()?,
        }
        // Before the sync.
        let commit = self.seen().commit;
        let is_kept = |kept: &Kept| kept.stored.is_some() && kept.trouble.is_none();
        {
            let guard = self.anchor.lock().unwrap_or_else(PoisonError::into_inner);
            match guard.as_ref() {
                Some(kept) if !is_kept(kept) || kept.anchor.commit_sequence < commit => {}
                _ => return Ok(()),
            }
        }
        let synced = self.sync();
        let mut guard = self.anchor.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(kept) = guard.as_mut() else {
            return Ok(());
        };
        if let Err(error) = synced {
            kept.trouble = Some(error.to_string());
            return Err(error);
        }
        kept.anchor.commit_sequence = kept.anchor.commit_sequence.max(commit);
        kept.store(false)
    }

    /// What this host remembers of the vault; none when there is no place for it.
    pub fn anchor_summary(&self) -> Option<AnchorSummary> {
        let guard = self.anchor.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = guard.as_ref()?;
        let age = |at: i64| Timestamp::now().seconds.saturating_sub(at).max(0);
        Some(AnchorSummary {
            commit: kept.stored.map(|_| kept.anchor.commit_sequence),
            age_seconds: kept.stored.map(age),
            trouble: kept.trouble.clone(),
        })
    }

    /// The KMS keys that this host allows now: another mount may have moved the vault to others.
    pub(in crate::vault) fn pins_now(&self) -> Vec<KeyUri> {
        let guard = self.anchor.lock().unwrap_or_else(PoisonError::into_inner);
        let stored = guard
            .as_ref()
            .map(|kept| kept.anchors.load(self.keyring().vault()));
        let mut pins = self.pins.clone();
        if let Some(Ok(Some(anchor))) = stored {
            pins.extend(anchor.kms_keys.iter().filter_map(|uri| uri.parse().ok()));
        }
        pins
    }

    /// The first of `keys` that the vault is not under, and that was not named when it was opened. What
    /// the host remembers is not asked: the vault may have left it for a reason.
    ///
    /// # Errors
    /// When the keyring names something that is no KMS key.
    pub fn first_unknown_key<'k>(
        &self,
        keys: &'k [KeyUri],
    ) -> Result<Option<&'k KeyUri>, VaultError> {
        let now_under = self.keyring().kms_keys()?;
        let known = |key: &KeyUri| now_under.contains(key) || self.named_keys.contains(key);
        Ok(keys.iter().find(|key| !known(key)))
    }

    /// Has this host allow KMS keys that the vault is about to be wrapped by.
    pub(in crate::vault) fn pin(&self, keys: &[KeyUri]) -> Result<(), VaultError> {
        let mut guard = self.anchor.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(kept) = guard.as_mut() else {
            return Ok(());
        };
        let pinned = &mut kept.anchor.kms_keys;
        for key in keys {
            if !pinned.iter().any(|known| known == key.as_str()) {
                pinned.push(key.to_string());
            }
        }
        kept.store(false)
    }

    /// Remembers on this host the keyring that was just stored. A failure costs only how soon an
    /// older one is noticed.
    pub(in crate::vault) fn refresh_anchor_keyring(&self) {
        let mut guard = self.anchor.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(kept) = guard.as_mut() else {
            return;
        };
        let keyring = self.keyring();
        let anchor = &mut kept.anchor;
        anchor.keyring_sequence = keyring.body().sequence;
        anchor.keyring_digest = hex(&digest(&[&keyring.encode()]));
        // Once all is over, keys that it was under need not be asked any more.
        if keyring.body().change.is_none()
            && let Ok(keys) = keyring.kms_keys()
        {
            anchor.kms_keys = keys.iter().map(ToString::to_string).collect();
        }
        if let Err(error) = kept.store(false) {
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
