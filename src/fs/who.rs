//! Who asks.
//!
//! The kernel names user and group with every request, unless mounts of the file system may be
//! idmapped: then it names the owner of what is to be made, as mapped, and nobody otherwise. Who asks
//! is then asked of `/proc`: the thread waits for the answer meanwhile, and cannot become another.

use std::fs::File;
use std::io::Read;

use fuser::Request;

use super::Caller;

/// What the kernel says where it names nobody, and what is said of whom `/proc` does not show.
const NOBODY: u32 = u32::MAX;
/// `/proc/TID/status` has its users and groups among its first lines.
const BEGINNING: usize = 1024;

/// Where it is known from who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// The kernel says it.
    FromKernel,
    /// It does not.
    FromProc,
}

impl Known {
    /// Who waits for the answer to a request.
    pub(super) fn caller(self, request: &Request) -> Caller {
        let pid = request.pid();
        let (uid, gid) = match self {
            Self::FromKernel => (request.uid(), request.gid()),
            Self::FromProc => credentials(pid).unwrap_or((NOBODY, NOBODY)),
        };
        Caller { uid, gid, pid }
    }
}

/// The file system user and group of a thread; `None` when it cannot be seen from here.
fn credentials(thread: u32) -> Option<(u32, u32)> {
    if thread == 0 {
        return None;
    }
    let mut beginning = [0; BEGINNING];
    let mut length = 0;
    let mut status = File::open(format!("/proc/{thread}/status")).ok()?;
    while length < BEGINNING {
        match status.read(&mut beginning[length..]).ok()? {
            0 => break,
            more => length += more,
        }
    }
    of_status(&beginning[..length])
}

/// The last of the four that proc_pid_status(5) shows of each: real, effective, saved, file system.
fn of_status(text: &[u8]) -> Option<(u32, u32)> {
    let last_of = |name: &[u8]| {
        let mut lines = text.split(|byte| *byte == b'\n');
        let ids = lines.find_map(|line| line.strip_prefix(name))?;
        let ids = std::str::from_utf8(ids).ok()?;
        ids.split_ascii_whitespace().nth(3)?.parse().ok()
    };
    Some((last_of(b"Uid:")?, last_of(b"Gid:")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_acts_as_its_file_system_user_and_group() {
        let text =
            b"Name:\tUid: 7 7 7 7\nTgid:\t3\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t\n";
        assert_eq!(of_status(text), Some((4, 8)));
        assert_eq!(of_status(b"Uid:\t1\t2\t3\t4\nGid:\t5\t6\t7\n"), None);
        let own = nix::unistd::gettid().as_raw() as u32;
        let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
        assert_eq!(credentials(own), Some((uid.as_raw(), gid.as_raw())));
        assert_eq!(credentials(0), None);
        assert_eq!(credentials(u32::MAX), None);
    }
}
