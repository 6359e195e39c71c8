//! Facts about processes from the kernel, and the process that a thread belongs to.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::fs::File;
use std::io::Read;

/// This many recent thread groups are tried first.
const RECENT: usize = 4;
/// The first lines of `/proc/TID/status`, up to the group's, are shorter than this many bytes.
const BEGINNING: usize = 512;

thread_local! {
    static GROUPS: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
}

/// The thread group of thread `tid`; `None` if the thread is not visible from here.
pub(crate) fn thread_group(tid: u32) -> Option<u32> {
    if tid == 0 {
        return None;
    }
    // Most requests come from a process's first thread, or from the same process as the last
    // request. Reading /proc takes as long as the rest of an open.
    if is_in(tid, tid) {
        return Some(tid);
    }
    GROUPS.with_borrow_mut(|groups| {
        if let Some(at) = groups.iter().position(|group| is_in(*group, tid)) {
            groups[..=at].rotate_right(1);
            return Some(groups[0]);
        }
        let group = read_group(tid)?;
        groups.truncate(RECENT - 1);
        groups.insert(0, group);
        Some(group)
    })
}

/// Asks the kernel whether thread `tid` belongs to `group`.
fn is_in(group: u32, tid: u32) -> bool {
    let (Ok(group), Ok(tid)) = (libc::pid_t::try_from(group), libc::pid_t::try_from(tid)) else {
        return false;
    };
    // SAFETY: signal 0 only checks that the thread exists; no memory is involved.
    let found = unsafe { libc::syscall(libc::SYS_tgkill, group, tid, 0) };
    // For a thread of another user, the kernel finds the thread before it refuses.
    found == 0 || nix::errno::Errno::last() == nix::errno::Errno::EPERM
}

fn read_group(tid: u32) -> Option<u32> {
    let mut beginning = [0; BEGINNING];
    // One read(2) fills the buffer, as far as there are bytes.
    let length = File::open(format!("/proc/{tid}/status"))
        .and_then(|mut status| status.read(&mut beginning))
        .ok()?;
    let line = beginning[..length]
        .split(|b| *b == b'\n')
        .find_map(|line| line.strip_prefix(b"Tgid:"))?;
    std::str::from_utf8(line).ok()?.trim().parse().ok()
}

/// All processes in this PID namespace, sorted by number.
pub(crate) fn all() -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut ids: Vec<u32> = entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    ids.sort_unstable();
    ids
}

/// The start time of a process, in clock ticks since boot (field 22 of `/proc/PID/stat`); `None` if
/// it has ended. Number and start time together identify a process, because no later process starts
/// in the past.
pub fn started(process: &str) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name precedes the other fields in brackets, and may contain any character.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    let state = fields.next()?;
    // The first thread may end before the others, which still hold the process's resources.
    let is_over = matches!(state, "Z" | "X") && threads(process) <= 1;
    // The first field here is field 3.
    (!is_over).then(|| fields.nth(18)?.parse().ok())?
}

fn threads(process: &str) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task"));
    tasks.into_iter().flatten().flatten().count()
}

/// The process's number in the innermost PID namespace that it belongs to.
pub(crate) fn id_within(process: u64) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let mut lines = status.lines();
    let ids = lines.find_map(|line| line.strip_prefix("NSpid:"))?;
    ids.split_ascii_whitespace().next_back()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_belongs_to_its_process() {
        let own = || nix::unistd::gettid().as_raw() as u32;
        let process = std::process::id();
        let other = std::thread::spawn(move || {
            assert_ne!(own(), process);
            assert!(!is_in(own(), own()));
            assert_eq!(thread_group(own()), Some(process));
            assert_eq!(GROUPS.take(), [process]);
            // The process is found among the recent ones, and is tried first the next time.
            GROUPS.set(vec![1, process]);
            assert_eq!(thread_group(own()), Some(process));
            assert_eq!(GROUPS.take(), [process, 1]);
        });
        other.join().unwrap();
        assert!(is_in(process, process));
        assert_eq!(thread_group(process), Some(process));
        assert_eq!(thread_group(0), None);
        assert_eq!(thread_group(u32::MAX), None);
    }

    #[test]
    fn a_process_is_told_from_one_that_was_started_before_and_one_that_has_ended() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn();
        let child = child.as_mut().expect("sleep");
        let id = child.id().to_string();
        let (own, other) = (started("self"), started(&id));
        assert!(own.is_some() && own <= other, "{own:?} {other:?}");
        child.kill().expect("killed");
        child.wait().expect("reaped");
        assert_eq!(started(&id), None);
    }
}
