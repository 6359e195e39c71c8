//! Key management services. They wrap master keys, and nothing else.
//!
//! A KMS key never touches a secret or a data key. Two providers behave alike: `local-kms://`
//! (embedded) and `aws-kms://`. Every call is bounded in time. Every error has a class, because
//! callers answer each class differently.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::crypto::SecretKey;

mod aws;
mod dispatch;
pub mod local;
mod uri;

pub use dispatch::{Kms, connect};
pub use uri::{KeyUri, KeyUriError, Provider};

/// The context bound into every wrap. CloudTrail shows it and IAM conditions may use it, so it
/// never holds a secret's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncryptionContext(BTreeMap<String, String>);

impl EncryptionContext {
    /// The context for wrapping a vault's master key of one generation.
    pub fn master_key(vault_id: &str, generation: u64) -> Self {
        Self(BTreeMap::from([
            ("secretfs:vault".to_owned(), vault_id.to_owned()),
            ("secretfs:purpose".to_owned(), "master-key".to_owned()),
            ("secretfs:generation".to_owned(), generation.to_string()),
        ]))
    }

    /// The pairs, ordered by key.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }
}

/// A master key wrapped by a KMS key.
#[derive(Clone, PartialEq, Eq)]
pub struct Wrapped {
    /// The provider's identifier of the wrapping key: an ARN, or a local key's name and version. It
    /// shows which backing material the wrap needs.
    pub key_id: String,
    /// The provider's opaque ciphertext.
    pub blob: Vec<u8>,
}

impl fmt::Debug for Wrapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Wrapped({}, {} bytes)", self.key_id, self.blob.len())
    }
}

/// The state of a KMS key, as its provider reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyState {
    /// The key wraps and unwraps.
    Enabled,
    /// The key refuses to, until it is enabled again.
    Disabled,
    /// The key refuses to, and will be deleted unless the deletion is cancelled.
    PendingDeletion,
    /// The key cannot be used for another reason (pending import, unavailable, creating).
    Unavailable,
}

/// A provider's description of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyDescription {
    /// The provider's identifier of the key: an ARN, or a local key's name and version.
    pub key_id: String,
    /// Whether the key can be used.
    pub state: KeyState,
    /// The source of the credentials, in plain words; `None` if the provider needs none.
    pub credentials: Option<String>,
}

/// Time limits and locations for KMS calls.
#[derive(Clone, Debug)]
pub struct KmsSettings {
    /// Limit on one attempt. Default 2 s.
    pub attempt_timeout: Duration,
    /// Limit on a call, with all its attempts and the search for credentials. Default 6 s.
    pub total_timeout: Duration,
    /// The directory of the local KMS; `None`: `$SECRETFS_LOCAL_KMS_DIR` or the default.
    pub local_dir: Option<std::path::PathBuf>,
    /// The shared credentials file that alone provides AWS credentials; `None`: all places where
    /// AWS tools look.
    pub credentials_file: Option<std::path::PathBuf>,
    /// Allows calls to AWS KMS without TLS even if the endpoint is not on this machine.
    pub insecure_endpoint: bool,
}

impl Default for KmsSettings {
    fn default() -> Self {
        Self {
            attempt_timeout: Duration::from_secs(2),
            total_timeout: Duration::from_secs(6),
            local_dir: None,
            credentials_file: None,
            insecure_endpoint: false,
        }
    }
}

/// A key management service: wraps and unwraps 256-bit master keys under keys that never leave it.
pub trait KeyService: Send + Sync {
    /// Wraps `key` under the KMS key `uri`, bound to `context`.
    ///
    /// # Errors
    /// Classified; see [`KmsErrorKind`].
    fn wrap(
        &self,
        uri: &KeyUri,
        key: &SecretKey,
        context: &EncryptionContext,
    ) -> Result<Wrapped, KmsError>;

    /// Unwraps a blob of [`wrap`](Self::wrap). The call always names `uri`, so the provider refuses
    /// a blob made under another key.
    ///
    /// # Errors
    /// Classified; see [`KmsErrorKind`].
    fn unwrap(
        &self,
        uri: &KeyUri,
        blob: &[u8],
        context: &EncryptionContext,
    ) -> Result<SecretKey, KmsError>;

    /// Looks up the key that `uri` names now, and its state.
    ///
    /// # Errors
    /// Classified; see [`KmsErrorKind`].
    fn describe(&self, uri: &KeyUri) -> Result<KeyDescription, KmsError>;
}

/// Why a KMS call failed: one class for each different reaction of a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KmsErrorKind {
    /// The caller may not use the key (policy, grant, file permissions, expired token).
    Denied,
    /// The key is disabled.
    Disabled,
    /// The key is scheduled for deletion, or not usable in its state.
    PendingDeletion,
    /// The key does not exist.
    NotFound,
    /// The blob was altered, or made by another key or under another context.
    WrongKey,
    /// The provider found no credentials.
    NoCredentials,
    /// The service limits the rate of calls.
    Throttled,
    /// No answer came: connection refused or reset, time-out, name not found.
    Unreachable,
    /// The service's answer makes no sense.
    BadAnswer,
    /// The local configuration rules the call out (loose modes, unknown region).
    Configuration,
}

/// A failed KMS call: what was attempted, on which key, why it failed and what to do next, in
/// plain words. Holds no key material.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct KmsError {
    /// The class.
    pub kind: KmsErrorKind,
    /// The message, one line.
    pub message: String,
}
