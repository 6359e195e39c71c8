//! The writer's lock: one process at a time has a vault open for writing.
//!
//! It is an open-file-description lock on `DIR/lock`. It ends with its holder, however that ends,
//! and unlike a POSIX lock it survives when another descriptor of the file is closed. The file's
//! content names the holder for people; the program decides nothing by it.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use serde::{Deserialize, Serialize};

use super::place::{Place, identity};
use super::strangers;
use super::{StoreError, StoreErrorKind as Kind};

/// Limit on the content, in bytes: it is hostile input, too.
const MAX_CONTENT: u64 = 4096;

/// The process that has a vault open for writing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Process id in its own pid namespace; 0 if unknown.
    pub pid: u32,
    /// Host name (a container's, if it runs in one).
    pub host: String,
    /// The mount point, if the process mounts the vault.
    pub mount_point: Option<String>,
    /// Start of the lock, in seconds since 1970; 0 if unknown.
    pub since: u64,
}

impl Holder {
    /// This process, as of now.
    pub fn current(mount_point: Option<&Path>) -> Self {
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Self {
            pid: std::process::id(),
            host: host.trim().to_owned(),
            mount_point: mount_point.map(|path| path.to_string_lossy().into_owned()),
            since: now(),
        }
    }

    /// A process that has not announced itself, because it has not verified the vault yet.
    pub fn unknown() -> Self {
        Self {
            pid: 0,
            host: String::new(),
            mount_point: None,
            since: 0,
        }
    }

    /// Whether the process has announced itself.
    pub fn is_named(&self) -> bool {
        self.pid != 0
    }
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.is_named() {
            return f.write_str("an unknown process");
        }
        write!(f, "process {}", self.pid)?;
        // Escape both: an attacker who can write the vault can write them, and must not control a
        // terminal.
        if !self.host.is_empty() {
            write!(f, " on {}", self.host.escape_debug())?;
        }
        if let Some(mount_point) = &self.mount_point {
            write!(f, ", mounted at {}", mount_point.escape_debug())?;
        }
        match now().saturating_sub(self.since) {
            _ if self.since == 0 => Ok(()),
            seconds @ 0..120 => write!(f, ", since {seconds} s"),
            seconds @ 120..7200 => write!(f, ", since {} min", seconds / 60),
            seconds => write!(f, ", since {} h", seconds / 3600),
        }
    }
}

/// The process that has the vault in `directory` open for writing, if any. Takes no lock.
///
/// # Errors
/// When there is no vault, or its lock cannot be examined.
pub fn holder(directory: &Path) -> Result<Option<Holder>, StoreError> {
    let path = Place::locate(directory, true)?.lock;
    let what = "cannot look at the lock";
    let file = match fs::OpenOptions::new()
        .read(true)
        .custom_flags(FLAGS)
        .open(&path)
    {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StoreError::of_file(what, &path, &error)),
    };
    let mut lock = flock();
    fcntl(&file, FcntlArg::F_OFD_GETLK(&mut lock))
        .map_err(|error| StoreError::of_file(what, &path, &error.into()))?;
    if lock.l_type == libc::F_UNLCK as libc::c_short {
        return Ok(None);
    }
    Ok(Some(content(&file).unwrap_or_else(Holder::unknown)))
}

/// The lock, held until dropped.
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
    /// The directory, which is locked too: an operator may remove the file as a stale one, and then
    /// the lock does not cover its replacement.
    directory: File,
    announced: AtomicBool,
}

/// Never follow a symlink, never wait for the other end of a FIFO.
const FLAGS: i32 = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;

impl Lock {
    /// Takes the lock, or fails at once with [`Kind::Busy`]. Creates the file if it is missing, and
    /// writes nothing into it.
    pub(super) fn acquire(path: &Path) -> Result<Self, StoreError> {
        let what = "cannot take the writer's lock";
        let fail = |error: io::Error| {
            let error = StoreError::of_file(what, path, &error);
            let next = match error.kind {
                Kind::ReadOnly | Kind::Denied => "; mount with -o ro to read",
                _ => "",
            };
            StoreError::new(error.kind, format!("{error}{next}"))
        };
        let directory = path.parent().unwrap_or(path);
        // Several rounds: another process may replace the file between opening and locking it.
        for _ in 0..8 {
            let file = fs::OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(FLAGS)
                .open(path)
                .map_err(fail)?;
            let found = file.metadata().map_err(fail)?;
            // A file with another link may belong to another program, and the holder would write
            // into it.
            if !found.is_file() || found.nlink() > 1 {
                return Err(StoreError::new(
                    Kind::Io,
                    format!(
                        "{what} {}: it is no regular file with this name alone; remove it",
                        path.display()
                    ),
                ));
            }
            match fcntl(&file, FcntlArg::F_OFD_SETLK(&flock())) {
                Ok(_) => {}
                Err(Errno::EAGAIN | Errno::EACCES) => return Err(busy(path, &file)),
                Err(error) => return Err(fail(error.into())),
            }
            let held = File::open(directory).map_err(fail)?;
            match held.try_lock() {
                Ok(()) => {}
                // A user who can open the directory can lock it.
                Err(fs::TryLockError::WouldBlock) if strangers::lock(&held) => tracing::warn!(
                    "another user, who can open the directory {}, has locked it; keep others out \
                     with `chmod 700`",
                    directory.display()
                ),
                Err(fs::TryLockError::WouldBlock) => return Err(busy(path, &file)),
                Err(fs::TryLockError::Error(error)) => return Err(fail(error)),
            }
            let ours = file.metadata().map_err(fail)?;
            if fs::symlink_metadata(path).is_ok_and(|found| identity(&found) == identity(&ours)) {
                return Ok(Self {
                    file,
                    directory: held,
                    announced: AtomicBool::new(false),
                });
            }
        }
        Err(StoreError::new(
            Kind::Io,
            format!("{what} {}: it keeps being replaced", path.display()),
        ))
    }

    /// Writes the holder into the file.
    pub(super) fn announce(&self, holder: &Holder) -> io::Result<()> {
        let text = serde_json::to_vec(holder)?;
        self.announced.store(true, Ordering::Relaxed);
        self.file.set_len(0)?;
        self.file.write_all_at(&text, 0)
    }

    /// The locked directory, even if it was moved.
    pub(super) fn directory(&self) -> io::Result<File> {
        self.directory.try_clone()
    }

    /// Whether the file at `path` still is the locked one. If it is not, a second writer may be at
    /// work.
    pub(super) fn is_at(&self, path: &Path) -> bool {
        match (self.file.metadata(), fs::symlink_metadata(path)) {
            (Ok(ours), Ok(found)) => identity(&ours) == identity(&found),
            _ => false,
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if *self.announced.get_mut() {
            // A failure is harmless: the free lock disproves the holder that the file names.
            let _ = self.file.set_len(0);
        }
    }
}

/// Shows the writer that a reader is there, until the file is dropped. Readers block nothing and
/// decide nothing, but a writer that knows about them takes care of them. `None` if the lock cannot
/// be taken.
///
/// The kind of lock differs from the writer's own, so it does not conflict with that one.
pub(super) fn show_reader(path: &Path) -> Option<File> {
    let mut options = fs::OpenOptions::new();
    let file = options.read(true).custom_flags(FLAGS).open(path).ok()?;
    // The writer may hold the lock for a moment, to look for readers.
    let shown = (0..20).any(|again| {
        if again > 0 {
            thread::sleep(Duration::from_millis(1));
        }
        file.try_lock_shared().is_ok()
    });
    shown.then_some(file)
}

/// Whether a process reads beside the writer. Only the writer calls this.
pub(super) fn has_readers(path: &Path) -> bool {
    let mut options = fs::OpenOptions::new();
    match options.read(true).custom_flags(FLAGS).open(path) {
        Ok(file) => file.try_lock().is_err(),
        Err(_) => true,
    }
}

fn busy(path: &Path, file: &File) -> StoreError {
    let holder = content(file).unwrap_or_else(Holder::unknown);
    let vault = path.parent().unwrap_or(path);
    StoreError::new(
        Kind::Busy,
        format!(
            "{} is open for writing by {holder}, and only one process at a time may be; mount it \
             beside with -o ro, or make the existing mount visible elsewhere with a bind mount",
            vault.display()
        ),
    )
}

fn content(file: &File) -> Option<Holder> {
    let mut bytes = Vec::new();
    file.take(MAX_CONTENT).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// A write lock on the whole file.
fn flock() -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        // Must be 0 for open-file-description locks.
        l_pid: 0,
    }
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
