//! A panic is a fault of ours. It is reported by its place in the source and never by its payload,
//! which may hold anything.

use std::sync::{Mutex, PoisonError};

use crate::error::{Class, Error};

/// The place of the last panic. A lock without a rank: the hook takes it whatever the thread that panics
/// holds.
static LAST: Mutex<Option<String>> = Mutex::new(None);

/// Replaces the hook that prints payloads.
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

/// Runs `work`; a panic in it becomes an error that names its place.
///
/// # Errors
/// Those of `work`, and a panic.
pub fn caught<T>(work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    // What a panic leaves half done is dropped with the process, which ends on this error.
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or_else(|_| {
        let place = LAST.lock().unwrap_or_else(PoisonError::into_inner).take();
        let place = place.unwrap_or_else(|| "an unknown place".to_owned());
        Err(Error::new(
            Class::Internal,
            format!("internal error at {place}; this is a fault in secretfs, please report it"),
        ))
    })
}
