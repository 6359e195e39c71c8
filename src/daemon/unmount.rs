//! `umount` for mounts that other processes serve. It must not say that a vault is free while it is
//! not: other mounts of the same file system, and open files, keep its daemon alive.

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

/// How long a daemon may take to tell that its mount has ended, or how it is to who does not wait.
const TO_TELL: Duration = Duration::from_secs(2);

/// How long it may take to say which mount is its own. Who waits for it need not know sooner.
const TO_SAY: Duration = Duration::from_secs(10);

/// How long a mount may take to tell how it is: meanwhile it is busy.
const TO_SHOW: Duration = Duration::from_secs(5);

/// How long a daemon may take to end before anybody looks who keeps it from that.
const TO_END: Duration = Duration::from_millis(400);

/// How long it may take without anybody to be seen who keeps it from that, before that is told.
const TO_END_ALONE: Duration = Duration::from_secs(5);

/// How long a daemon that nobody keeps alive may take at least: what it writes may be much.
const TO_WRITE: Duration = Duration::from_secs(30);

/// What has become of the vault of a mount that is gone.
#[derive(Debug)]
pub enum Unmounted {
    /// Its daemon has let go of it; how far it has come, where the daemon tells that.
    Free(Option<u64>),
    /// It is still held, by whom is said in words.
    Held(String),
    /// Nobody was found who holds it, and not everybody could be looked at, or its daemon is not known for
    /// sure, as is said in words.
    Unknown(String),
}

/// Unmounts the mount of secretfs on `path`, and waits until its daemon has let go of the vault, as
/// long as `wait`; `None`: not at all. `tell` is told who keeps it waiting.
///
/// # Errors
/// When there is none, when it is in use, or when this user may not; and when the vault is still held
/// after `wait`, though the mount is gone.
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
    // By its id: what is at its path by now may be another one.
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

/// Why the vault of a mount would still be held.
enum Held {
    /// It is not.
    Free,
    /// Its lock has this holder, who says that the mount is his.
    ByWriter(store::Holder),
    /// The lock of the vault at its path here has this holder, who did not say whether the mount is his.
    ByWriterPerhaps(store::Holder),
    /// This process serves it; how far the vault has come, if nobody writes through it.
    ByDaemon(Daemon, Option<u64>),
    /// Nothing is known of the daemon. While the file system is there, it is held; how long after that is
    /// not known of one that writes.
    ByWhoever { writes: bool },
}

impl Held {
    /// To be asked while it is mounted. With it whoever says that the mount is his, at the socket. The path
    /// alone tells nothing: it may be one in another mount namespace, and another vault may be there by now.
    fn before(mount: &mountinfo::Mount, patience: Duration) -> (Self, Option<DaemonClient>) {
        // A read-only bind of a mount for writing says that it is read-only, too.
        let client = DaemonClient::of_mount(&mount.source, mount.user);
        let client = client.ok().flatten();
        let serves = client
            .as_ref()
            .and_then(|client| client.serves(mount.device, patience));
        match (store::holder(&mount.source), serves) {
            (Ok(Some(holder)), Some(true)) => (Self::ByWriter(holder), client),
            (Ok(Some(holder)), None) => (Self::ByWriterPerhaps(holder), None),
            // It is another's, or nobody's.
            (Ok(Some(_)), Some(false)) | (Ok(None) | Err(_), _) => (Self::by_daemon(mount), None),
        }
    }

    /// What the mount says itself.
    fn by_daemon(mount: &mountinfo::Mount) -> Self {
        let status = match status_of(mount) {
            Status::Told(status) => status,
            Status::Failed => return Self::unless_dead(mount),
            // A bind that is read-only may be one of a mount for writing.
            Status::Silent => return Self::ByWhoever { writes: true },
        };
        let writes = status["mode"] != "read-only";
        // What a writer has not written yet makes it more.
        let commit = status["commit_sequence"].as_u64().filter(|_| !writes);
        let known = status["pid"].as_u64().zip(status["started_ticks"].as_u64());
        match known.and_then(|(id, started)| Daemon::of(id, started)) {
            Some(daemon) => Self::ByDaemon(daemon, commit),
            None => Self::ByWhoever { writes },
        }
    }

    /// What is known without an answer. A daemon whose mount was aborted may still be writing, and one that
    /// was killed may not: who has the vault tells that, where it is seen.
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
            // Somebody else who has it by now is none of our business. Who cannot look does not know.
            Self::ByWriter(before) | Self::ByWriterPerhaps(before) => {
                store::holder(&mount.source).is_ok_and(|now| now.as_ref() != Some(before))
            }
            Self::ByDaemon(daemon, _) => !daemon.is_alive(),
            Self::ByWhoever { .. } => !Holders::of(mount).is_anybody(),
        }
    }

    /// Why nobody knows whether it is held, if so.
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

    /// Who has it, and what to do about that.
    fn told(&self, holders: &Holders) -> String {
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
                (false, _) => Unmounted::Held(self.told(&Holders::of(mount))),
            });
        };
        let begun = Instant::now();
        // Since when there has been somebody who keeps the daemon alive, or nobody.
        let (mut since, mut is_anybody) = (begun, None);
        let mut look_at = begun + TO_END.min(wait);
        let mut is_told = false;
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
                // A daemon that nobody keeps alive is still writing.
                let patience = if seen { wait } else { wait.max(TO_WRITE) };
                if now >= since + patience && !self.is_over(mount) {
                    let (after, told) = (patience.as_secs_f32(), self.told(&holders));
                    let message = match self.doubt(mount) {
                        Some(doubt) if !seen => format!(
                            "{shown} is unmounted; whether its vault {vault} is still held cannot be \
                             told after {after} s: {doubt}, and {told}"
                        ),
                        _ => format!(
                            "{shown} is unmounted, but its vault {vault} is still held after {after} s: {told}"
                        ),
                    };
                    return Err(Error::new(Class::Busy, message));
                }
                if !is_told && (seen || now >= begun + TO_END_ALONE) {
                    is_told = true;
                    tell(&format!(
                        "{shown} is unmounted, but its vault {vault} is still held: {}; waiting for that",
                        self.told(&holders)
                    ));
                }
                if seen {
                    look_at = look_at.min((since + patience).max(now));
                }
            }
            let pause = match &self {
                // Each look is one at all processes.
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

    /// That it is over, if that is known.
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

/// Who holds a lock, in words.
fn process(holder: &store::Holder) -> String {
    match holder.pid {
        0 => "an unknown process".to_owned(),
        pid => format!("process {pid}"),
    }
}

/// What a mount tells of itself.
enum Status {
    Told(serde_json::Value),
    /// It could not be asked, or answered at once that it cannot tell.
    Failed,
    /// It did not answer. To ask it anything more would keep it busy.
    Silent,
}

/// How long a process that was killed may take to end. It cannot end before the daemon answers what
/// the daemon has already been asked.
const TO_DIE: Duration = Duration::from_secs(2);

/// Asked by a process that can be killed: a read that hangs would keep the mount busy.
fn status_of(mount: &mountinfo::Mount) -> Status {
    // Of any length, while nobody reads it.
    let told = memfd_create("status", MFdFlags::MFD_CLOEXEC).map(File::from);
    let asking = told.map_err(io::Error::from).and_then(|told| {
        let asking = Command::new(std::env::current_exe()?)
            .args(["status", "--json"])
            .arg(&mount.point)
            .stdin(Stdio::null())
            .stdout(told.try_clone()?)
            .stderr(Stdio::null())
            .spawn()?;
        Ok((asking, told))
    });
    let Ok((mut asking, mut told)) = asking else {
        return Status::Failed;
    };
    if !has_ended(&mut asking, TO_SHOW) {
        let _ = asking.kill();
        has_ended(&mut asking, TO_DIE);
        return Status::Silent;
    }
    let mut text = Vec::new();
    let read = told.rewind().and_then(|()| told.read_to_end(&mut text));
    match read.map(|_| serde_json::from_slice(&text)) {
        Ok(Ok(status)) => Status::Told(status),
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
