//! The keys of an open vault: its keyring, and the keys of its system node.

use std::sync::Arc;

use crate::keyring::{Keyring, UnverifiedKeyring};
use crate::store::{self, ReadRecords as _, Store};
use crate::sync::{Rank, RwLock};

use super::VaultError;
use super::state::SystemKeys;

/// The keys of an open vault. Callers that need keys that belong together take one copy and use
/// that.
pub(super) struct Unlocked {
    keyring: RwLock<Arc<Keyring>>,
    system: RwLock<Arc<SystemKeys>>,
}

impl Unlocked {
    pub(super) fn new(keyring: Keyring, system: SystemKeys) -> Self {
        Self {
            keyring: RwLock::new(Rank::Keyring, Arc::new(keyring)),
            system: RwLock::new(Rank::SystemKeys, Arc::new(system)),
        }
    }

    /// The present keyring.
    pub(super) fn keyring(&self) -> Arc<Keyring> {
        Arc::clone(&self.keyring.read())
    }

    /// Replaces the keyring in use.
    pub(super) fn use_keyring(&self, keyring: Keyring) {
        *self.keyring.write() = Arc::new(keyring);
    }

    /// The present keys of the system node.
    pub(super) fn system(&self) -> Arc<SystemKeys> {
        Arc::clone(&self.system.read())
    }

    /// Replaces the keys of the system node.
    pub(super) fn use_system(&self, keys: Arc<SystemKeys>) {
        *self.system.write() = keys;
    }
}

/// The keyring record on disk, unverified.
///
/// # Errors
/// When it is missing, or no keyring record.
pub(super) fn stored_keyring(store: &dyn Store) -> Result<UnverifiedKeyring, VaultError> {
    let missing = || VaultError::tampered("the header or the keyring record", "is missing");
    let (header, keyring) = store::read(store, |records| {
        let header = records.header()?.ok_or_else(missing)?;
        let keyring = records.keyring()?.ok_or_else(missing)?;
        Ok::<_, VaultError>((header, keyring))
    })?;
    Ok(UnverifiedKeyring::parse(&header, &keyring)?)
}
