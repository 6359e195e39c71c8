//! Wrapping and unwrapping with local keys, and the errors of both.
//!
//! An error must never show more of a key than its name, version and state.

use super::LocalKms;
use super::place::DIR_VARIABLE;
use super::record::{LocalState, Record};
use super::refusal::{fail, serving};
use super::seal::{self, SealError};
use crate::crypto::SecretKey;
use crate::kms::{
    EncryptionContext, KeyDescription, KeyService, KeyState, KeyUri, KmsError, KmsErrorKind,
    Wrapped,
};

impl KeyService for LocalKms {
    fn wrap(
        &self,
        uri: &KeyUri,
        key: &SecretKey,
        context: &EncryptionContext,
    ) -> Result<Wrapped, KmsError> {
        let record = self.load(uri.key())?;
        serving(&record)?;
        let Some(material) = record.newest() else {
            return Err(self.not_found(uri.key()));
        };
        let blob = seal::seal(&record.name, material, key, context)
            .map_err(|e| seal_error("wrap a key under", &record, e))?;
        Ok(Wrapped {
            key_id: key_id(&record),
            blob,
        })
    }

    fn unwrap(
        &self,
        uri: &KeyUri,
        blob: &[u8],
        context: &EncryptionContext,
    ) -> Result<SecretKey, KmsError> {
        let record = self.load(uri.key())?;
        serving(&record)?;
        seal::open(&record.name, &record.versions, blob, context)
            .map_err(|e| seal_error("unwrap a key with", &record, e))
    }

    fn describe(&self, uri: &KeyUri) -> Result<KeyDescription, KmsError> {
        let record = self.load(uri.key())?;
        let state = match record.state {
            LocalState::Enabled => KeyState::Enabled,
            LocalState::Disabled => KeyState::Disabled,
            LocalState::PendingDeletion { .. } => KeyState::PendingDeletion,
        };
        Ok(KeyDescription {
            key_id: key_id(&record),
            state,
            credentials: None,
        })
    }
}

fn seal_error(attempt: &str, record: &Record, error: SealError) -> KmsError {
    let name = &record.name;
    let (kind, why) = match error {
        SealError::NotABlob => (
            KmsErrorKind::WrongKey,
            "the stored wrap is not one of the local KMS: it was altered, or made by another provider; look at the vault with `check`".to_owned(),
        ),
        SealError::NoSuchVersion(version) => (
            KmsErrorKind::WrongKey,
            format!(
                "the wrap was made by version {version} of the key, and the key has only {}: this is not the key that wrapped it, or an old copy; restore the newest copy of the local KMS's directory",
                record.versions.len()
            ),
        ),
        SealError::OtherKey => (
            KmsErrorKind::WrongKey,
            format!(
                "this is not the key that wrapped it, only one of the same name; restore the key from a backup, or set {DIR_VARIABLE} to where it is"
            ),
        ),
        SealError::Refused => (
            KmsErrorKind::WrongKey,
            "this key wrapped it, but under another encryption context (vault, purpose or generation), or it was altered; make sure that the vault is the right one".to_owned(),
        ),
        SealError::Machine => (
            KmsErrorKind::BadAnswer,
            "the cipher or the system's random number generator failed; this machine needs looking after".to_owned(),
        ),
    };
    fail(kind, format!("cannot {attempt} local-kms://{name}: {why}"))
}

fn key_id(record: &Record) -> String {
    format!(
        "{}@{}",
        record.name,
        record.newest().map_or(0, |m| m.version)
    )
}
