//! Mounts and unmounts: by mount(2) where that is allowed, otherwise through the helper. It must
//! never unmount another mount, so every unmount compares the mount ids first.

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags};
use nix::poll::{PollFd, PollFlags, PollTimeout};

use crate::error::{Class, Error};
use crate::fs::MAX_TRANSFER;
use crate::os::mountinfo;
use crate::os::sys::MountId;

use super::helper::Helper;
use super::mount_options::MountOptions;
use super::point::{self, Point, TRIES};

/// The process that mounts.
pub(crate) enum Mounter {
    /// This process, by mount(2).
    System,
    /// The helper, through fusermount3.
    Helper(Arc<Helper>),
}

/// A mount that this process made.
pub(crate) struct Mount {
    point: PathBuf,
    id: MountId,
    mounter: Mounter,
}

/// The outcome of an attempt to unmount.
#[derive(Debug)]
pub(crate) enum Unmounted {
    /// The mount is gone from the tree.
    Done,
    /// The mount is in use.
    Busy,
    /// Our mount is not found; any other mount there stays.
    NotOurs,
}

impl Mount {
    /// The device number of its file system: major, minor.
    pub(crate) fn device(&self) -> (u32, u32) {
        self.id.device
    }

    /// Mounts on `point` and returns the descriptor from which requests are read.
    ///
    /// # Errors
    /// When that fails, or when `point` was moved meanwhile. Then nothing is mounted.
    pub(crate) fn new(
        point: &Point,
        options: &MountOptions,
        mounter: Mounter,
    ) -> Result<(Self, OwnedFd), Error> {
        let device = match &mounter {
            Mounter::System => mount_by_system(point, options)?,
            Mounter::Helper(helper) => helper.mount(point.path())?,
        };
        match landed(point) {
            Ok(id) => Ok((
                Self {
                    point: point.path().to_owned(),
                    id,
                    mounter,
                },
                device,
            )),
            Err(e) => {
                match &mounter {
                    // The mount on it is certainly ours.
                    Mounter::System => point.uncover(),
                    Mounter::Helper(helper) => drop(helper.unmount(true)),
                }
                Err(e)
            }
        }
    }

    /// The path on which it was mounted.
    pub(crate) fn point(&self) -> &Path {
        &self.point
    }

    /// The id that distinguishes it from other mounts.
    pub(crate) fn id(&self) -> MountId {
        self.id
    }

    /// Whether this process mounted it with mount(2).
    pub(crate) fn is_by_system(&self) -> bool {
        matches!(self.mounter, Mounter::System)
    }

    /// Whether our mount can still be found.
    pub(crate) fn is_there(&self) -> bool {
        self.place().is_some()
    }

    /// The path where it is found: its own, or another if a directory above was renamed.
    fn place(&self) -> Option<PathBuf> {
        point::find(self.id, &self.point)
    }

    /// Unmounts, unless a file is open.
    pub(crate) fn unmount(&self) -> Result<Unmounted, Error> {
        self.end(MntFlags::empty())
    }

    /// Takes the mount out of the tree; open files stay open.
    pub(crate) fn detach(&self) -> Result<Unmounted, Error> {
        self.end(MntFlags::MNT_DETACH)
    }

    /// Detaches from the thread that handles signals, which must not wait. A helper, which may be
    /// busy, detaches by itself once this process is gone.
    pub(crate) fn detach_at_once(&self) {
        if matches!(self.mounter, Mounter::System) {
            let _ = self.detach();
        }
    }

    fn end(&self, flags: MntFlags) -> Result<Unmounted, Error> {
        for _ in 0..TRIES {
            match self.try_to_end(flags) {
                Ok(Unmounted::NotOurs) if point::in_tree(self.id).is_some() => {}
                ended => return ended,
            }
        }
        tracing::warn!(
            "something else is mounted over {}: unmount that first, then this one",
            self.point.display()
        );
        Ok(Unmounted::NotOurs)
    }

    fn try_to_end(&self, flags: MntFlags) -> Result<Unmounted, Error> {
        let Some(place) = self.place() else {
            return Ok(Unmounted::NotOurs);
        };
        match &self.mounter {
            Mounter::System => match point::unmount(&place, self.id, flags) {
                Ok(true) => Ok(Unmounted::Done),
                Err(Errno::EBUSY) => Ok(Unmounted::Busy),
                Ok(false) | Err(Errno::EINVAL) => Ok(Unmounted::NotOurs),
                Err(e) => Err(Error::new(
                    Class::Failed,
                    format!("cannot unmount {}: {e}", self.point.display()),
                )),
            },
            Mounter::Helper(helper) => {
                let answer = helper.unmount(flags.contains(MntFlags::MNT_DETACH));
                match answer {
                    Ok(true) => Ok(Unmounted::Done),
                    Ok(false) => Ok(Unmounted::NotOurs),
                    Err(_) if !self.is_there() => Ok(Unmounted::NotOurs),
                    Err(e) if e.class == Class::Busy => Ok(Unmounted::Busy),
                    Err(e) => Err(e),
                }
            }
        }
    }
}

impl Drop for Mount {
    /// However the daemon ends, it leaves no mount behind.
    fn drop(&mut self) {
        if let Err(e) = self.detach() {
            tracing::error!("{e}");
        }
    }
}

/// Checks that the mount is on the directory that was checked, and that the directory has not
/// moved; returns the mount's id.
fn landed(point: &Point) -> Result<MountId, Error> {
    let shown = point.path().display();
    let fail = |why: &dyn std::fmt::Display| {
        Error::new(
            Class::Failed,
            format!(
                "the mount on {shown} was taken away again: {why}; find out who changes directories there"
            ),
        )
    };
    match point.covered_by() {
        Ok(Some((id, path))) if path == point.path() => Ok(id),
        Ok(Some((_, path))) => Err(fail(&format_args!(
            "that directory was renamed to {} meanwhile",
            path.display()
        ))),
        Ok(None) => Err(fail(&"it is not on the directory that was there before")),
        Err(e) => Err(fail(&format_args!("it cannot be found ({e})"))),
    }
}

fn mount_by_system(point: &Point, options: &MountOptions) -> Result<OwnedFd, Error> {
    let device: OwnedFd = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .map_err(|e| device_error(e.raw_os_error()))?
        .into();
    let mut data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions,max_read={MAX_TRANSFER}",
        device.as_raw_fd(),
        nix::unistd::geteuid(),
        nix::unistd::getegid(),
    );
    if options.allow_other {
        data.push_str(",allow_other");
    }
    let mut flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    flags.set(MsFlags::MS_NOEXEC, !options.exec);
    flags.set(MsFlags::MS_RDONLY, options.read_only);
    nix::mount::mount(
        Some(options.source.as_path()),
        &point.as_path(),
        Some(Path::new(mountinfo::FS_TYPE)),
        flags,
        Some(Path::new(&data)),
    )
    .map_err(|e| mount_error(point.path(), e))?;
    Ok(device)
}

/// The error for a /dev/fuse that does not open, with the remedy.
pub(crate) fn device_error(errno: Option<i32>) -> Error {
    let errno = errno.map_or(Errno::UnknownErrno, Errno::from_raw);
    match errno {
        Errno::ENOENT | Errno::ENODEV | Errno::ENXIO => Error::new(
            Class::System,
            "/dev/fuse is missing: load the module (`modprobe fuse`), or pass the device into the container",
        ),
        Errno::EACCES | Errno::EPERM => Error::new(
            Class::NotPermitted,
            "/dev/fuse is forbidden to this user: it should have mode 0666 (`chmod 0666 /dev/fuse`), and in a container the device must be allowed",
        ),
        e => Error::new(Class::System, format!("cannot open /dev/fuse: {e}")),
    }
}

fn mount_error(point: &Path, errno: Errno) -> Error {
    let point = point.display();
    match errno {
        Errno::EPERM | Errno::EACCES => Error::new(
            Class::NotPermitted,
            format!(
                "mounting on {point} is not permitted here ({errno}): it takes CAP_SYS_ADMIN, or a descriptor passed as /dev/fd/N"
            ),
        ),
        Errno::ENODEV => Error::new(
            Class::System,
            "the kernel does not know FUSE: load the module (`modprobe fuse`)",
        ),
        e => Error::new(Class::Failed, format!("cannot mount on {point}: {e}")),
    }
}

/// The number in `/dev/fd/N`, the name under which a mounter passes a descriptor.
///
/// # Errors
/// When the path begins like such a name but is none.
pub(crate) fn passed_descriptor(point: &OsStr) -> Result<Option<i32>, Error> {
    let Some(number) = point.as_bytes().strip_prefix(b"/dev/fd/") else {
        return Ok(None);
    };
    let number = std::str::from_utf8(number)
        .ok()
        .and_then(|n| n.parse::<i32>().ok());
    match number {
        Some(fd) if fd > 2 => Ok(Some(fd)),
        _ => Err(Error::new(
            Class::Usage,
            format!(
                "{}: write /dev/fd/N, where N is the number (3 or more) of the descriptor of /dev/fuse that was passed",
                Path::new(point).display()
            ),
        )),
    }
}

/// Checks that `device` is /dev/fuse and mounted, and waits for its first request: fuser would wait
/// for it for ever.
///
/// # Errors
/// When it is not, or when another process has already spoken with the kernel over it.
pub(crate) fn check_device(device: &OwnedFd, passed: bool) -> Result<(), Error> {
    let stat = nix::sys::stat::fstat(device).map_err(|e| {
        Error::new(
            Class::Failed,
            format!("cannot look at the passed descriptor: {e}"),
        )
    })?;
    // 10:229 is /dev/fuse, according to Documentation/admin-guide/devices.txt.
    if passed && stat.st_rdev != nix::sys::stat::makedev(10, 229) {
        return Err(Error::new(
            Class::Failed,
            "the passed descriptor is not one of /dev/fuse",
        ));
    }
    let mut polled = [PollFd::new(device.as_fd(), PollFlags::POLLIN)];
    let ready = nix::poll::poll(&mut polled, PollTimeout::from(5000u16)).unwrap_or(0);
    let events = polled[0].revents().unwrap_or(PollFlags::empty());
    if ready == 0 {
        Err(Error::new(
            Class::Failed,
            "the kernel does not open the conversation over /dev/fuse: has the passed descriptor already been initialised by somebody else?",
        ))
    } else if events.contains(PollFlags::POLLERR) || !events.contains(PollFlags::POLLIN) {
        Err(Error::new(
            Class::Failed,
            "the descriptor of /dev/fuse is not mounted: mount it first (`fd=N` in the options of mount(2)), then pass it",
        ))
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_descriptors_beyond_the_standard_three_are_passed() {
        assert_eq!(passed_descriptor(OsStr::new("/dev/fd/7")), Ok(Some(7)));
        assert_eq!(passed_descriptor(OsStr::new("/mnt")), Ok(None));
        assert!(passed_descriptor(OsStr::new("/dev/fd/1")).is_err());
        assert!(passed_descriptor(OsStr::new("/dev/fd/x")).is_err());
    }
}
