//! `umount` for mounts that other processes serve.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::MntFlags;

use super::error::{Class, Error};
use super::socket::{self, Writer};
use super::{harden, helper, mountinfo};
use crate::store;

/// How long the daemon may take to publish and let go of its vault.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a daemon may take to tell how its mount is.
const TO_TELL: Duration = Duration::from_secs(2);

/// Unmounts the mount of secretfs on `path`, and waits until its daemon has let go of the vault.
/// Returns how far the vault has come, where the daemon tells that.
///
/// # Errors
/// When there is none, when it is in use, or when this user may not.
pub fn unmount(path: &Path) -> Result<Option<u64>, Error> {
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
    let farewell = match mount.read_only {
        true => Farewell::Known(commit_of(&mount)),
        false => Farewell::Told(
            Writer::of(&mount.source)
                .ok()
                .flatten()
                .and_then(|w| w.farewell()),
        ),
    };
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
    let commit = match farewell {
        Farewell::Known(commit) => commit,
        Farewell::Told(farewell) => farewell.and_then(|farewell| farewell.await_end(PATIENCE)),
    };
    if !mount.read_only {
        wait_until_released(&mount.source);
    }
    Ok(commit)
}

/// From whom it is known how far the vault has come.
enum Farewell {
    /// A mount that only reads has changed nothing.
    Known(Option<u64>),
    /// One that writes still writes when it is unmounted.
    Told(Option<socket::Farewell>),
}

/// How far the vault of a mount has come, if its daemon tells. Asked by a process that can be killed: a
/// read that hangs would keep the mount busy.
fn commit_of(mount: &mountinfo::Mount) -> Option<u64> {
    let mut asking = Command::new(std::env::current_exe().ok()?)
        .args(["status", "--json"])
        .arg(&mount.point)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let deadline = Instant::now() + TO_TELL;
    while asking.try_wait().ok()?.is_none() {
        if Instant::now() >= deadline {
            let _ = asking.kill();
            let _ = asking.wait();
            return None;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let text = asking.wait_with_output().ok()?.stdout;
    let status: serde_json::Value = serde_json::from_slice(&text).ok()?;
    status["commit_sequence"].as_u64()
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
