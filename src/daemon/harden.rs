//! Makes the process a bad place to read secrets from: no core files, not dumpable, no new
//! privileges, memory locked where that cannot kill the process. Runs after the last fork (a mount
//! helper must keep its privileges) and before the first key. Must never claim more than holds.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};
use serde::Serialize;

use crate::error::{Class, Error};
use crate::os::{nice, sys};

/// Which memory is kept out of swap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Locked {
    /// All of the process.
    All,
    /// Keys and buffers that live in an arena of at most RLIMIT_MEMLOCK bytes.
    Arena,
    /// Nothing.
    None,
}

impl std::fmt::Display for Locked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::All => "all",
            Self::Arena => "arena",
            Self::None => "none",
        })
    }
}

/// What protects the memory of this process, for `status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Protection {
    /// Which memory is kept out of swap.
    pub locked: Locked,
    /// How many bytes this process may lock; `None`: without limit.
    pub lock_limit: Option<u64>,
    /// No core file is written.
    pub core_dumps_off: bool,
    /// Other processes of the same user cannot attach or read the memory.
    pub not_dumpable: bool,
    /// No program that is started from here gains privileges.
    pub no_new_privileges: bool,
}

/// Bit 14 of the capability sets, from linux/capability.h.
const CAP_IPC_LOCK: u32 = 14;
/// Bit 21, likewise.
const CAP_SYS_ADMIN: u32 = 21;

/// Hardens the process.
///
/// # Errors
/// When a step fails that always works on Linux, or when `require_mlock` and memory cannot be
/// locked.
pub(crate) fn harden(require_mlock: bool) -> Result<Protection, Error> {
    let fail = |what: &str, e: nix::Error| Error::new(Class::System, format!("cannot {what}: {e}"));
    umask(Mode::from_bits_truncate(0o077));
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(|e| fail("switch core files off", e))?;
    nix::sys::prctl::set_dumpable(false).map_err(|e| fail("make the process undumpable", e))?;
    nix::sys::prctl::set_no_new_privs().map_err(|e| fail("give up new privileges", e))?;
    // Who rotates keys steps back, but not while others wait for it.
    nice::permit_return();
    let (locked, lock_limit) = lock_memory()?;
    if require_mlock && locked != Locked::All {
        return Err(Error::new(
            Class::Failed,
            format!(
                "require-mlock is set, but memory cannot be locked (CAP_IPC_LOCK is missing and RLIMIT_MEMLOCK is {} bytes); give the daemon CAP_IPC_LOCK or LimitMEMLOCK=infinity, or leave require-mlock out",
                lock_limit.unwrap_or(0)
            ),
        ));
    }
    Ok(Protection {
        locked,
        lock_limit,
        core_dumps_off: true,
        not_dumpable: true,
        no_new_privileges: true,
    })
}

/// Locks everything if no limit applies. Under a limit, the first large buffer would fail to be
/// mapped and abort the process: there the arena for keys is all that can be locked.
fn lock_memory() -> Result<(Locked, Option<u64>), Error> {
    let (soft, _hard) = getrlimit(Resource::RLIMIT_MEMLOCK)
        .map_err(|e| Error::new(Class::System, format!("cannot read RLIMIT_MEMLOCK: {e}")))?;
    if soft == nix::libc::RLIM_INFINITY {
        let locked = if sys::lock_all_memory().is_ok() {
            Locked::All
        } else {
            Locked::Arena
        };
        return Ok((locked, None));
    }
    // The capability of a user namespace looks the same and does not lift the limit, so it is
    // tried out.
    if has_capability(CAP_IPC_LOCK) && sys::lock_all_memory().is_ok() {
        if sys::can_map(soft.saturating_add(1 << 20)) {
            return Ok((Locked::All, None));
        }
        sys::unlock_all_memory();
    }
    let locked = if soft == 0 {
        Locked::None
    } else {
        Locked::Arena
    };
    Ok((locked, Some(soft)))
}

/// Whether this process may mount by itself.
pub(crate) fn may_mount() -> bool {
    has_capability(CAP_SYS_ADMIN)
}

/// Whether a capability is in the effective set.
fn has_capability(bit: u32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    match status.lines().find_map(|line| line.strip_prefix("CapEff:")) {
        Some(set) => u64::from_str_radix(set.trim(), 16).is_ok_and(|set| set >> bit & 1 == 1),
        // Without /proc the uid is the best guess left.
        None => nix::unistd::geteuid().is_root(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_from_the_effective_set() {
        assert_eq!(
            has_capability(CAP_SYS_ADMIN),
            nix::unistd::geteuid().is_root()
        );
        assert!(!has_capability(63));
    }
}
