//! The keys that an open vault is in use with: its keyring, and those of its system node.

use std::sync::Arc;

use crate::keyring::{Keyring, UnverifiedKeyring};
use crate::store::{self, SqliteStore};
use crate::sync::{Rank, RwLock};

use super::VaultError;
use super::state::SystemKeys;

/// See the module. Whoever needs several keys that belong together takes one copy and uses that.
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

    /// The keyring as it is now.
    pub(super) fn keyring(&self) -> Arc<Keyring> {
        Arc::clone(&self.keyring.read())
    }

    /// Puts another keyring into use.
    pub(super) fn use_keyring(&self, keyring: Keyring) {
        *self.keyring.write() = Arc::new(keyring);
    }

    /// The system node's keys as they are now.
    pub(super) fn system(&self) -> Arc<SystemKeys> {
        Arc::clone(&self.system.read())
    }

    /// Puts other keys of the system node into use.
    pub(super) fn use_system(&self, keys: Arc<SystemKeys>) {
        *self.system.write() = keys;
    }
}

/// The keyring record that is stored now. Nothing of it was verified.
///
/// # Errors
/// When it is missing, or no keyring record.
pub(super) fn stored_keyring(store: &SqliteStore) -> Result<UnverifiedKeyring, VaultError> {
    let missing = || VaultError::tampered("the header or the keyring record", "is missing");
    let (header, keyring) = store::read(store, |records| {
        let header = records.header()?.ok_or_else(missing)?;
        let keyring = records.keyring()?.ok_or_else(missing)?;
        Ok::<_, VaultError>((header, keyring))
    })?;
    Ok(UnverifiedKeyring::parse(&header, &keyring)?)
}
