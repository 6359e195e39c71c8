//! A vault and what this host remembers of it.

use crate::kms::KeyUri;

use super::host::memory::AnchorSummary;
use super::{Vault, VaultError};

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
        self.host.keep(commit, || self.sync())
    }

    /// What this host remembers of the vault; none when there is no place for it.
    pub fn anchor_summary(&self) -> Option<AnchorSummary> {
        self.host.summary()
    }

    /// The KMS keys that this host allows now: another mount may have moved the vault to others.
    pub(super) fn pins_now(&self) -> Vec<KeyUri> {
        let mut pins = self.pins.clone();
        pins.extend(self.host.kms_keys(self.keyring().vault()));
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
}
