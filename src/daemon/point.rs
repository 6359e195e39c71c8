//! The directory to mount on. It is opened once, and every question and the mount itself go through
//! that descriptor: its path may lead elsewhere later, if another user can rename a part of it.
//! This module also unmounts a mount at a path without being led elsewhere.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::mount::MntFlags;

use crate::error::{Class, Error};
use crate::os::asking::answer_within;
use crate::os::mountinfo::{self, Mount};
use crate::os::sys::{self, MountId};

use super::quote::quoted;
use super::{fusermount, harden};

/// Most searches for a mount that is in the tree: while another process exchanges directories above
/// it, its path leads elsewhere every other time.
pub(crate) const TRIES: usize = 100;

/// An open directory to mount on.
#[derive(Debug)]
pub(crate) struct Point {
    directory: OwnedFd,
    path: PathBuf,
}

impl Point {
    /// Opens the directory that `path` leads to now. It asks nothing of a mount on it, which may be
    /// dead.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let directory = open_path(&mountinfo::absolute(path)?)?;
        let path = path_of(&directory)?;
        Ok(Self { directory, path })
    }

    /// Its path when it was opened.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A path that always leads to it, even if its own path changes.
    pub(crate) fn as_path(&self) -> PathBuf {
        through(&self.directory)
    }

    /// The mount whose root it is, if any.
    pub(crate) fn mounted(&self) -> io::Result<Option<Mount>> {
        let id = sys::mount_id_of(&self.directory)?;
        let mounts = mountinfo::mounts()?.into_iter();
        let mut here = mounts.filter(|m| m.id == id.id && m.point == self.path);
        Ok(here.next())
    }

    /// Whether the mount on it has lost its daemon.
    pub(crate) fn is_dead(&self) -> bool {
        match self.directory.try_clone() {
            Ok(directory) => is_dead(move || fs::read_dir(through(&directory))),
            Err(_) => false,
        }
    }

    /// Removes the dead mount whose root this is; processes keep their open files.
    ///
    /// # Errors
    /// When that fails, or the mount is gone already.
    pub(crate) fn detach_dead(&self) -> Result<(), Error> {
        let shown = quoted(&self.path);
        let fail = |why: &dyn std::fmt::Display| {
            Error::new(
                Class::Failed,
                format!("cannot take the dead mount on {shown} away: {why}; `umount -l {shown}`"),
            )
        };
        let id = sys::mount_id_of(&self.directory).map_err(|e| fail(&e))?;
        let is_done = match harden::may_mount() {
            true => {
                // A mount below would go with it.
                if let Some(below) = mounted_below(id).map_err(|e| fail(&e))? {
                    let below = quoted(below);
                    return Err(Error::new(
                        Class::Busy,
                        format!(
                            "the dead mount on {shown} is not taken away, since {below} is mounted below it; `umount {below}` first"
                        ),
                    ));
                }
                unmount(&self.path, id, MntFlags::MNT_DETACH).map_err(|e| fail(&e))?
            }
            false => fusermount::unmount(&self.path, id, true)?,
        };
        match is_done {
            true => Ok(()),
            false => Err(fail(&"something else is mounted there by now")),
        }
    }

    /// The mount on it now, and its path; `None` when there is none.
    pub(crate) fn covered_by(&self) -> io::Result<Option<(MountId, PathBuf)>> {
        // Goes up from the directory, not down along its path. A mount point in this namespace
        // cannot be renamed.
        let parent = open_path(&self.as_path().join(".."))?;
        let path = path_of(&self.directory)?;
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        // By a descriptor: the id is kept, and has to be one mount's.
        let id = sys::mount_id_of(&open_path(&through(&parent).join(name))?)?;
        let below = sys::mount_id_of(&self.directory)?;
        Ok((id != below).then_some((id, path)))
    }

    /// Removes the mount that was just made on it.
    pub(crate) fn uncover(&self) {
        for _ in 0..TRIES {
            if self.try_to_uncover().is_some() {
                return;
            }
        }
    }

    fn try_to_uncover(&self) -> Option<()> {
        let (id, path) = self.covered_by().ok()??;
        let parent = open_path(&self.as_path().join("..")).ok()?;
        let name = through(&parent).join(path.file_name()?);
        let is_gone = unmount_at(&name, id, MntFlags::MNT_DETACH).ok()?;
        is_gone.then_some(())
    }
}

/// A mount below the mount `id`.
fn mounted_below(id: MountId) -> io::Result<Option<PathBuf>> {
    let mut mounts = mountinfo::mounts()?.into_iter();
    Ok(mounts.find(|m| m.parent == id.id).map(|m| m.point))
}

/// The path where the mount `id` is found: `path`, or another if a directory above was renamed.
pub(crate) fn find(id: MountId, path: &Path) -> Option<PathBuf> {
    let is_at = |path: &Path| sys::mount_id(path).is_ok_and(|found| found == id);
    if is_at(path) {
        return Some(path.to_owned());
    }
    in_tree(id).filter(|moved| is_at(moved))
}

/// The path of a mount in the tree, reachable or not: a mount hidden under another could only be
/// removed together with that one.
pub(crate) fn in_tree(id: MountId) -> Option<PathBuf> {
    let mounts = mountinfo::mounts().unwrap_or_default().into_iter();
    let mut same = mounts.filter(|m| m.id == id.id && m.device == id.device);
    same.next().map(|mount| mount.point)
}

/// Unmounts the mount `id` at `path`; `false` when another mount is there.
pub(crate) fn unmount(path: &Path, id: MountId, flags: MntFlags) -> nix::Result<bool> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Errno::EINVAL);
    };
    match open_path(parent) {
        Ok(parent) => unmount_at(&through(&parent).join(name), id, flags),
        // The parent is no directory now: another process has replaced it.
        Err(e) if leads_elsewhere(&e) => Ok(false),
        // Without a free descriptor, use its path.
        Err(e) if e.raw_os_error() == Some(libc::EMFILE) => unmount_at(path, id, flags),
        Err(e) => Err(Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO))),
    }
}

fn leads_elsewhere(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOTDIR | libc::ELOOP | libc::ENOENT)
    )
}

/// Unmounts a name in an open directory. No process can swap the directory between the comparison
/// and the unmount, because a mount point cannot be renamed.
fn unmount_at(path: &Path, id: MountId, flags: MntFlags) -> nix::Result<bool> {
    match sys::mount_id(path) {
        Ok(found) if found == id => {}
        _ => return Ok(false),
    }
    nix::mount::umount2(path, flags | MntFlags::UMOUNT_NOFOLLOW).map(|()| true)
}

/// Whether a mount's daemon is gone. It opens the root, because the kernel caches attributes; a
/// daemon that hangs would block the open, too.
fn is_dead(open: impl FnOnce() -> io::Result<fs::ReadDir> + Send + 'static) -> bool {
    match answer_within(Duration::from_secs(2), open) {
        Ok(Some(Err(e))) => e.raw_os_error() == Some(libc::ENOTCONN),
        Ok(Some(Ok(_)) | None) | Err(_) => false,
    }
}

/// Opens a directory with O_PATH; refuses a symlink as the last component.
fn open_path(path: &Path) -> io::Result<OwnedFd> {
    let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_DIRECTORY;
    let opened = fs::OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)?;
    Ok(opened.into())
}

fn through(directory: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()))
}

fn path_of(directory: &OwnedFd) -> io::Result<PathBuf> {
    // Callers must not mistake this for a missing directory.
    fs::read_link(through(directory))
        .map_err(|e| io::Error::other(format!("cannot look into /proc/self/fd ({e}); mount /proc")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_stays_the_one_that_was_opened() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().canonicalize().expect("a path");
        let (a, b) = (root.join("a"), root.join("b"));
        fs::create_dir(&a).expect("made");
        let point = Point::open(&a).expect("opened");
        assert_eq!(point.path(), a);
        fs::rename(&a, &b).expect("renamed");
        std::os::unix::fs::symlink("/", &a).expect("linked");
        fs::write(b.join("in"), "it").expect("written");
        assert!(point.as_path().join("in").exists());
        assert_eq!(point.covered_by().expect("asked"), None);
        assert_eq!(Point::open(&a).expect("followed").path(), Path::new("/"));
    }
}
