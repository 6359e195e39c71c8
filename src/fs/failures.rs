//! Failures of a mounted vault, where they become an errno and lose their words.
//!
//! Each passes here once, whether a program waits for its answer or it comes from work that nobody waits
//! for: so it is logged once, and counted once if what was read is not what was stored. The front door could
//! do neither: an errno has no words, and what fails in the background never comes to it. `Errno::from` only
//! maps.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::vault::{Failure, VaultError};

use super::errno::Errno;
use super::log_limiter::LogLimiter;

/// Most failures that are told apart in the log: whoever may read a damaged secret could fill it.
const MOST: usize = 256;

/// See the module. Every mount has its own.
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

    /// The errno of a failure, which is noted.
    pub(super) fn errno(&self, error: &VaultError) -> Errno {
        self.note(error);
        Errno::from(error)
    }

    /// The same for a result.
    pub(super) fn to_errno<T>(&self, result: Result<T, VaultError>) -> Result<T, Errno> {
        result.map_err(|error| self.errno(&error))
    }

    /// Logs a failure to read, and counts it if what was read is not what was stored.
    pub(crate) fn note(&self, error: &VaultError) {
        if error.failure() == Failure::Integrity {
            self.unauthentic.fetch_add(1, Ordering::Relaxed);
        }
        self.log(error);
    }

    /// Logs a failure, if programs are told no more than EIO. Failed authentication and failing
    /// media are always logged. The texts identify records by number.
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
        let damage = VaultError::Integrity("node 7 does not authenticate".into());
        assert_eq!(Errno::from(&damage), Errno(libc::EIO));
        failures.log(&damage);
        assert_eq!(failures.unauthentic(), 0);
        assert_eq!(failures.errno(&damage), Errno(libc::EIO));
        assert_eq!(failures.to_errno::<()>(Err(damage)), Err(Errno(libc::EIO)));
        assert_eq!(failures.errno(&VaultError::NotFound), Errno(libc::ENOENT));
        assert_eq!(failures.unauthentic(), 2);
        // Of another mount nothing is known.
        assert_eq!(Failures::default().unauthentic(), 0);
    }
}
