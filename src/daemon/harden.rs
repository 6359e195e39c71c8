//! Protects the secrets in this process' memory: no core files, not dumpable, no new privileges,
//! memory locked where that cannot kill the process. It runs after the last fork (a mount helper
//! must keep its privileges) and before the first key. It must never claim a protection that does
//! not hold.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};
use serde::Serialize;

use crate::error::{Class, Error};
use crate::os::{nice, sys};

/// The memory that is kept out of swap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Locked {
    /// All memory of the process.
    All,
    /// Keys and buffers in an arena of at most RLIMIT_MEMLOCK bytes.
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

/// The protection of this process' memory, for `status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Protection {
    /// The memory that is kept out of swap.
    pub locked: Locked,
    /// Number of bytes that this process may lock; `None`: no limit.
    pub lock_limit: Option<u64>,
    /// Whether core files are off.
    pub core_dumps_off: bool,
    /// Whether other processes of the same user can neither attach nor read the memory.
    pub not_dumpable: bool,
    /// Whether programs started from here gain no privileges.
    pub no_new_privileges: bool,
}

/// Bit number in the capability sets, from linux/capability.h.
const CAP_IPC_LOCK: u32 = 14;
/// Bit number in the capability sets, from linux/capability.h.
const CAP_SYS_ADMIN: u32 = 21;

/// Hardens the process.
///
/// # Errors
/// When a step fails that always works on Linux, or when `require_mlock` is set and not all memory
/// can be locked.
pub(crate) fn harden(require_mlock: bool) -> Result<Protection, Error> {
    let fail = |what: &str, e: nix::Error| Error::new(Class::System, format!("cannot {what}: {e}"));
    umask(Mode::from_bits_truncate(0o077));
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(|e| fail("switch core files off", e))?;
    nix::sys::prctl::set_dumpable(false).map_err(|e| fail("make the process undumpable", e))?;
    nix::sys::prctl::set_no_new_privs().map_err(|e| fail("give up new privileges", e))?;
    // A rotating thread lowers its priority, but raises it again while others wait for it.
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

/// Locks all memory if no limit applies. Under a limit, mapping the first large buffer would fail
/// and abort the process, so only the arena for keys is locked.
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
    // A capability in a user namespace looks the same but does not lift the limit, so this tries it
    // out.
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

/// Whether this process may call mount(2) itself.
pub(crate) fn may_mount() -> bool {
    has_capability(CAP_SYS_ADMIN)
}

/// Whether a capability is in the effective set.
fn has_capability(bit: u32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    match status.lines().find_map(|line| line.strip_prefix("CapEff:")) {
        Some(set) => u64::from_str_radix(set.trim(), 16).is_ok_and(|set| set >> bit & 1 == 1),
        // Without /proc, the uid is the best guess.
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
