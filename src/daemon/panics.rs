//! Panics. A panic is a bug of this program. The report names its place in the source and never its
//! payload, which may hold anything.

use std::sync::{Mutex, PoisonError};

use crate::error::{Class, Error};

/// The place of the last panic. The lock has no rank, because the hook takes it whatever locks the
/// panicking thread holds.
static LAST: Mutex<Option<String>> = Mutex::new(None);

/// Replaces the default hook, which prints payloads.
pub fn install_hook() {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map_or_else(
            || "an unknown place".to_owned(),
            |at| format!("{}:{}", at.file(), at.line()),
        );
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("unnamed").to_owned();
        tracing::error!("internal error at {place} in thread {name}");
        *LAST.lock().unwrap_or_else(PoisonError::into_inner) = Some(place);
    }));
}

/// Runs `work`; turns a panic into an error that names its place.
///
/// # Errors
/// Those of `work`, and one for a panic.
pub fn caught<T>(work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    // The process ends on this error, and drops the state that a panic leaves half done.
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or_else(|_| {
        let place = LAST.lock().unwrap_or_else(PoisonError::into_inner).take();
        let place = place.unwrap_or_else(|| "an unknown place".to_owned());
        Err(Error::new(
            Class::Internal,
            format!("internal error at {place}; this is a fault in secretfs, please report it"),
        ))
    })
}
