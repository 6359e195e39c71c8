//! `umount` for mounts that other processes serve.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::MntFlags;

use super::error::{Class, Error};
use super::{harden, helper, mountinfo};
use crate::store;

/// How long the daemon may take to publish and let go of its vault.
const PATIENCE: Duration = Duration::from_secs(30);

/// Unmounts the mount of secretfs on `path`, and waits until its daemon has let go of the vault.
///
/// # Errors
/// When there is none, when it is in use, or when this user may not.
pub fn unmount(path: &Path) -> Result<(), Error> {
    let shown = path.display();
    let fail = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound => Error::new(
            Class::Failed,
            format!("the mount point {shown} does not exist"),
        ),
        _ => Error::new(Class::Failed, format!("cannot look at {shown}: {e}")),
    };
    let point = mountinfo::absolute(path).map_err(fail)?;
    let mount = mountinfo::mount_at(&point).map_err(fail)?;
    let mount =
        mount.ok_or_else(|| Error::new(Class::Failed, format!("nothing is mounted on {shown}")))?;
    if !mount.is_secretfs() {
        return Err(Error::new(
            Class::Failed,
            format!(
                "{shown} is not a mount of secretfs but of type {}; use umount(8)",
                mount.fs_type.display()
            ),
        ));
    }
    if harden::may_mount() {
        nix::mount::umount2(&point, MntFlags::UMOUNT_NOFOLLOW).map_err(|e| match e {
            Errno::EBUSY => busy(path),
            e => Error::new(Class::Failed, format!("cannot unmount {shown}: {e}")),
        })?;
    } else {
        helper::unmount_by_fusermount(&point, false).map_err(|e| {
            if e.class == Class::Busy {
                busy(path)
            } else {
                e
            }
        })?;
    }
    if !mount.read_only {
        wait_until_released(&mount.source);
    }
    Ok(())
}

fn busy(path: &Path) -> Error {
    let shown = path.display();
    Error::new(
        Class::Busy,
        format!(
            "{shown} is in use; end what uses it (`fuser -vm {shown}` shows it), or take it out of the way with `umount -l {shown}`"
        ),
    )
}

/// So that what follows `umount` finds the vault free. Where the lock cannot be asked there is
/// nothing to wait for.
fn wait_until_released(vault: &Path) {
    let deadline = Instant::now() + PATIENCE;
    while store::holder(vault).is_ok_and(|held| held.is_some()) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
}
