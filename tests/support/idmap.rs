//! Idmapped mounts, as container runtimes and `X-mount.idmap` make them: other mounts of a file system
//! that show its owners as others (mount_setattr(2)).

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::process::wait_for;

const PATIENCE: Duration = Duration::from_secs(60);

/// Goes when dropped.
pub struct Idmapped {
    point: PathBuf,
}

impl Idmapped {
    /// Mounts what is mounted on `of` once more, on `point`. A user or group whose number is `map.0`
    /// there has the number `map.1` here; others have none.
    pub fn new(of: &Path, point: &Path, map: &[(u32, u32)]) -> io::Result<Self> {
        let users = users(map);
        let tree = clone(of)?;
        let attributes = libc::mount_attr {
            attr_set: libc::MOUNT_ATTR_IDMAP,
            attr_clr: 0,
            propagation: 0,
            userns_fd: users.as_raw_fd() as u64,
        };
        // SAFETY: both descriptors are open, the path is a string, and the attributes are of the size
        // that is told.
        told(unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                tree.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_EMPTY_PATH,
                &raw const attributes,
                size_of_val(&attributes),
            )
        })?;
        let target = CString::new(point.as_os_str().as_bytes())?;
        // SAFETY: the descriptor is open, and both paths are strings.
        told(unsafe {
            libc::syscall(
                libc::SYS_move_mount,
                tree.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_FDCWD,
                target.as_ptr(),
                libc::MOVE_MOUNT_F_EMPTY_PATH,
            )
        })?;
        let point = point.to_owned();
        Ok(Self { point })
    }
}

impl Drop for Idmapped {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.point, nix::mount::MntFlags::MNT_DETACH);
    }
}

/// Another mount of the same, nowhere yet.
fn clone(of: &Path) -> io::Result<OwnedFd> {
    let of = CString::new(of.as_os_str().as_bytes())?;
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    // SAFETY: the path is a string.
    let tree =
        told(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, of.as_ptr(), flags) })?;
    // SAFETY: a new descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(tree as i32) })
}

fn told(result: libc::c_long) -> io::Result<libc::c_long> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}

/// A user namespace with these users and groups.
fn users(map: &[(u32, u32)]) -> OwnedFd {
    let mut inside = Command::new("unshare")
        .args(["--user", "sleep", "600"])
        .stdin(Stdio::null())
        .spawn()
        .expect("unshare runs");
    let of = |what: &str| PathBuf::from(format!("/proc/{}/{what}", inside.id()));
    let own = fs::read_link("/proc/self/ns/user").expect("a namespace");
    wait_for("a user namespace", PATIENCE, || {
        fs::read_link(of("ns/user")).is_ok_and(|its| its != own)
    });
    let lines: String = map
        .iter()
        .map(|(there, here)| format!("{there} {here} 1\n"))
        .collect();
    for file in ["uid_map", "gid_map"] {
        fs::write(of(file), &lines).expect("mapped");
    }
    let users = File::open(of("ns/user")).expect("a namespace").into();
    inside.kill().expect("killed");
    inside.wait().expect("ended");
    users
}
