//! This host's memory of a vault that is being restored. It follows the restored vault back to an
//! older state, and is not touched before the whole backup is verified.

use std::path::Path;

use crate::crypto::schedule::VaultId;
use crate::error::{Class, Error};
use crate::keyring::{Event, EventKind};
use crate::kms::KeyUri;
use crate::os::mountinfo::{self, Mount};
use crate::store::Mode;

use super::super::facade::claimed_id;
use super::super::host::anchor::{Anchor, Anchors};
use super::super::node::Timestamp;
use super::super::{OpenOptions, Vault, VaultError};

/// The memory of a vault, as it was before.
pub(super) struct Memory {
    pub(super) vault: VaultId,
    anchors: Option<Anchors>,
    anchor: Option<Anchor>,
}

impl Memory {
    /// The memory of the vault of which `path` claims to be a backup.
    ///
    /// # Errors
    /// When there is no backup, when its anchor cannot be read, or when it must have one and has
    /// none.
    pub(super) fn of(path: &Path, options: &OpenOptions) -> Result<Self, VaultError> {
        let vault = claimed_id(path, Mode::ReadStill)?;
        let anchors = options.anchor_dir.as_ref().map(Anchors::at);
        let anchor = match &anchors {
            Some(anchors) => anchors.load(vault)?,
            None => None,
        };
        if anchor.is_none() && options.require_anchor {
            return Err(VaultError::Rollback(format!(
                "this host has no anchor of vault {vault}, and require-anchor is set; restore it \
                 once without, where you can trust the backup"
            )));
        }
        Ok(Self {
            vault,
            anchors,
            anchor,
        })
    }

    /// Refuses to go back while this host has the vault mounted for writing: it would remember the
    /// restored vault from then on, and could refuse either the next time.
    ///
    /// # Errors
    /// When it has, or the mounts cannot be read.
    pub(super) fn must_not_be_mounted(&self) -> Result<(), Error> {
        let Some(anchor) = &self.anchor else {
            return Ok(());
        };
        let mounts = mountinfo::mounts().map_err(|e| Error::new(Class::Failed, e))?;
        let is_it =
            |mount: &&Mount| mount.is_secretfs() && !mount.read_only && anchor.is_at(&mount.source);
        match mounts.iter().find(is_it) {
            Some(mount) => Err(Error::new(
                Class::Busy,
                format!(
                    "vault {} is mounted on {}, and this host could refuse it once an older state \
                     is restored: unmount it first; to look at the backup only, mount that with \
                     -o ro and an empty --anchor-dir",
                    self.vault,
                    mount.point.display()
                ),
            )),
            None => Ok(()),
        }
    }

    /// The KMS keys that may be asked. If empty, those of the backup, which is then trusted on
    /// first use.
    ///
    /// # Errors
    /// When the anchor names an invalid key.
    pub(super) fn pins(&self, options: &OpenOptions) -> Result<Vec<KeyUri>, VaultError> {
        if !options.pinned_keys.is_empty() {
            return Ok(options.pinned_keys.clone());
        }
        let known = self.anchor.iter().flat_map(|anchor| &anchor.kms_keys);
        let parsed = known.map(|uri| {
            uri.parse()
                .map_err(|e| VaultError::Integrity(format!("{e}")))
        });
        parsed.collect()
    }

    /// Checks that the anchor can be replaced: without that, the next mount would be refused.
    ///
    /// # Errors
    /// When the directory of the anchors cannot be written.
    pub(super) fn must_be_writable(&self) -> Result<(), VaultError> {
        self.anchors.iter().try_for_each(Anchors::must_be_writable)
    }

    /// Records in the history of `copy`, a vault, that an older state was accepted. Returns the
    /// anchor for the vault that comes to be at `target`, of which `source` is the backup.
    ///
    /// # Errors
    /// When the copy cannot be opened or written.
    pub(super) fn restored(
        &self,
        copy: &Path,
        options: &OpenOptions,
        target: &Path,
        source: &Vault,
    ) -> Result<Anchor, VaultError> {
        let vault = Vault::open(copy, options)?;
        let anchor = self.anchor.as_ref();
        let event = Event {
            at: Timestamp::now().seconds,
            late: false,
            kind: EventKind::RollbackAccepted {
                seen_keyring: anchor.map_or(0, |anchor| anchor.keyring_sequence),
                accepted_keyring: source.keyring().body().sequence,
                seen_commit: anchor.map_or(0, |anchor| anchor.commit_sequence),
                accepted_commit: source.records().seen().commit,
            },
        };
        vault
            .transactions()
            .change_keyring(|keyring| Ok(Some(keyring.record_event(&event))), |_| Ok(()))?;
        vault.sync()?;
        let uris = Anchor::keys_of(&source.host().allowed_keys(self.vault), anchor);
        let mut restored = Anchor::new(self.vault, target, uris);
        restored.note_keyring(&vault.keyring());
        restored.commit_sequence = vault.records().seen().commit;
        Ok(restored)
    }

    /// Stores the anchor of the restored vault, even if this host has seen a later state.
    ///
    /// # Errors
    /// When it cannot be stored.
    pub(super) fn take_over(&self, restored: &Anchor) -> Result<(), VaultError> {
        let anchors = self.anchors.as_ref();
        anchors.map_or(Ok(()), |anchors| anchors.take_over(restored))
    }

    /// Stores the previous anchor again, since nothing was restored after all.
    pub(super) fn put_back(&self) {
        match (&self.anchors, &self.anchor) {
            (Some(anchors), Some(anchor)) => {
                if let Err(error) = anchors.store(anchor, true) {
                    tracing::warn!("{error}");
                }
            }
            (Some(anchors), None) => anchors.forget(self.vault),
            (None, _) => {}
        }
    }
}
