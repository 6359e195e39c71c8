//! `umount` for mounts that other processes serve. It must not call a vault free that is still
//! held: other mounts of the same file system, and open files, keep its daemon alive.

use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::MntFlags;
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::holders::Holders;
use super::point::{self, Point};
use super::quote::quoted;
use super::seen::Daemon;
use super::{fusermount, harden};
use crate::control::{DaemonClient, Farewell};
use crate::error::{Class, Error};
use crate::os::{mountinfo, sys};
use crate::store;

/// The time that a daemon has to report the end of its mount, or its status to a caller that does
/// not wait.
const TO_TELL: Duration = Duration::from_secs(2);

/// The time that it has to say which mount is its own, when the caller waits anyway.
const TO_SAY: Duration = Duration::from_secs(10);

/// The time that a mount has to show its status; the question keeps it busy meanwhile.
const TO_SHOW: Duration = Duration::from_secs(5);

/// The time that a daemon has to end before this looks for holders that keep it alive.
const TO_END: Duration = Duration::from_millis(400);

/// The time after which a daemon that ends late without any visible holder is reported.
const TO_END_ALONE: Duration = Duration::from_secs(5);

/// The least time that a daemon without holders gets to end: it may have much to write.
const TO_WRITE: Duration = Duration::from_secs(30);

/// The state of the vault after its mount is gone.
#[derive(Debug)]
pub enum Unmounted {
    /// Its daemon has released it; the last commit, if the daemon reported it.
    Free(Option<u64>),
    /// It is still held; the text names the holders.
    Held(String),
    /// No holder was found, but not every process could be inspected, or its daemon is uncertain;
    /// the text tells which.
    Unknown(String),
}

/// Unmounts the mount of secretfs on `path`, and waits at most `wait` until its daemon has released
/// the vault; `None`: it does not wait. It passes the holders that it waits for to `tell`.
///
/// # Errors
/// When there is no such mount, when it is in use, or when this user may not unmount it; also when
/// the mount is gone, but the vault is still held after `wait`.
pub fn unmount(
    path: &Path,
    wait: Option<Duration>,
    tell: &dyn Fn(&str),
) -> Result<Unmounted, Error> {
    let shown = quoted(path);
    let fail = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound => Error::new(
            Class::Failed,
            format!("the mount point {shown} does not exist"),
        ),
        _ => Error::new(Class::Failed, format!("cannot look at {shown}: {e}")),
    };
    let point = mountinfo::absolute(path).map_err(fail)?;
    let id = sys::mount_id(&point).map_err(fail)?;
    let mut mounts = mountinfo::mounts().map_err(fail)?.into_iter();
    let mount = mounts.find(|m| m.id == id.id && m.device == id.device && m.point == point);
    let mount =
        mount.ok_or_else(|| Error::new(Class::Failed, format!("nothing is mounted on {shown}")))?;
    if !mount.is_secretfs() {
        return Err(Error::new(
            Class::Failed,
            format!(
                "{shown} is not a mount of secretfs but of type {}; use umount(8)",
                quoted(&mount.fs_type)
            ),
        ));
    }
    let patience = if wait.is_some() { TO_SAY } else { TO_TELL };
    let (held, client) = Held::before(&mount, patience);
    let farewell = client
        .filter(|_| wait.is_some())
        .and_then(|client| client.farewell());
    // Unmount by its id: another mount may be at its path by now.
    let is_done = match harden::may_mount() {
        true => point::unmount(&point, id, MntFlags::empty()).map_err(|e| match e {
            Errno::EBUSY => busy(path),
            e => Error::new(Class::Failed, format!("cannot unmount {shown}: {e}")),
        })?,
        false => fusermount::unmount(&point, id, false).map_err(|e| match e.class {
            Class::Busy => busy(path),
            _ => e,
        })?,
    };
    if !is_done {
        return Err(Error::new(
            Class::Failed,
            format!("{shown} is not unmounted: something else is mounted there by now; try again"),
        ));
    }
    held.await_end(&mount, path, wait, farewell, tell)
}

/// The possible holder of a mount's vault.
enum Held {
    /// None.
    Free,
    /// This process holds the lock, and says that the mount is its own.
    ByWriter(store::Holder),
    /// This process holds the lock of the vault at the mount's path, but did not say whether the
    /// mount is its own.
    ByWriterPerhaps(store::Holder),
    /// This process serves the mount; the last commit, if the mount is read-only.
    ByDaemon(Daemon, Option<u64>),
    /// The daemon is unknown. The vault is held while the file system exists; after that, a daemon
    /// that `writes` may still hold it for an unknown time.
    ByWhoever { writes: bool },
}

impl Held {
    /// Finds the holder while the mount exists, and a client for the daemon that says over the
    /// socket that the mount is its own. The path alone proves nothing: it may belong to another
    /// mount namespace, and another vault may be there by now.
    fn before(mount: &mountinfo::Mount, patience: Duration) -> (Self, Option<DaemonClient>) {
        // A read-only bind of a writable mount also shows as read-only.
        let client = DaemonClient::of_mount(&mount.source, mount.user);
        let client = client.ok().flatten();
        let serves = client
            .as_ref()
            .and_then(|client| client.serves(mount.device, patience));
        match (store::holder(&mount.source), serves) {
            (Ok(Some(holder)), Some(true)) => (Self::ByWriter(holder), client),
            (Ok(Some(holder)), None) => (Self::ByWriterPerhaps(holder), None),
            // The mount belongs to another daemon, or to none that listens.
            (Ok(Some(_)), Some(false)) | (Ok(None) | Err(_), _) => (Self::by_daemon(mount), None),
        }
    }

    /// The holder according to the mount's own status.
    fn by_daemon(mount: &mountinfo::Mount) -> Self {
        let status = match status_of(mount) {
            Status::Shown(status) => status,
            Status::Failed => return Self::unless_dead(mount),
            // A bind that is read-only may be one of a mount for writing.
            Status::Silent => return Self::ByWhoever { writes: true },
        };
        let writes = status["mode"] != "read-only";
        // A writer's commit will still grow by its unpublished data.
        let commit = status["commit_sequence"].as_u64().filter(|_| !writes);
        let known = status["pid"].as_u64().zip(status["started_ticks"].as_u64());
        match known.and_then(|(id, started)| Daemon::of(id, started)) {
            Some(daemon) => Self::ByDaemon(daemon, commit),
            None => Self::ByWhoever { writes },
        }
    }

    /// The holder, as far as it is known without an answer. A daemon whose mount was aborted may
    /// still be writing, one that was killed is not: the vault's lock tells which, where it is
    /// visible.
    fn unless_dead(mount: &mountinfo::Mount) -> Self {
        let is_dead = Point::open(&mount.point).is_ok_and(|point| point.is_dead());
        match is_dead && store::holder(&mount.source).is_ok() {
            true => Self::Free,
            false => Self::ByWhoever { writes: true },
        }
    }

    fn is_over(&self, mount: &mountinfo::Mount) -> bool {
        match self {
            Self::Free => true,
            // A different holder by now does not matter. If the holder cannot be read, nothing is
            // known, and nothing either while none is named: a writer removes its name before it
            // releases the lock.
            Self::ByWriter(before) | Self::ByWriterPerhaps(before) => {
                match store::holder(&mount.source) {
                    Ok(None) => true,
                    Ok(Some(now)) => now.is_named() && now != *before,
                    Err(_) => false,
                }
            }
            Self::ByDaemon(daemon, _) => !daemon.is_alive(),
            Self::ByWhoever { .. } => !Holders::of(mount).is_anybody(),
        }
    }

    /// The reason that it is unknown whether the vault is held, if it is unknown.
    fn doubt(&self, mount: &mountinfo::Mount) -> Option<String> {
        match self {
            Self::ByWriterPerhaps(holder) => Some(format!(
                "{}, which has the vault that is at {} here, did not say whether this mount is its own",
                process(holder),
                quoted(&mount.source)
            )),
            Self::ByWhoever { writes: true } => {
                Some("its daemon is not known here, and may still be writing".to_owned())
            }
            Self::Free
            | Self::ByWriter(_)
            | Self::ByDaemon(..)
            | Self::ByWhoever { writes: false } => None,
        }
    }

    /// The holder and the remedy, in words.
    fn describe(&self, holders: &Holders) -> String {
        let daemon = match self {
            Self::ByWriter(holder) | Self::ByWriterPerhaps(holder) => process(holder),
            Self::ByDaemon(daemon, _) => format!("process {}", daemon.id),
            Self::ByWhoever { .. } | Self::Free => "its daemon".to_owned(),
        };
        match holders.is_anybody() {
            true => format!("{holders}; {}", holders.remedy()),
            false => format!(
                "{daemon} has not let go of it yet, and {holders}; {}",
                holders.remedy()
            ),
        }
    }

    fn await_end(
        self,
        mount: &mountinfo::Mount,
        path: &Path,
        wait: Option<Duration>,
        farewell: Option<Farewell>,
        tell: &dyn Fn(&str),
    ) -> Result<Unmounted, Error> {
        let (shown, vault) = (quoted(path), quoted(&mount.source));
        let known = match &self {
            Self::ByDaemon(_, commit) => *commit,
            Self::Free | Self::ByWriter(_) | Self::ByWriterPerhaps(_) | Self::ByWhoever { .. } => {
                None
            }
        };
        let Some(wait) = wait else {
            return Ok(match (self.is_over(mount), &self) {
                (true, _) => self.free(mount, known),
                (false, Self::ByWriterPerhaps(_)) => {
                    Unmounted::Unknown(self.doubt(mount).unwrap_or_default())
                }
                (false, _) => Unmounted::Held(self.describe(&Holders::of(mount))),
            });
        };
        let begun = Instant::now();
        // The time since which some holder, or no holder, keeps the daemon alive.
        let (mut since, mut is_anybody) = (begun, None);
        let mut look_at = begun + TO_END.min(wait);
        let mut is_reported = false;
        while !self.is_over(mount) {
            let now = Instant::now();
            if now >= look_at {
                look_at = now + TO_END;
                let holders = Holders::of(mount);
                let seen = holders.is_anybody();
                if is_anybody
                    .replace(seen)
                    .is_some_and(|before| before != seen)
                {
                    since = now;
                }
                // A daemon without holders is still writing.
                let patience = if seen { wait } else { wait.max(TO_WRITE) };
                if now >= since + patience && !self.is_over(mount) {
                    let (after, holder) = (patience.as_secs_f32(), self.describe(&holders));
                    let message = match self.doubt(mount) {
                        Some(doubt) if !seen => format!(
                            "{shown} is unmounted; whether its vault {vault} is still held cannot be \
                             told after {after} s: {doubt}, and {holder}"
                        ),
                        _ => format!(
                            "{shown} is unmounted, but its vault {vault} is still held after {after} s: {holder}"
                        ),
                    };
                    return Err(Error::new(Class::Busy, message));
                }
                if !is_reported && (seen || now >= begun + TO_END_ALONE) {
                    is_reported = true;
                    tell(&format!(
                        "{shown} is unmounted, but its vault {vault} is still held: {}; waiting for that",
                        self.describe(&holders)
                    ));
                }
                if seen {
                    look_at = look_at.min((since + patience).max(now));
                }
            }
            let pause = match &self {
                // Each look reads all processes.
                Self::ByWhoever { .. } => 100,
                Self::Free | Self::ByWriter(_) | Self::ByWriterPerhaps(_) | Self::ByDaemon(..) => {
                    10
                }
            };
            std::thread::sleep(Duration::from_millis(pause));
        }
        let commit = known.or_else(|| farewell.and_then(|farewell| farewell.await_end(TO_TELL)));
        Ok(self.free(mount, commit))
    }

    /// The result that the vault is free, if that is certain.
    fn free(&self, mount: &mountinfo::Mount, commit: Option<u64>) -> Unmounted {
        if let Some(doubt) = self.doubt(mount) {
            return Unmounted::Unknown(doubt);
        }
        let holders = match self {
            Self::ByWhoever { .. } => Holders::of(mount),
            Self::Free | Self::ByWriter(_) | Self::ByWriterPerhaps(_) | Self::ByDaemon(..) => {
                return Unmounted::Free(commit);
            }
        };
        match holders.is_all_seen() {
            true => Unmounted::Free(commit),
            false => Unmounted::Unknown(holders.to_string()),
        }
    }
}

/// The process that holds a lock, in words.
fn process(holder: &store::Holder) -> String {
    match holder.pid {
        0 => "an unknown process".to_owned(),
        pid => format!("process {pid}"),
    }
}

/// The status that a mount shows.
enum Status {
    Shown(serde_json::Value),
    /// The question failed, or the mount answered at once with an error.
    Failed,
    /// The mount did not answer. Another question would keep it busy.
    Silent,
}

/// The time that a killed process has to end. It cannot end before the daemon answers a request
/// that is under way.
const TO_DIE: Duration = Duration::from_secs(2);

/// Reads the status in a process that can be killed, because a hanging read would keep the mount
/// busy.
fn status_of(mount: &mountinfo::Mount) -> Status {
    // The file takes an answer of any length without a reader.
    let answer = memfd_create("status", MFdFlags::MFD_CLOEXEC).map(File::from);
    let asking = answer.map_err(io::Error::from).and_then(|answer| {
        let asking = Command::new(std::env::current_exe()?)
            .args(["status", "--json"])
            .arg(&mount.point)
            .stdin(Stdio::null())
            .stdout(answer.try_clone()?)
            .stderr(Stdio::null())
            .spawn()?;
        Ok((asking, answer))
    });
    let Ok((mut asking, mut answer)) = asking else {
        return Status::Failed;
    };
    if !has_ended(&mut asking, TO_SHOW) {
        let _ = asking.kill();
        has_ended(&mut asking, TO_DIE);
        return Status::Silent;
    }
    let mut text = Vec::new();
    let read = answer.rewind().and_then(|()| answer.read_to_end(&mut text));
    match read.map(|_| serde_json::from_slice(&text)) {
        Ok(Ok(status)) => Status::Shown(status),
        Ok(Err(_)) | Err(_) => Status::Failed,
    }
}

fn has_ended(process: &mut Child, within: Duration) -> bool {
    let deadline = Instant::now() + within;
    loop {
        match process.try_wait() {
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(2)),
            Ok(None) => return false,
            Ok(Some(_)) | Err(_) => return true,
        }
    }
}

fn busy(path: &Path) -> Error {
    let shown = quoted(path);
    Error::new(
        Class::Busy,
        format!(
            "{shown} is in use; end what uses it (`fuser -vm {shown}` shows it), or take it out of the way with `umount -l {shown}`"
        ),
    )
}
