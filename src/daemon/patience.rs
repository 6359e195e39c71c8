//! Opening a vault that a daemon is about to release: umount(8) does not wait for the daemon, so
//! the next process does.

use std::time::{Duration, Instant};

use crate::vault::{Failure, VaultError};

/// The time that a just unmounted daemon has to release its vault.
const GRACE: Duration = Duration::from_secs(5);
/// The time between two attempts.
const AGAIN: Duration = Duration::from_millis(20);

/// Opens a vault, and retries for a while if another process holds it, unless `is_served` returns
/// that the holder keeps it.
///
/// # Errors
/// Those of `open`.
pub(crate) fn patiently<T>(
    mut open: impl FnMut() -> Result<T, VaultError>,
    is_served: impl Fn() -> bool,
) -> Result<T, VaultError> {
    let deadline = Instant::now() + GRACE;
    loop {
        match open() {
            Err(error)
                if error.failure() == Failure::Busy
                    && Instant::now() < deadline
                    && !is_served() => {}
            opened => return opened,
        }
        std::thread::sleep(AGAIN);
    }
}
