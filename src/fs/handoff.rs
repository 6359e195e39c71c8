//! Whether another thread is going to answer a thread's present request. Its program sends no
//! further request before that, so polling for one is useless.
//!
//! The file system sets this, and the transport reads it, so no call goes up.

use std::cell::Cell;

thread_local! {
    static ELSEWHERE: Cell<bool> = const { Cell::new(false) };
}

/// Notes that another thread answers the calling thread's request.
pub(crate) fn answered_elsewhere() {
    ELSEWHERE.set(true);
}

/// Notes that the calling thread begins a request.
pub(super) fn begin() {
    ELSEWHERE.set(false);
}

/// Whether another thread answers the calling thread's request.
pub(super) fn is_answered_elsewhere() -> bool {
    ELSEWHERE.get()
}
