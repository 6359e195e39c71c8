//! A thread that steps back behind all others. Kept apart because the call is not a safe one.
#![allow(unsafe_code)]

/// As much as keeps the slowest hundredth of the reads below twice what it is otherwise. With more, a
/// thread that holds what others wait for would not get to its end on a busy machine.
const BY: libc::c_int = 10;

/// Has this thread, and those that it starts, get the processors when others do not need them, and
/// little of them otherwise.
pub(super) fn step_back() {
    // SAFETY: no memory is involved. On Linux, 0 is the calling thread and not its process. Where it
    // is refused, the thread runs as it did.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, BY) };
}
