//! A file system while it is mounted, its daemon, and its end.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::Failure;
use crate::kind::Kind;

/// A file system while it is mounted. Unmounts when dropped.
#[derive(Debug)]
pub struct Mounted {
    pub kind: Kind,
    pub point: PathBuf,
    /// Its daemon.
    pub pids: Vec<Pid>,
}

impl Mounted {
    /// Waits until it does nothing any more that it began at the mount.
    pub fn settle(&self) -> Result<(), Failure> {
        if !matches!(self.kind, Kind::Secretfs | Kind::Before) {
            return Ok(());
        }
        loop {
            let status = fs::read(self.point.join(".secretfs/status"))?;
            let status: serde_json::Value =
                serde_json::from_slice(&status).map_err(|e| Failure(e.to_string()))?;
            match status["integrity"].as_str() {
                Some("counting") => std::thread::sleep(Duration::from_millis(10)),
                Some("verified") => return Ok(()),
                other => return Err(Failure(format!("secretfs: integrity is {other:?}"))),
            }
        }
    }

    /// How many threads of fuser serve it.
    pub fn servers(&self) -> usize {
        let tasks = self.pids.iter().map(|pid| format!("/proc/{pid}/task"));
        let tasks = tasks.filter_map(|path| fs::read_dir(path).ok()).flatten();
        tasks
            .flatten()
            .filter_map(|task| fs::read_to_string(task.path().join("comm")).ok())
            .filter_map(|name| name.strip_prefix("fuser-")?.trim_end().parse::<u32>().ok())
            .count()
    }

    /// Resident memory of its processes, in megabytes (10⁶ bytes).
    pub fn resident(&self) -> Result<f64, Failure> {
        let mut kib = 0.0;
        for pid in &self.pids {
            let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
            let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
            let number = line.and_then(|l| l.split_whitespace().next()?.parse::<f64>().ok());
            kib += number.ok_or_else(|| Failure(format!("no VmRSS of process {pid}")))?;
        }
        Ok(kib * 1024.0 / 1e6)
    }

    /// Unmounts and waits for the end of the daemon.
    pub fn unmount(self) -> Result<(), Failure> {
        let deadline = Instant::now() + Duration::from_secs(60);
        while let Err(e) = umount2(&self.point, MntFlags::empty()) {
            if Instant::now() > deadline {
                let name = self.kind.name();
                return Err(Failure(format!("{name} cannot be unmounted: {e}")));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        while self.pids.iter().any(|pid| is_running(*pid)) {
            if Instant::now() > deadline {
                let name = self.kind.name();
                return Err(Failure(format!("{name} did not end after its unmount")));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if is_mounted(&self.point) {
            let _ = umount2(&self.point, MntFlags::MNT_DETACH);
        }
        for pid in self.pids.iter().filter(|pid| is_running(**pid)) {
            let _ = kill(*pid, Signal::SIGKILL);
            is_running(*pid);
        }
    }
}

/// Whether a process still runs. Reaps it if it is ours: as the first process of a namespace, we
/// are the parent of every daemon.
fn is_running(pid: Pid) -> bool {
    let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

pub fn is_mounted(point: &Path) -> bool {
    let mounts = fs::read("/proc/self/mountinfo").unwrap_or_default();
    let point = point.as_os_str();
    mounts
        .split(|b| *b == b'\n')
        .any(|line| line.split(|b| *b == b' ').nth(4).map(OsStr::from_bytes) == Some(point))
}

pub fn processes_that_name(point: &Path) -> Vec<Pid> {
    let me = std::process::id();
    let point = point.as_os_str().as_bytes();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        *pid != me && line.split(|b| *b == 0).any(|argument| argument == point)
    })
    .filter_map(|pid| Some(Pid::from_raw(i32::try_from(pid).ok()?)))
    .filter(|pid| is_running(*pid))
    .collect()
}
