//! This host's memory of an open vault: the anchor, which follows the vault.

use std::sync::Arc;

use serde::Serialize;

use crate::crypto::schedule::VaultId;
use crate::keyring::Keyring;
use crate::kms::KeyUri;
use crate::sync::{Mutex, MutexGuard, Rank};

use super::super::VaultError;
use super::super::node::Timestamp;
use super::anchor::{Anchor, Anchors};
use super::guard::RollbackGuard;

/// The anchor of an open vault, and the outcome of storing it.
struct Kept {
    anchors: Anchors,
    anchor: Anchor,
    /// When it was last stored, in seconds since 1970.
    stored: Option<i64>,
    /// Why the last attempt to store it failed.
    trouble: Option<String>,
}

impl Kept {
    /// Stores the anchor, and notes the outcome.
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

/// This host's memory of an open vault, for `status`.
#[derive(Clone, Debug, Serialize)]
pub struct AnchorSummary {
    /// This host refuses states of the vault older than this commit; `None` while nothing is
    /// stored.
    pub commit: Option<u64>,
    /// Seconds since it was stored. It is stored within seconds after a commit.
    pub age_seconds: Option<i64>,
    /// Why the last attempt to store it failed.
    pub trouble: Option<String>,
}

/// The state of a vault that was just opened.
pub(in crate::vault) struct Seen<'a> {
    pub(in crate::vault) keyring: &'a Keyring,
    /// The last known commit.
    pub(in crate::vault) commit: u64,
    pub(in crate::vault) read_only: bool,
}

/// This host's memory of one vault, as the module describes.
pub(in crate::vault) struct HostMemory {
    /// `None` until the vault is in use, and where there is no place for anchors.
    kept: Mutex<Option<Kept>>,
    /// KMS keys that the vault might use when it was opened.
    pins: Vec<KeyUri>,
    /// Those of them that the caller named when it opened the vault.
    named: Vec<KeyUri>,
}

impl HostMemory {
    /// The memory of a vault that may use the KMS keys `pins`, of which its opener has `named`
    /// some.
    pub(in crate::vault) fn new(pins: Vec<KeyUri>, named: Vec<KeyUri>) -> Self {
        Self {
            kept: Mutex::new(Rank::HostMemory, None),
            pins,
            named,
        }
    }

    fn kept(&self) -> MutexGuard<'_, Option<Kept>> {
        self.kept.lock()
    }

    /// Stores the anchor of an opened vault, with `lower` even if it is older than the one stored.
    /// `sync` makes the commits durable.
    ///
    /// # Errors
    /// When it cannot be stored, and must be.
    pub(in crate::vault) fn begin(
        &self,
        guard: RollbackGuard,
        seen: Seen<'_>,
        lower: bool,
        sync: impl FnOnce() -> Result<(), VaultError>,
    ) -> Result<(), VaultError> {
        let Some(anchors) = guard.anchors else {
            return match guard.required {
                true => Err(VaultError::Anchor(
                    "require-anchor is set, and there is no place for anchors: set anchor-dir"
                        .into(),
                )),
                false => Ok(()),
            };
        };
        let uris = Anchor::keys_of(&guard.pins, guard.anchor.as_ref());
        let mut anchor = Anchor::new(guard.vault, &guard.path, uris);
        // Reading a copy does not move the vault: the anchor keeps its path.
        if seen.read_only
            && let Some(old) = &guard.anchor
        {
            anchor.path.clone_from(&old.path);
        }
        anchor.note_keyring(seen.keyring);
        let old = guard.anchor.as_ref().filter(|_| !lower);
        let old = old.map_or(0, |old| old.commit_sequence);
        // The commit before the sync below, and never less than another mount has stored.
        anchor.commit_sequence = seen.commit.max(old);
        let mut kept = Kept {
            anchors,
            anchor,
            stored: None,
            trouble: None,
        };
        // Another process may have committed this state without a sync: the anchor must not hold a
        // commit that a power cut can still remove. A writer has synced.
        let synced = match seen.read_only {
            true => sync(),
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
            if lower || guard.required {
                return Err(error);
            }
            // A read-only root file system is common in containers. Pins from options or from an
            // existing anchor still hold.
            tracing::warn!("{error}; older states of the vault cannot be told");
        }
        *self.kept() = Some(kept);
        Ok(())
    }

    /// Stores `commit` in the anchor if it is newer. `sync` first makes the commits durable:
    /// otherwise a power cut would look like an attack.
    ///
    /// # Errors
    /// When the vault cannot be synced, or the anchor cannot be written.
    pub(in crate::vault) fn keep(
        &self,
        commit: u64,
        sync: impl FnOnce() -> Result<(), VaultError>,
    ) -> Result<(), VaultError> {
        let is_kept = |kept: &Kept| kept.stored.is_some() && kept.trouble.is_none();
        match self.kept().as_ref() {
            Some(kept) if !is_kept(kept) || kept.anchor.commit_sequence < commit => {}
            _ => return Ok(()),
        }
        let synced = sync();
        let mut guard = self.kept();
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

    /// The summary for `status`; `None` without a directory for anchors.
    pub(in crate::vault) fn summary(&self) -> Option<AnchorSummary> {
        let guard = self.kept();
        let kept = guard.as_ref()?;
        let age = |at: i64| Timestamp::now().seconds.saturating_sub(at).max(0);
        Some(AnchorSummary {
            commit: kept.stored.map(|_| kept.anchor.commit_sequence),
            age_seconds: kept.stored.map(age),
            trouble: kept.trouble.clone(),
        })
    }

    /// The KMS keys that this host allows now, including those to which another mount has moved the
    /// vault.
    pub(in crate::vault) fn allowed_keys(&self, vault: VaultId) -> Vec<KeyUri> {
        let mut allowed = self.pins.clone();
        let guard = self.kept();
        if let Some(Ok(Some(anchor))) = guard.as_ref().map(|kept| kept.anchors.load(vault)) {
            let uris = anchor.kms_keys.iter();
            allowed.extend(uris.filter_map(|uri| uri.parse().ok()));
        }
        allowed
    }

    /// The first of `keys` that neither wraps the master key (`now_under`) nor was named when the
    /// vault was opened. Keys in the stored anchor do not count: the vault may have left one for a
    /// reason.
    pub(in crate::vault) fn first_unknown_key<'k>(
        &self,
        keys: &'k [KeyUri],
        now_under: &[KeyUri],
    ) -> Option<&'k KeyUri> {
        let known = |key: &KeyUri| now_under.contains(key) || self.named.contains(key);
        keys.iter().find(|key| !known(key))
    }

    /// Adds KMS keys that are about to wrap the master key.
    pub(in crate::vault) fn pin(&self, keys: &[KeyUri]) -> Result<(), VaultError> {
        let mut guard = self.kept();
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

    /// Notes the keyring that was just stored. After a failure this host only notices an older one
    /// later. `newest` is called under the lock, so the newest keyring wins.
    pub(in crate::vault) fn note_keyring(&self, newest: impl FnOnce() -> Arc<Keyring>) {
        let mut guard = self.kept();
        let Some(kept) = guard.as_mut() else {
            return;
        };
        let keyring = newest();
        let anchor = &mut kept.anchor;
        anchor.note_keyring(&keyring);
        // After the rotation, the previous KMS keys are no longer needed.
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
