//! Real control groups that limit memory, of either kind.

use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::process::{detach, kill, system};

/// A group of processes, which is gone at the end with all that run in it.
pub struct Group {
    path: PathBuf,
    is_second: bool,
    /// Where the hierarchy is mounted anew, if it can only be read elsewhere.
    own: Option<tempfile::TempDir>,
}

/// Where a kind of groups is mounted.
fn mounted(kind: &str, option: &str) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
    let mut fields = mounts.lines().map(|line| line.split(' '));
    fields.find_map(|mut fields| {
        let (point, name, options) = (fields.nth(1)?, fields.next()?, fields.next()?);
        let fits = name == kind && (option.is_empty() || options.split(',').any(|o| o == option));
        fits.then(|| PathBuf::from(point))
    })
}

impl Group {
    /// A group that may have `limit` bytes.
    pub fn limited(limit: u64) -> Self {
        let name = format!("secretfs-test-{}-{limit}", std::process::id());
        let (top, is_second) = match (mounted("cgroup", "memory"), mounted("cgroup2", "")) {
            (Some(first), _) => (first, false),
            (None, Some(second)) => (second, true),
            (None, None) => panic!("no control groups are mounted: this test needs them"),
        };
        let (path, own) = match fs::create_dir(top.join(&name)) {
            Ok(()) => (top.join(name), None),
            Err(error) if error.kind() == ErrorKind::ReadOnlyFilesystem => {
                let own = tempfile::tempdir().expect("a directory");
                let (kind, options) = match is_second {
                    true => ("cgroup2", "rw"),
                    false => ("cgroup", "rw,memory"),
                };
                let kind = ["-t", kind, "-o", options, "none"].map(OsStr::new);
                system("mount", &[&kind[..], &[own.path().as_os_str()]].concat());
                let path = own.path().join(name);
                fs::create_dir(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
                (path, Some(own))
            }
            Err(error) => panic!("{}: {error}", top.join(name).display()),
        };
        let group = Self {
            path,
            is_second,
            own,
        };
        if is_second {
            let control = group.path.with_file_name("cgroup.subtree_control");
            fs::write(&control, "+memory").unwrap_or_else(|e| {
                panic!(
                    "{}: {e}; this test needs a memory controller",
                    control.display()
                )
            });
        }
        fs::write(group.path.join(group.limit_file()), limit.to_string()).expect("a limit");
        group
    }

    fn limit_file(&self) -> &'static str {
        match self.is_second {
            true => "memory.max",
            false => "memory.limit_in_bytes",
        }
    }

    /// Where a process writes 0 that joins.
    pub fn door(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }

    pub fn members(&self) -> Vec<i32> {
        let text = fs::read_to_string(self.door()).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for _ in 0..1000 {
            for pid in self.members() {
                kill(pid, libc::SIGKILL);
            }
            // Until the last of them is gone.
            if fs::remove_dir(&self.path).is_ok() || !Path::new(&self.path).exists() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        if let Some(own) = &self.own {
            detach(own.path());
        }
    }
}
