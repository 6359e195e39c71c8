//! Which process a thread belongs to.
#![allow(unsafe_code)]

/// The thread group of thread `tid`; `None` when it cannot be seen from here.
pub(super) fn thread_group(tid: u32) -> Option<u32> {
    if tid == 0 {
        return None;
    }
    // Most ask from their first thread, and /proc takes as long as the rest of an open.
    if leads(tid) {
        return Some(tid);
    }
    let status = std::fs::read(format!("/proc/{tid}/status")).ok()?;
    let line = status
        .split(|b| *b == b'\n')
        .find_map(|line| line.strip_prefix(b"Tgid:"))?;
    std::str::from_utf8(line).ok()?.trim().parse().ok()
}

/// Whether thread `tid` is the first of its process.
fn leads(tid: u32) -> bool {
    let Ok(tid) = libc::pid_t::try_from(tid) else {
        return false;
    };
    // SAFETY: signal 0 is never sent, only looked up; no memory is involved.
    let found = unsafe { libc::syscall(libc::SYS_tgkill, tid, tid, 0) };
    // Another user's thread is found first and refused then.
    found == 0 || nix::errno::Errno::last() == nix::errno::Errno::EPERM
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
            assert!(!leads(own()));
            assert_eq!(thread_group(own()), Some(process));
        });
        other.join().unwrap();
        assert!(leads(process));
        assert_eq!(thread_group(process), Some(process));
        assert_eq!(thread_group(0), None);
        assert_eq!(thread_group(u32::MAX), None);
    }
}
