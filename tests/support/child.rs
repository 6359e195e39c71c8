//! What a program begins with that a command line cannot say.

use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::resource::{Resource, setrlimit};

use super::tree::sys;

/// May have `most` of `resource`, and no more.
pub fn limited(command: &mut Command, resource: Resource, most: u64) {
    // SAFETY: setrlimit may be called between fork and exec.
    unsafe { command.pre_exec(move || Ok(setrlimit(resource, most, most)?)) };
}

/// Is killed when the thread that starts it ends, so that a test that is killed leaves nothing.
pub fn not_outliving_us(command: &mut Command) {
    // SAFETY: prctl may be called between fork and exec.
    unsafe {
        command.pre_exec(|| sys(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL)).map(drop));
    }
}

/// Yama lets every process of the same user look into it, where there is Yama.
pub fn traceable(command: &mut Command) {
    // SAFETY: prctl may be called between fork and exec. Where there is no Yama, it fails.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY);
            Ok(())
        });
    }
}
