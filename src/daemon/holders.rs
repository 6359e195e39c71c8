//! The holders that keep a file system alive once one of its mounts is gone: other mounts of it, in
//! this mount namespace and in others, and processes with open files on it. They are found in
//! /proc, without a request to the file system. The result also counts the processes that this user
//! may not inspect.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt::{self, Write as _};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::sys::statfs::FsType;

use crate::os::mountinfo::{self, Mount};
use crate::os::{process, sys};

use super::quote::quoted;

/// Most processes, and most paths, to name for one mount namespace.
const NAMED: usize = 3;

/// The holders that were found.
#[derive(Debug, Default)]
pub(crate) struct Holders {
    /// Mounts in this process' mount namespace.
    here: Vec<PathBuf>,
    /// Other mount namespaces (or roots) with mounts of it.
    elsewhere: Vec<Space>,
    /// Processes with open files or a working directory on it.
    open: Vec<Process>,
    /// Number of processes that this user may not inspect.
    unseen: usize,
}

/// A mount namespace as processes with one root directory see it.
#[derive(Debug)]
struct Space {
    processes: Vec<Process>,
    points: Vec<PathBuf>,
}

#[derive(Debug)]
struct Process {
    id: u32,
    name: String,
}

impl Holders {
    /// Finds the holders of the file system of `mount`.
    pub(crate) fn of(mount: &Mount) -> Self {
        let device = mount.device;
        let mounts = mountinfo::mounts().unwrap_or_default();
        let is_others = mounts
            .iter()
            .any(|m| m.device == device && !is_same(m, mount));
        let is_still_its = !is_others && is_connected(device);
        let mut found = Self {
            here: points_in(mounts, mount),
            ..Self::default()
        };
        // If our own view is unknown, its mounts are only reported twice.
        let own = view(Path::new("/proc/self")).ok();
        let mut spaces: HashMap<(OsString, OsString), Option<usize>> = HashMap::new();
        for id in process::all() {
            let proc = PathBuf::from(format!("/proc/{id}"));
            let view = match view(&proc) {
                Ok(view) => view,
                Err(e) => {
                    found.unseen += usize::from(e.kind() == io::ErrorKind::PermissionDenied);
                    continue;
                }
            };
            if is_still_its && has_open(&proc, device) {
                found.open.push(Process::of(id));
            }
            if Some(&view) == own.as_ref() {
                continue;
            }
            let space = *spaces.entry(view).or_insert_with(|| {
                let points = points_in(mountinfo::mounts_of(id).unwrap_or_default(), mount);
                (!points.is_empty()).then(|| {
                    found.elsewhere.push(Space {
                        processes: Vec::new(),
                        points,
                    });
                    found.elsewhere.len() - 1
                })
            });
            if let Some(space) = space.and_then(|at| found.elsewhere.get_mut(at)) {
                space.processes.push(Process::of(id));
            }
        }
        found
    }

    /// Whether any holder was found.
    pub(crate) fn is_anybody(&self) -> bool {
        !(self.here.is_empty() && self.elsewhere.is_empty() && self.open.is_empty())
    }

    /// Whether every process could be inspected.
    pub(crate) fn is_all_seen(&self) -> bool {
        self.unseen == 0
    }

    /// The remedy. It never names a command to run in their namespaces: their owner decides which
    /// program that would run.
    pub(crate) fn remedy(&self) -> String {
        let mut ways = Vec::new();
        if !self.open.is_empty() {
            ways.push("end what has files open".to_owned());
        }
        if !self.here.is_empty() {
            let commands = self.here.iter().take(NAMED);
            let commands: Vec<_> = commands.map(|p| format!("umount {}", quoted(p))).collect();
            ways.push(format!(
                "unmount it there, too (`{}`)",
                commands.join("`, `")
            ));
        }
        for space in self.elsewhere.iter().take(NAMED) {
            if let Some(process) = space.processes.first() {
                ways.push(format!(
                    "end process {}, or unmount it inside its namespace or container",
                    process.id
                ));
            }
        }
        match ways.is_empty() {
            true => "look at `secretfs status` on the vault".to_owned(),
            false => ways.join("; "),
        }
    }
}

/// The holders in words, without a full stop.
impl fmt::Display for Holders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if !self.here.is_empty() {
            parts.push(format!("it is still mounted on {}", listed(&self.here)));
        }
        for space in &self.elsewhere {
            parts.push(format!(
                "it is mounted on {} in the mount namespace of {}",
                listed(&space.points),
                named(&space.processes)
            ));
        }
        if !self.open.is_empty() {
            parts.push(format!("{} has files of it open", named(&self.open)));
        }
        if !self.is_anybody() {
            parts.push("nobody is seen who has it".to_owned());
        }
        if self.unseen > 0 {
            let (count, plural) = (self.unseen, if self.unseen == 1 { "" } else { "es" });
            let who_may = match nix::unistd::geteuid().is_root() {
                true => "",
                false => " (root may)",
            };
            parts.push(format!(
                "{count} process{plural} could not be looked at{who_may}"
            ));
        }
        f.write_str(&parts.join("; "))
    }
}

impl Process {
    fn of(id: u32) -> Self {
        let name = fs::read(format!("/proc/{id}/comm")).unwrap_or_default();
        Self {
            id,
            name: String::from_utf8_lossy(name.trim_ascii()).into_owned(),
        }
    }
}

fn named(processes: &[Process]) -> String {
    let mut text = "process ".to_owned();
    for (at, process) in processes.iter().take(NAMED).enumerate() {
        let comma = if at == 0 { "" } else { ", " };
        let _ = write!(text, "{comma}{} ({})", process.id, quoted(&process.name));
    }
    and_more(text, processes.len())
}

fn listed(points: &[PathBuf]) -> String {
    let shown: Vec<String> = points.iter().take(NAMED).map(quoted).collect();
    and_more(shown.join(", "), points.len())
}

fn and_more(text: String, count: usize) -> String {
    match count.checked_sub(NAMED) {
        Some(more @ 1..) => format!("{text} and {more} more"),
        _ => text,
    }
}

/// The view of a process: its mount namespace and its root directory decide which mounts it sees.
fn view(proc: &Path) -> io::Result<(OsString, OsString)> {
    let namespace = fs::read_link(proc.join("ns/mnt"))?;
    let root = fs::read_link(proc.join("root"))?;
    Ok((namespace.into(), root.into()))
}

fn points_in(mounts: Vec<Mount>, of: &Mount) -> Vec<PathBuf> {
    let same = mounts.into_iter().filter(|mount| is_same(mount, of));
    same.map(|mount| mount.point).collect()
}

/// Whether two mounts belong to one file system. The kernel may have reused the device number
/// alone.
fn is_same(a: &Mount, b: &Mount) -> bool {
    a.device == b.device && a.is_secretfs() && a.source == b.source
}

/// Whether the connection to the kernel with this device number still exists, as far as this
/// process can see.
fn is_connected(device: (u32, u32)) -> bool {
    let control = Path::new("/sys/fs/fuse/connections");
    let is_there = nix::sys::statfs::statfs(control)
        .is_ok_and(|found| found.filesystem_type() == FUSE_CONTROL);
    !is_there || control.join(device.1.to_string()).exists()
}

/// `FUSE_CTL_SUPER_MAGIC`.
const FUSE_CONTROL: FsType = FsType(0x6573_5543);

/// Whether a process has a file on the file system open or mapped, or has its working directory or
/// root on it.
fn has_open(proc: &Path, device: (u32, u32)) -> bool {
    let is_on_it = |path: &Path| sys::device_at(path).is_ok_and(|found| found == device);
    if is_on_it(&proc.join("cwd")) || is_on_it(&proc.join("root")) {
        return true;
    }
    let open = fs::read_dir(proc.join("fd"))
        .into_iter()
        .flatten()
        .flatten();
    if open.map(|entry| entry.path()).any(|path| is_on_it(&path)) {
        return true;
    }
    let wanted = format!("{:02x}:{:02x}", device.0, device.1);
    let maps = fs::read(proc.join("maps")).unwrap_or_default();
    maps.split(|byte| *byte == b'\n').any(|line| {
        let mut fields = line.split(|byte| *byte == b' ');
        fields.nth(3) == Some(wanted.as_bytes())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(id: u32) -> Process {
        Process {
            id,
            name: "cat".to_owned(),
        }
    }

    #[test]
    fn who_has_it_is_told_with_what_to_do() {
        let nobody = Holders::default();
        assert!(!nobody.is_anybody());
        assert_eq!(nobody.to_string(), "nobody is seen who has it");
        let found = Holders {
            here: vec!["/a".into()],
            elsewhere: vec![Space {
                processes: (1..6).map(process).collect(),
                points: vec!["/b".into()],
            }],
            open: vec![process(9)],
            unseen: 4,
        };
        assert_eq!(
            found.to_string().trim_end_matches(" (root may)"),
            "it is still mounted on /a; it is mounted on /b in the mount namespace of process 1 (cat), 2 (cat), 3 (cat) and 2 more; process 9 (cat) has files of it open; 4 processes could not be looked at"
        );
        assert_eq!(
            found.remedy(),
            "end what has files open; unmount it there, too (`umount /a`); end process 1, or unmount it inside its namespace or container"
        );
    }

    #[test]
    fn what_others_have_named_is_nothing_to_a_shell_or_a_terminal() {
        let found = Holders {
            here: vec!["/a;`id`".into()],
            elsewhere: vec![Space {
                processes: vec![Process {
                    id: 7,
                    name: "\u{1b}[2J$(id)".to_owned(),
                }],
                points: vec!["/b\n".into()],
            }],
            ..Holders::default()
        };
        assert_eq!(
            found.to_string(),
            "it is still mounted on '/a;`id`'; it is mounted on '/b\\n' in the mount namespace of process 7 ('\\u{1b}[2J$(id)')"
        );
        assert_eq!(
            found.remedy(),
            "unmount it there, too (`umount '/a;`id`'`); end process 7, or unmount it inside its namespace or container"
        );
    }

    #[test]
    fn another_file_system_that_has_its_device_number_by_now_is_not_it() {
        let mount = |point: &str, fs_type: &str, source: &str| Mount {
            id: 1,
            parent: 0,
            device: (0, 7),
            point: point.into(),
            read_only: false,
            fs_type: fs_type.into(),
            source: source.into(),
            user: Some(0),
        };
        let gone = mount("/a", mountinfo::FS_TYPE, "/v");
        let mounts = vec![
            mount("/b", mountinfo::FS_TYPE, "/v"),
            mount("/c", mountinfo::FS_TYPE, "/w"),
            mount("/d", "fuse.sshfs", "/v"),
            Mount {
                device: (0, 8),
                ..mount("/e", mountinfo::FS_TYPE, "/v")
            },
        ];
        assert_eq!(points_in(mounts, &gone), [PathBuf::from("/b")]);
    }

    #[test]
    fn an_open_file_and_a_working_directory_are_found() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().expect("a directory");
        let file = fs::File::create(dir.path().join("f")).expect("made");
        let device = file.metadata().expect("stat").dev();
        let device = (
            nix::sys::stat::major(device) as u32,
            nix::sys::stat::minor(device) as u32,
        );
        assert!(has_open(Path::new("/proc/self"), device));
        assert!(!has_open(Path::new("/proc/self"), (0xfff, 1)));
    }
}
