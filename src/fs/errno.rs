//! What programs are told: one exhaustive table from failures to errno.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::crypto::MemoryError;
use crate::keyring::KeyringError;
use crate::kms::KmsErrorKind;
use crate::store::StoreErrorKind;
use crate::vault::{Failure, VaultError};

/// How often something read was not what was stored: `status` must not call it verified then.
pub(super) static UNAUTHENTIC: AtomicU64 = AtomicU64::new(0);

/// An error number as in errno(3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// Its name, `EBUSY` for one.
    pub fn name(self) -> String {
        format!("{:?}", nix::errno::Errno::from_raw(self.0))
    }
}

impl From<MemoryError> for Errno {
    fn from(_: MemoryError) -> Self {
        Errno(libc::ENOMEM)
    }
}

impl From<&VaultError> for Errno {
    fn from(error: &VaultError) -> Self {
        Errno(match error {
            VaultError::Store(error) => match error.kind {
                StoreErrorKind::Full => libc::ENOSPC,
                StoreErrorKind::ReadOnly => libc::EROFS,
                StoreErrorKind::Busy => libc::EBUSY,
                StoreErrorKind::NotAVault
                | StoreErrorKind::Exists
                | StoreErrorKind::Corrupt
                | StoreErrorKind::Denied
                | StoreErrorKind::Moved
                | StoreErrorKind::UnsafeFilesystem
                | StoreErrorKind::Occupied
                | StoreErrorKind::Io => libc::EIO,
            },
            VaultError::Keyring(error) => match error {
                KeyringError::Kms(error) => match error.kind {
                    KmsErrorKind::Denied => libc::EACCES,
                    KmsErrorKind::Disabled
                    | KmsErrorKind::PendingDeletion
                    | KmsErrorKind::NotFound => libc::EKEYREVOKED,
                    KmsErrorKind::Unreachable | KmsErrorKind::Throttled => libc::ETIMEDOUT,
                    KmsErrorKind::WrongKey | KmsErrorKind::NoCredentials => libc::ENOKEY,
                    KmsErrorKind::BadAnswer | KmsErrorKind::Configuration => libc::EIO,
                },
                KeyringError::NotPinned(_) => libc::ENOKEY,
                KeyringError::OutOfStep => libc::EBUSY,
                KeyringError::Memory(_) => libc::ENOMEM,
                KeyringError::Integrity(_)
                | KeyringError::Newer { .. }
                | KeyringError::UnknownGeneration(..)
                | KeyringError::Random(_)
                | KeyringError::Seal(_) => libc::EIO,
            },
            VaultError::Integrity(_)
            | VaultError::Rollback(_)
            | VaultError::Anchor(_)
            | VaultError::Closed
            | VaultError::Unpublished
            | VaultError::Random(_) => libc::EIO,
            VaultError::Busy(_) => libc::EBUSY,
            VaultError::Memory(_) => libc::ENOMEM,
            VaultError::NotFound => libc::ENOENT,
            VaultError::Exists => libc::EEXIST,
            VaultError::NotADirectory => libc::ENOTDIR,
            VaultError::IsADirectory => libc::EISDIR,
            VaultError::NotEmpty => libc::ENOTEMPTY,
            VaultError::NameTooLong => libc::ENAMETOOLONG,
            VaultError::TooManyLinks => libc::EMLINK,
            VaultError::Invalid | VaultError::Setting(_) => libc::EINVAL,
            VaultError::NoAttribute => libc::ENODATA,
            VaultError::AttributesFull => libc::ENOSPC,
            VaultError::ReadOnly => libc::EROFS,
            VaultError::NotPermitted => libc::EPERM,
            VaultError::OutOfNodes => libc::ENOSPC,
        })
    }
}

impl From<VaultError> for Errno {
    fn from(error: VaultError) -> Self {
        let errno = Errno::from(&error);
        if error.failure() == Failure::Integrity {
            UNAUTHENTIC.fetch_add(1, Ordering::Relaxed);
        }
        // Failed authentication and failing media are never silent. The texts name records by
        // number.
        if errno.0 == libc::EIO {
            log(error.to_string());
        }
        errno
    }
}

/// One failure is logged once in this time, however often it is met: whoever may read a damaged secret
/// could fill the log.
const EVERY: Duration = Duration::from_secs(60);
/// Most failures that are told apart.
const MOST: usize = 256;

/// When a failure was logged last, and how often it was met since.
static LOGGED: Mutex<Option<HashMap<String, (Instant, u64)>>> = Mutex::new(None);

fn log(mut failure: String) {
    let now = Instant::now();
    let mut logged = LOGGED.lock().unwrap_or_else(PoisonError::into_inner);
    let known = logged.get_or_insert_default();
    let is_due = |at: &Instant| now.saturating_duration_since(*at) >= EVERY;
    if known.len() >= MOST && !known.contains_key(&failure) {
        known.retain(|_, (at, _)| !is_due(at));
    }
    if known.len() >= MOST && !known.contains_key(&failure) {
        failure = format!(
            "more than {MOST} kinds of failures are met; `secretfs check` names what is damaged"
        );
    }
    let line = match known.get_mut(&failure) {
        Some((at, left_out)) if !is_due(at) => {
            *left_out += 1;
            return;
        }
        Some((at, left_out)) => {
            *at = now;
            match std::mem::take(left_out) {
                0 => failure,
                count => format!("{failure}; {count} times more since it was logged last"),
            }
        }
        None => {
            known.insert(failure.clone(), (now, 0));
            failure
        }
    };
    drop(logged);
    tracing::error!("{line}");
}

/// Turns a vault's result into a program's.
pub(super) fn to_errno<T>(result: Result<T, VaultError>) -> Result<T, Errno> {
    Ok(result?)
}
