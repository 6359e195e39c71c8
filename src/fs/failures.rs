//! Failures of a mounted vault, at the point where they become an errno and lose their text.
//!
//! Each failure passes here once, whether it belongs to a request or to background work, so it is
//! logged once, and counted once if it is damage. The front door could do neither: an errno has no
//! text, and failures in the background never reach it. `Errno::from` only maps.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::vault::{Failure, VaultError};

use super::errno::Errno;
use super::log_limiter::LogLimiter;

/// Most failures with a line of their own in the log, which a user who may read a damaged secret
/// could otherwise fill.
const MOST: usize = 256;

/// The failures of one mount.
pub(crate) struct Failures {
    unauthentic: AtomicU64,
    logged: LogLimiter<String>,
}

impl Default for Failures {
    fn default() -> Self {
        Self {
            unauthentic: AtomicU64::new(0),
            logged: LogLimiter::new(MOST),
        }
    }
}

impl Failures {
    /// Number of reads that met damage. If there are any, `status` must not call the vault
    /// verified.
    pub(crate) fn unauthentic(&self) -> u64 {
        self.unauthentic.load(Ordering::Relaxed)
    }

    /// Notes a failure, and returns its errno.
    pub(super) fn errno(&self, error: &VaultError) -> Errno {
        self.note(error);
        Errno::from(error)
    }

    /// The same for a result.
    pub(super) fn to_errno<T>(&self, result: Result<T, VaultError>) -> Result<T, Errno> {
        result.map_err(|error| self.errno(&error))
    }

    /// Logs a failure to read, and counts it if it is damage.
    pub(crate) fn note(&self, error: &VaultError) {
        if error.failure() == Failure::Integrity {
            self.unauthentic.fetch_add(1, Ordering::Relaxed);
        }
        self.log(error);
    }

    /// Logs a failure if programs see only EIO. Failed authentication and failing media are always
    /// logged. The texts identify records by number.
    pub(crate) fn log(&self, error: &VaultError) {
        if Errno::from(error) != Errno(libc::EIO) {
            return;
        }
        let mut failure = error.to_string();
        let Some(due) = self.logged.note(failure.clone(), Instant::now()) else {
            return;
        };
        if due.is_of_rest {
            failure = format!(
                "more than {MOST} kinds of failures are met; `secretfs check` names what is damaged"
            );
        }
        match due.left_out {
            0 => tracing::error!("{failure}"),
            count => tracing::error!("{failure}; {count} times more since it was logged last"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_counted_where_it_is_noted_and_nowhere_else() {
        let failures = Failures::default();
        let damage = VaultError::Damaged("node 7 does not authenticate".into());
        assert_eq!(Errno::from(&damage), Errno(libc::EIO));
        failures.log(&damage);
        assert_eq!(failures.unauthentic(), 0);
        assert_eq!(failures.errno(&damage), Errno(libc::EIO));
        assert_eq!(failures.to_errno::<()>(Err(damage)), Err(Errno(libc::EIO)));
        assert_eq!(failures.errno(&VaultError::NotFound), Errno(libc::ENOENT));
        assert_eq!(failures.unauthentic(), 2);
        // Another mount has its own count.
        assert_eq!(Failures::default().unauthentic(), 0);
    }
}
