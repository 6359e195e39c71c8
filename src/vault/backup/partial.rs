//! A partial copy of a vault. It is in a directory of another name beside the target, and moves to
//! the target only once it is complete.
//!
//! A killed run leaves this directory. The next run for the same target removes its contents, if
//! the directory belongs to the same user and no process is at work there. It must never remove
//! anything else, and never replace anything.

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
use crate::store;

use super::target::Target;

/// The end of the directory's name, which begins with a dot and the name of the target.
const SUFFIX: &str = ".secretfs-partial";
/// Limit on the bytes from the target's name, which leaves room for the suffix.
const MAX_NAME: usize = 200;
/// The name of the copy in the directory.
const COPY: &str = "copy";

/// A partial copy, as the module describes. Dropping it removes it.
pub(super) struct Partial {
    outer: PathBuf,
    /// Shows other processes that this one is at work here.
    _lock: Flock<File>,
}

impl Partial {
    /// Begins a copy for `target`, and removes what an earlier run left.
    ///
    /// # Errors
    /// When another process makes a copy for the same target, or the directory cannot be made or
    /// belongs to another user.
    pub(super) fn begin(target: &Target) -> Result<Self, Error> {
        let outer = target.parent.join(name_for(target));
        let fail = |what: &str, e: &dyn std::fmt::Display| {
            let why = format!("cannot {what} {}: {e}", outer.display());
            Error::new(Class::Failed, why)
        };
        // Try several times: another process may be removing the directory.
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

    /// The path of the copy.
    pub(super) fn copy(&self) -> PathBuf {
        self.outer.join(COPY)
    }

    /// Syncs all of the copy, and drops it from the page cache, so that the next reader reads the
    /// disk. No process may have it open. Without `keep_lock`, this removes the writer's lock file.
    ///
    /// # Errors
    /// When another file is left beside the database, or the disk fails.
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

    /// Renames the copy to the target, which must not exist. Call [`Target::must_last`] then.
    ///
    /// # Errors
    /// When something has that name by now, or the disk fails; nothing is renamed then.
    pub(super) fn name(self, target: &Target) -> Result<(), Error> {
        let copy = self.copy();
        let flags = RenameFlags::RENAME_NOREPLACE;
        let named = match renameat2(AT_FDCWD, &copy, AT_FDCWD, &target.path, flags) {
            // Without this flag of the file system, a rename can still replace no more than an
            // empty directory.
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
        Ok(())
    }

    /// Removes the copy, but no file that a copy cannot contain.
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
        for file in store::FILES {
            gone(fs::remove_file(copy.join(file)))?;
        }
        gone(fs::remove_dir(&copy))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // The next run removes or reports what cannot be removed now.
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
