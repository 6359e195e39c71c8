//! The caller of a request.
//!
//! The kernel names user and group in every request, unless mounts of the file system may be
//! idmapped: then it names only the mapped owner of a new node. In that case `/proc` names the
//! caller. The calling thread waits meanwhile and cannot change its user, so this must not be used
//! for requests that nobody waits for. Threads of the kernel itself (an NFS server) act for others,
//! and count as nobody.

use std::fs;

use fuser::Request;

use super::super::Caller;

/// Stands for a user that neither the kernel names nor `/proc` shows.
const NOBODY: u32 = u32::MAX;

/// The source of the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// The kernel names the caller.
    ByKernel,
    /// `/proc` names the caller.
    ByProc,
    /// The caller is unknown, because `/proc` belongs to another PID namespace than the mount.
    Unknown,
}

impl Known {
    /// The source if mounts may be idmapped. `is_own`: this process has made the mount, itself or
    /// through fusermount3.
    pub(super) fn of_idmapped(is_own: bool) -> Self {
        let shown = fs::read_link("/proc/self");
        let own = std::process::id().to_string();
        match is_own && shown.is_ok_and(|shown| shown.as_os_str() == own.as_str()) {
            true => Self::ByProc,
            false => Self::Unknown,
        }
    }

    /// The calling thread, and its user.
    pub(super) fn caller(self, request: &Request) -> Caller {
        let pid = request.pid();
        let (uid, gid) = match self {
            Self::ByKernel => (request.uid(), request.gid()),
            Self::ByProc => credentials(pid).unwrap_or((NOBODY, NOBODY)),
            Self::Unknown => (NOBODY, NOBODY),
        };
        Caller { uid, gid, pid }
    }

    /// The same, exact only if it `matters`: the look-up may take longer than the answer.
    pub(super) fn caller_if(self, matters: bool, request: &Request) -> Caller {
        match matters {
            true => self.caller(request),
            false => Self::ByKernel.caller(request),
        }
    }
}

/// The file system user and group of a thread; `None` if it is not visible from here.
fn credentials(thread: u32) -> Option<(u32, u32)> {
    if thread == 0 {
        return None;
    }
    of_status(&fs::read(format!("/proc/{thread}/status")).ok()?)
}

/// Parses proc_pid_status(5): of the four ids (real, effective, saved, file system), the last.
fn of_status(text: &[u8]) -> Option<(u32, u32)> {
    let line = |name: &[u8]| {
        let mut lines = text.split(|byte| *byte == b'\n');
        let line = lines.find_map(|line| line.strip_prefix(name))?;
        Some(std::str::from_utf8(line).ok()?.split_ascii_whitespace())
    };
    if line(b"Kthread:")?.next()? != "0" {
        return None;
    }
    let last_of = |name: &[u8]| line(name)?.nth(3)?.parse().ok();
    Some((last_of(b"Uid:")?, last_of(b"Gid:")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_acts_as_its_file_system_user_and_group_and_one_of_the_kernel_as_nobody() {
        let text = |kernel: &str| {
            let ids = "Uid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t\n";
            format!("Name:\tUid: 7 7 7 7\nTgid:\t3\n{ids}Kthread:\t{kernel}\nVmPeak:\t1 kB\n")
        };
        assert_eq!(of_status(text("0").as_bytes()), Some((4, 8)));
        assert_eq!(of_status(text("1").as_bytes()), None);
        assert_eq!(of_status(b"Uid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\n"), None);
        let own = nix::unistd::gettid().as_raw() as u32;
        let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
        assert_eq!(credentials(own), Some((uid.as_raw(), gid.as_raw())));
        assert_eq!(credentials(0), None);
        assert_eq!(credentials(u32::MAX), None);
        assert_eq!(Known::of_idmapped(true), Known::ByProc);
        assert_eq!(Known::of_idmapped(false), Known::Unknown);
    }
}
