//! Opening a vault that a daemon is just letting go of: `umount` does not wait for that, so whoever comes next
//! does.

use std::time::{Duration, Instant};

use crate::vault::{Failure, VaultError};

/// A daemon that has just been unmounted lets go of its vault within this.
const GRACE: Duration = Duration::from_secs(5);
/// It is tried again so often.
const AGAIN: Duration = Duration::from_millis(20);

/// Opens a vault, and tries again for a while if somebody holds it, unless `is_served` says that he goes on to.
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
