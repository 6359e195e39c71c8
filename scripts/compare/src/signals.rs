//! Ends the run when it is asked to end. What it started ends with it.

use nix::sys::signal::{SigHandler, Signal, signal};

use crate::Failure;

extern "C" fn end(signal: libc::c_int) {
    // SAFETY: _exit is among the few that a signal handler may call.
    unsafe { libc::_exit(128 + signal) }
}

/// The first process of a namespace gets no signal for which it has no handler.
pub fn end_on_them() -> Result<(), Failure> {
    for ending in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler does nothing but end the process.
        unsafe { signal(ending, SigHandler::Handler(end)) }?;
    }
    Ok(())
}
