//! The target of a copy of a vault: a path that does not exist yet, at a place where a vault may
//! be.
//!
//! The copy is made and named by paths, so no other user may be able to exchange a directory on the
//! way to the target: paths could lead into another vault then.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Class, Error};
use crate::os::mountinfo::{self, is_under};
use crate::os::reach;
use crate::store;

use super::super::host::apart::real_path;
use super::super::{OpenOptions, VaultError};

/// The target of a copy, as the module describes.
pub(super) struct Target {
    /// The absolute path, with links in its parent resolved.
    pub(super) path: PathBuf,
    pub(super) parent: PathBuf,
    pub(super) name: OsString,
}

impl Target {
    /// The target at `path` for a copy of the vault in `source`.
    ///
    /// # Errors
    /// When something exists there, even a link, or it is no place for a copy of this vault.
    pub(super) fn of(path: &Path, source: &Path, options: &OpenOptions) -> Result<Self, Error> {
        let target = Self::at(path)?;
        target.must_be_outside_of(&real_path(source))?;
        target.must_be_safe(options.unsafe_filesystem)?;
        target.must_be_out_of_reach()?;
        Ok(target)
    }

    fn at(path: &Path) -> Result<Self, Error> {
        let fail = |class, why: &dyn std::fmt::Display| {
            Error::new(class, format!("cannot make {}: {why}", path.display()))
        };
        let absolute = std::path::absolute(path).map_err(|e| fail(Class::Usage, &e))?;
        let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
            return Err(fail(
                Class::Usage,
                &"name a directory that does not exist yet",
            ));
        };
        match absolute.symlink_metadata() {
            Ok(_) => {
                return Err(fail(
                    Class::Exists,
                    &"there is something already, and nothing is ever replaced; choose a path that \
                      does not exist",
                ));
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(fail(Class::Failed, &e)),
        }
        let parent = match parent.canonicalize() {
            Ok(found) if found.is_dir() => found,
            Ok(found) => {
                let why = format!("{} is no directory", found.display());
                return Err(fail(Class::Failed, &why));
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let why = format!(
                    "the directory {} does not exist; make it first",
                    parent.display()
                );
                return Err(fail(Class::Failed, &why));
            }
            Err(e) => {
                let why = format!("cannot look into {}: {e}", parent.display());
                return Err(fail(Class::Failed, &why));
            }
        };
        Ok(Self {
            path: parent.join(name),
            parent,
            name: name.to_owned(),
        })
    }

    /// Refuses a target inside the vault in `directory`, or inside a mount of any vault.
    ///
    /// # Errors
    /// When it is inside one, or the mounts cannot be read.
    fn must_be_outside_of(&self, directory: &Path) -> Result<(), Error> {
        let shown = self.path.display();
        if is_under(&self.path, directory) {
            let why = format!(
                "{shown} lies inside of {}, and a vault has nothing but itself in its directory; \
                 choose a path outside of it",
                directory.display()
            );
            return Err(Error::new(Class::Usage, why));
        }
        let mount = mountinfo::mount_over(&self.parent).map_err(|e| {
            let why = format!("cannot tell on which file system {shown} would lie: {e}");
            Error::new(Class::Failed, why)
        })?;
        match mount.filter(mountinfo::Mount::is_secretfs) {
            Some(mount) => Err(Error::new(
                Class::Usage,
                format!(
                    "{shown} lies in the mount of a vault on {}: what is made there would be \
                     secrets of that; choose a path outside of it",
                    mount.point.display()
                ),
            )),
            None => Ok(()),
        }
    }

    /// Refuses a path whose former vault is still mounted.
    ///
    /// # Errors
    /// When such a mount exists, or the mounts cannot be read.
    pub(super) fn must_not_be_mounted(&self) -> Result<(), Error> {
        let shown = self.path.display();
        let mounts = mountinfo::mounts().map_err(|e| Error::new(Class::Failed, e))?;
        let mut of_it = mounts
            .iter()
            .filter(|mount| mount.is_secretfs() && mount.source == self.path);
        match of_it.next() {
            Some(mount) => Err(Error::new(
                Class::Busy,
                format!(
                    "a vault that was at {shown} is still mounted on {}: unmount it first",
                    mount.point.display()
                ),
            )),
            None => Ok(()),
        }
    }

    /// Refuses a file system that cannot keep the promises a vault needs, as `init` does.
    ///
    /// # Errors
    /// With the name of the file system.
    fn must_be_safe(&self, unsafe_filesystem: bool) -> Result<(), Error> {
        match unsafe_filesystem {
            true => Ok(()),
            false => {
                let safe = store::refuse_unsafe_filesystem(&self.parent);
                safe.map_err(|error| VaultError::Store(error).into())
            }
        }
    }

    /// Refuses a path on which another user could exchange a directory.
    ///
    /// # Errors
    /// With that directory, or when one cannot be examined.
    fn must_be_out_of_reach(&self) -> Result<(), Error> {
        let shown = self.path.display();
        let found = reach::exchangeable(&self.parent).map_err(|e| {
            let why = format!("cannot tell who can write on the way to {shown}: {e}");
            Error::new(Class::Failed, why)
        })?;
        match found {
            None => Ok(()),
            Some(found) => Err(Error::new(
                Class::Failed,
                format!(
                    "cannot make {shown}: others could exchange it for something else while it is \
                     made ({} is in reach: {}); choose a directory where only you and root can \
                     write",
                    found.directory.display(),
                    found.by
                ),
            )),
        }
    }

    /// Makes the entry of the copy, which has its name now, durable.
    ///
    /// # Errors
    /// When the disk fails.
    pub(super) fn must_last(&self) -> Result<(), Error> {
        let synced = File::open(&self.parent).and_then(|parent| parent.sync_all());
        synced.map_err(|e| {
            let why = format!(
                "{} is made, and a power cut may take it away: cannot sync {}: {e}",
                self.path.display(),
                self.parent.display()
            );
            Error::new(Class::Failed, why)
        })
    }
}
