//! Which process a thread belongs to.

/// The thread group of thread `tid`; `None` when it cannot be seen from here.
pub(super) fn thread_group(tid: u32) -> Option<u32> {
    if tid == 0 {
        return None;
    }
    let status = std::fs::read(format!("/proc/{tid}/status")).ok()?;
    let line = status
        .split(|b| *b == b'\n')
        .find_map(|line| line.strip_prefix(b"Tgid:"))?;
    std::str::from_utf8(line).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_belongs_to_its_process() {
        let tid = std::thread::spawn(|| nix::unistd::gettid().as_raw() as u32);
        let own = nix::unistd::gettid().as_raw() as u32;
        assert_eq!(thread_group(own), Some(std::process::id()));
        drop(tid);
        assert_eq!(thread_group(0), None);
        assert_eq!(thread_group(u32::MAX), None);
    }
}
