//! A copy of a vault on its way: in a directory of another name beside the one that it is to get, and
//! by its own name only once it is whole.
//!
//! Of a run that was killed, this directory stays. The next run for the same target takes away what is
//! in it, if it is its user's and nobody is at work there. Must never remove anything else, and never
//! replace anything.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{
    AT_FDCWD, Flock, FlockArg, OFlag, PosixFadviseAdvice, RenameFlags, posix_fadvise, renameat2,
};

use crate::error::{Class, Error};

use super::target::Target;

/// What a directory of this kind is called, behind a point and the name of the target.
const SUFFIX: &str = ".secretfs-partial";
/// Of long names of targets the beginning, so that there is room for that.
const MAX_NAME: usize = 200;
/// The copy in it.
const COPY: &str = "copy";
/// All that a copy can have in it.
const FILES: [&str; 9] = [
    "vault.db",
    "vault.db-wal",
    "vault.db-shm",
    "vault.db-journal",
    "vault.db.new",
    "vault.db.new-wal",
    "vault.db.new-shm",
    "vault.db.new-journal",
    "lock",
];

/// See the module. Dropped, it is gone with all that is in it.
pub(super) struct Partial {
    outer: PathBuf,
    /// Shows others that somebody is at work here.
    _lock: Flock<File>,
}

impl Partial {
    /// Begins a copy for `target`, or begins anew what an earlier run left.
    ///
    /// # Errors
    /// When another process makes the same, or the directory cannot be made or is not ours.
    pub(super) fn begin(target: &Target) -> Result<Self, Error> {
        let outer = target.parent.join(name_for(target));
        let fail = |what: &str, e: &dyn std::fmt::Display| {
            let why = format!("cannot {what} {}: {e}", outer.display());
            Error::new(Class::Failed, why)
        };
        // A few rounds: whoever was at work here may just be taking it away.
        for _ in 0..8 {
            match DirBuilder::new().mode(0o700).create(&outer) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(fail("make", &e)),
            }
            let flags = (OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW).bits();
            let mut options = OpenOptions::new();
            let directory = match options.read(true).custom_flags(flags).open(&outer) {
                Ok(directory) => directory,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(fail("use", &e)),
            };
            let found = directory.metadata().map_err(|e| fail("look at", &e))?;
            if found.uid() != nix::unistd::geteuid().as_raw() {
                return Err(fail("use", &"it belongs to another user; remove it"));
            }
            let lock = match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => lock,
                Err((_, Errno::EWOULDBLOCK)) => {
                    let why = format!(
                        "another process is just making {} (in {}); wait for its end",
                        target.path.display(),
                        outer.display()
                    );
                    return Err(Error::new(Class::Busy, why));
                }
                Err((_, e)) => return Err(fail("lock", &e)),
            };
            let here = fs::symlink_metadata(&outer);
            if here.is_ok_and(|here| (here.dev(), here.ino()) == (found.dev(), found.ino())) {
                let partial = Self { outer, _lock: lock };
                partial.clear().map_err(|e| {
                    let why = format!(
                        "cannot remove what an earlier run left in {}: {e}; remove it",
                        partial.outer.display()
                    );
                    Error::new(Class::Failed, why)
                })?;
                return Ok(partial);
            }
        }
        Err(fail("use", &"it keeps being replaced"))
    }

    /// Where the copy is to be made.
    pub(super) fn copy(&self) -> PathBuf {
        self.outer.join(COPY)
    }

    /// Has all of the copy be on the disk, and what is read of it next be read from there. To be called
    /// while nobody has it open. Without `keep_lock`, the writer's lock is taken away.
    ///
    /// # Errors
    /// When something is left that is not in the database, or the disk fails.
    pub(super) fn settle(&self, keep_lock: bool) -> Result<(), Error> {
        let copy = self.copy();
        let sync = || {
            let lock = copy.join("lock");
            if !keep_lock {
                fs::remove_file(&lock)?;
            }
            for entry in fs::read_dir(&copy)? {
                let name = entry?.file_name();
                if name != "vault.db" && name != "lock" {
                    let left = format!("{} is left", Path::new(&name).display());
                    return Err(io::Error::other(left));
                }
            }
            if keep_lock {
                File::open(&lock)?.sync_all()?;
            }
            let database = File::open(copy.join("vault.db"))?;
            database.sync_all()?;
            posix_fadvise(&database, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
            File::open(&copy)?.sync_all()
        };
        sync().map_err(|e: io::Error| {
            let why = format!("cannot finish {}: {e}", copy.display());
            Error::new(Class::Failed, why)
        })
    }

    /// Gives the copy its name, which nothing has, and makes that durable.
    ///
    /// # Errors
    /// When something has that name by now, or the disk fails.
    pub(super) fn name(self, target: &Target) -> Result<(), Error> {
        let copy = self.copy();
        let flags = RenameFlags::RENAME_NOREPLACE;
        let named = match renameat2(AT_FDCWD, &copy, AT_FDCWD, &target.path, flags) {
            // Where a file system does not know that, an empty directory is all that can be replaced.
            Err(Errno::EINVAL | Errno::ENOSYS) => fs::rename(&copy, &target.path),
            named => named.map_err(Into::into),
        };
        named.map_err(|e| {
            let class = match e.kind() {
                io::ErrorKind::AlreadyExists => Class::Exists,
                _ => Class::Failed,
            };
            let shown = target.path.display();
            Error::new(class, format!("cannot give the copy its name {shown}: {e}"))
        })?;
        die_at!("copy-named");
        let synced = File::open(&target.parent).and_then(|parent| parent.sync_all());
        synced.map_err(|e| {
            let why = format!(
                "{} is made, and a power cut may take it away: cannot sync {}: {e}",
                target.path.display(),
                target.parent.display()
            );
            Error::new(Class::Failed, why)
        })
    }

    /// Takes away what is in it, as far as a copy can have that.
    fn clear(&self) -> io::Result<()> {
        let gone = |removed: io::Result<()>| match removed {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        };
        let copy = self.copy();
        match fs::symlink_metadata(&copy) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => return Err(io::Error::other("it holds what no run has made")),
            Err(e) => return gone(Err(e)),
        }
        for file in FILES {
            gone(fs::remove_file(copy.join(file)))?;
        }
        gone(fs::remove_dir(&copy))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // What cannot be removed now the next run removes, or names.
        let _ = self.clear();
        let _ = fs::remove_dir(&self.outer);
    }
}

fn name_for(target: &Target) -> OsString {
    let name = target.name.as_bytes();
    let mut of = b".".to_vec();
    of.extend_from_slice(name.get(..MAX_NAME).unwrap_or(name));
    of.extend_from_slice(SUFFIX.as_bytes());
    OsString::from_vec(of)
}
