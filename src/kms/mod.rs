//! Key management services: what wraps a master key, and nothing else.
//!
//! The KMS key never touches a secret or a data key. Two providers behave alike: `local-kms://`
//! (embedded) and `aws-kms://`. Every call is bounded in time, and
//! every error is classified, because the right answer to each differs.

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

/// What is bound into every wrap besides the key: visible in CloudTrail and usable in IAM
/// conditions, so it never holds a secret's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncryptionContext(BTreeMap<String, String>);

impl EncryptionContext {
    /// The context under which a vault's master key of one generation is wrapped.
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

/// A master key as a KMS key wrapped it.
#[derive(Clone, PartialEq, Eq)]
pub struct Wrapped {
    /// The key that did it, in the provider's own words: an ARN, or a local key's name and
    /// version. Tells which backing material a wrap needs.
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
    /// Wraps and unwraps.
    Enabled,
    /// Refuses to, until it is enabled again.
    Disabled,
    /// Refuses to, and will be deleted unless that is cancelled.
    PendingDeletion,
    /// Anything else that does not serve (pending import, unavailable, creating).
    Unavailable,
}

/// What a provider tells of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyDescription {
    /// The key in the provider's own words: an ARN, or a local key's name and version.
    pub key_id: String,
    /// Whether it serves.
    pub state: KeyState,
    /// Where the credentials came from, in plain words; `None` where none are needed.
    pub credentials: Option<String>,
}

/// Settings that bound and place KMS calls.
#[derive(Clone, Debug)]
pub struct KmsSettings {
    /// Bound on one attempt. Default 2 s.
    pub attempt_timeout: Duration,
    /// Bound on a call with all its attempts and the search for credentials. Default 6 s.
    pub total_timeout: Duration,
    /// Where the local KMS keeps its keys; `None`: `$SECRETFS_LOCAL_KMS_DIR` or the default.
    pub local_dir: Option<std::path::PathBuf>,
    /// A shared credentials file in which alone AWS credentials are looked for; `None`: wherever
    /// AWS tools look.
    pub credentials_file: Option<std::path::PathBuf>,
    /// Allow AWS KMS to be called without encryption also where it is not on this machine.
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

    /// Unwraps what [`wrap`](Self::wrap) made. `uri` is always sent along: a blob made under
    /// another key is refused.
    ///
    /// # Errors
    /// Classified; see [`KmsErrorKind`].
    fn unwrap(
        &self,
        uri: &KeyUri,
        blob: &[u8],
        context: &EncryptionContext,
    ) -> Result<SecretKey, KmsError>;

    /// Tells which key `uri` names now, and its state.
    ///
    /// # Errors
    /// Classified; see [`KmsErrorKind`].
    fn describe(&self, uri: &KeyUri) -> Result<KeyDescription, KmsError>;
}

/// Why a KMS call failed. The classes are those to which the answer differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KmsErrorKind {
    /// The caller may not use the key (policy, grant, file permissions, expired token).
    Denied,
    /// The key is disabled.
    Disabled,
    /// The key is scheduled for deletion, or not usable in its state.
    PendingDeletion,
    /// There is no such key.
    NotFound,
    /// The blob was not made by this key under this context, or was altered.
    WrongKey,
    /// No credentials were found where the provider looks for them.
    NoCredentials,
    /// The service asks to be called less often.
    Throttled,
    /// No answer: refused, reset, timed out, name not found.
    Unreachable,
    /// The service answered, but with something that is no answer.
    BadAnswer,
    /// The local configuration does not allow the call at all (loose modes, unknown region).
    Configuration,
}

/// A failed KMS call: what was attempted, on which key, why it failed and what to do next, in
/// plain words. Holds no key material.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct KmsError {
    /// The class.
    pub kind: KmsErrorKind,
    /// One line for people.
    pub message: String,
}
