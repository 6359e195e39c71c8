//! Whether the request that a thread is at is going to be answered by another thread. Its program does not
//! come with the next one before, so there is no need to look for that.
//!
//! The file system notes it here, and the transport looks: nothing is called upwards.

use std::cell::Cell;

thread_local! {
    static ELSEWHERE: Cell<bool> = const { Cell::new(false) };
}

/// Notes that another thread answers what the calling thread was asked for.
pub(crate) fn answered_elsewhere() {
    ELSEWHERE.set(true);
}

/// The calling thread begins a request.
pub(super) fn begin() {
    ELSEWHERE.set(false);
}

/// Whether another thread answers the request that the calling thread was at.
pub(super) fn is_answered_elsewhere() -> bool {
    ELSEWHERE.get()
}
