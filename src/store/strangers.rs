//! Locks of strangers: any user who can open a file or a directory for reading can lock it as a
//! whole (flock(2)), without access to the vault.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;

use nix::sys::stat::{major, minor};

/// Whether every process that has `directory` locked belongs to a user who may not write to it, so
/// that none of them has the vault open. False if that is unknown, as for processes of another
/// container.
pub(super) fn lock(directory: &File) -> bool {
    let Ok(found) = directory.metadata() else {
        return false;
    };
    let own = nix::unistd::geteuid().as_raw();
    let is_stranger =
        |pid: u32| user_of(pid).is_some_and(|uid| uid != 0 && uid != own && uid != found.uid());
    // Group and others may have write permission, too.
    let others_write = found.mode() & 0o022 != 0;
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    let holders = holders(&locks, found.dev(), found.ino());
    !others_write && !holders.is_empty() && holders.into_iter().all(is_stranger)
}

/// The processes that hold a lock on a file, from proc_locks(5); 0 for one of another PID
/// namespace.
fn holders(locks: &str, device: u64, inode: u64) -> Vec<u32> {
    let file = format!("{:02x}:{:02x}:{inode}", major(device), minor(device));
    let of_line = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        match fields[..] {
            // A process that waits has an arrow before the kind.
            [_, "FLOCK", _, _, pid, of, ..] if of == file => Some(pid.parse().unwrap_or(0)),
            _ => None,
        }
    };
    locks.lines().filter_map(of_line).collect()
}

/// The effective user of a process. The owner of its files in /proc is another: root owns those of
/// a process that cannot be dumped.
fn user_of(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holders_are_those_of_the_file_who_do_not_wait() {
        let locks = "1: POSIX  ADVISORY  WRITE 5 fe:00:77 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 12 fe:00:77 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 13 fe:00:77 0 EOF\n\
                     3: FLOCK  ADVISORY  READ 14 fe:00:78 0 EOF\n\
                     4: FLOCK  ADVISORY  READ -1 fe:00:77 0 EOF\n";
        let device = nix::sys::stat::makedev(0xfe, 0);
        assert_eq!(holders(locks, device, 77), [12, 0]);
        assert!(holders(locks, device, 79).is_empty());
    }

    #[test]
    fn a_process_has_a_user() {
        let own = nix::unistd::geteuid().as_raw();
        assert_eq!(user_of(std::process::id()), Some(own));
        assert_eq!(user_of(0), None);
    }
}
