//! A vault's directory and the files in it, and the check that they still are the ones that were
//! opened.
//!
//! Nothing here opens the database or its WAL: a process loses its POSIX locks on a file when it
//! closes *any* descriptor of that file, so SQLite alone may open them. This module uses `stat`.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::statfs::statfs;
use nix::sys::statvfs::FsFlags;

use super::{StoreError, StoreErrorKind as Kind};

const DATABASE: &str = "vault.db";
const LOCK: &str = "lock";
/// All files that a vault without a mount can have.
pub const FILES: [&str; 9] = [
    DATABASE,
    "vault.db-wal",
    "vault.db-shm",
    "vault.db-journal",
    "vault.db.new",
    "vault.db.new-wal",
    "vault.db.new-shm",
    "vault.db.new-journal",
    LOCK,
];
/// The name of the socket on which a mount for writing answers. The store knows only the name.
pub const SOCKET: &str = "control.sock";

/// File systems whose shared memory, locks or syncs SQLite cannot rely on. The magic numbers come
/// from linux/magic.h, or from the sources of file systems outside the kernel.
const UNSAFE_FILESYSTEMS: [(u32, &str); 20] = [
    (0x6969, "NFS"),
    (0x517B, "SMB"),
    (0xFF53_4D42, "CIFS"),
    (0xFE53_4D42, "SMB2"),
    (0x0102_1997, "9p"),
    (0x6573_5546, "FUSE or virtiofs"),
    (0x5346_414F, "AFS"),
    (0x6B41_4653, "AFS"),
    (0x00C3_6400, "Ceph"),
    (0x7375_7245, "Coda"),
    (0x564C, "NCP"),
    (0x0116_1970, "GFS2"),
    (0x7461_636F, "OCFS2"),
    (0x0BD0_0BD0, "Lustre"),
    (0x4750_4653, "GPFS"),
    (0x786F_4256, "a VirtualBox shared folder"),
    (0xBACB_ACBC, "a VMware shared folder"),
    (0x1983_0326, "BeeGFS"),
    (0x2003_0528, "OrangeFS"),
    (0xAAD7_AAEA, "PanFS"),
];

pub(super) type Identity = (u64, u64);

/// The state of a vault's files at some moment: sizes, and times of the last change, in seconds and
/// nanoseconds. An attacker who changes a file can set its mtime, but not its ctime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footprint {
    changes: u64,
    database: Option<[i64; 5]>,
    wal: Option<[i64; 5]>,
}

impl Footprint {
    /// That of a store without files here.
    pub(super) fn of_changes(changes: u64) -> Self {
        Self {
            changes,
            database: None,
            wal: None,
        }
    }
}

/// A vault's directory, whose path was resolved once.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) directory: PathBuf,
    pub(super) database: PathBuf,
    pub(super) lock: PathBuf,
    wal: PathBuf,
}

impl Place {
    /// Resolves `directory`, and follows symlinks on the way to it, here and never again.
    pub(super) fn locate(directory: &Path, unsafe_filesystem: bool) -> Result<Self, StoreError> {
        let resolved = fs::canonicalize(directory)
            .map_err(|error| StoreError::of_file("cannot find the vault", directory, &error))?;
        let metadata = fs::metadata(&resolved)
            .map_err(|error| StoreError::of_file("cannot look at the vault", &resolved, &error))?;
        if !metadata.is_dir() {
            return Err(StoreError::new(
                Kind::NotAVault,
                format!(
                    "{} is no directory, and a vault is one",
                    directory.display()
                ),
            ));
        }
        if !unsafe_filesystem {
            refuse_unsafe_filesystem(&resolved)?;
        }
        Ok(Self {
            database: resolved.join(DATABASE),
            lock: resolved.join(LOCK),
            wal: resolved.join("vault.db-wal"),
            directory: resolved,
        })
    }

    /// Checks the files before SQLite touches them.
    pub(super) fn look(&self) -> Result<Opened, StoreError> {
        let not_a_vault = |why: &str| {
            StoreError::new(
                Kind::NotAVault,
                format!("{}: {why}", self.directory.display()),
            )
        };
        let Some(database) = regular_file(&self.database)? else {
            return Err(not_a_vault(
                "there is no vault here; `secretfs init` makes one",
            ));
        };
        if database.len() == 0 {
            return Err(not_a_vault("vault.db is empty"));
        }
        // SQLite would play a hot rollback journal back into the database at the first read. A
        // vault never has one: it is in WAL mode from its first moment.
        if regular_file(&self.directory.join("vault.db-journal"))?.is_some() {
            return Err(StoreError::new(
                Kind::Corrupt,
                format!(
                    "{}: vault.db-journal is no file of a vault; somebody put it there",
                    self.directory.display()
                ),
            ));
        }
        file_of_its_own(&self.directory.join("vault.db-shm"))?;
        Ok(Opened {
            database: identity(&database),
            changed: changed(&database),
            still: AtomicBool::new(false),
            taken_over: AtomicBool::new(false),
            wal: OnceLock::new(),
            wal_existed: file_of_its_own(&self.wal)?.is_some(),
        })
    }

    /// The path of the WAL, which may not exist.
    pub(super) fn wal(&self) -> &Path {
        &self.wal
    }

    /// Length of the WAL in bytes; 0 if it does not exist.
    pub(super) fn wal_len(&self) -> u64 {
        fs::symlink_metadata(&self.wal).map_or(0, |metadata| metadata.len())
    }

    fn is_on_read_only_medium(&self) -> bool {
        let flags = nix::sys::statvfs::statvfs(&self.directory).map(|found| found.flags());
        flags.is_ok_and(|flags| flags.contains(FsFlags::ST_RDONLY))
    }

    /// Whether no process can write here, and the database holds everything.
    pub(super) fn is_still(&self) -> bool {
        self.is_on_read_only_medium() && self.wal_len() == 0
    }

    /// Refuses a vault whose WAL holds commits: reading those would create files beside the
    /// database.
    pub(super) fn must_be_in_one_file(&self) -> Result<(), StoreError> {
        match self.wal_len() {
            0 => Ok(()),
            _ => Err(StoreError::new(
                Kind::NotAVault,
                format!(
                    "{} is no backup: vault.db-wal beside vault.db holds what is not in vault.db \
                     yet, as in a vault in use or a copy of one; make a backup of it with \
                     `secretfs backup`",
                    self.directory.display()
                ),
            )),
        }
    }

    /// Explains an error of opening the database if the cause is a WAL on a read-only medium.
    pub(super) fn explain(&self, error: StoreError) -> StoreError {
        if error.kind != Kind::Io || self.wal_len() == 0 || !self.is_on_read_only_medium() {
            return error;
        }
        StoreError::new(
            error.kind,
            format!(
                "{error}; vault.db-wal beside it holds what is not in vault.db yet, and cannot be read \
                 without vault.db-shm, which cannot be made on a file system that is read-only: copy the \
                 vault to where it can be written, or mount and unmount it there before it is put here"
            ),
        )
    }

    /// Whether a vault that was opened as still has changed since. It can if the file system is
    /// read-only at this place alone (a read-only bind mount).
    pub(super) fn has_stirred(&self, opened: &Opened) -> bool {
        let found = fs::symlink_metadata(&self.database);
        self.wal_len() > 0 || found.is_ok_and(|found| changed(&found) != opened.changed)
    }

    /// The state of the files, together with the store's number of `changes`.
    pub(super) fn footprint(&self, changes: u64) -> Result<Footprint, StoreError> {
        let of = |path: &Path| match fs::symlink_metadata(path) {
            Ok(found) => Ok(Some([
                found.size() as i64,
                found.mtime(),
                found.mtime_nsec(),
                found.ctime(),
                found.ctime_nsec(),
            ])),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::of_file("cannot look at", path, &error)),
        };
        Ok(Footprint {
            changes,
            database: of(&self.database)?,
            wal: of(&self.wal)?,
        })
    }

    /// Remembers the identity of the WAL. Callers do this after the first read, since the WAL may
    /// not exist before.
    pub(super) fn remember_wal(&self, opened: &Opened) {
        if let Ok(metadata) = fs::symlink_metadata(&self.wal) {
            opened.wal.get_or_init(|| identity(&metadata));
        }
    }

    /// Checks that database and WAL at their paths still are the files that were opened. They are
    /// not if the operator has copied a backup over the vault, or moved its directory away: nobody
    /// would ever see a commit then.
    pub(super) fn check_unmoved(&self, opened: &Opened) -> Result<(), StoreError> {
        let same = |path: &Path, expected: &Identity| {
            fs::symlink_metadata(path).is_ok_and(|found| identity(&found) == *expected)
        };
        if same(&self.database, &opened.database)
            && opened.wal.get().is_none_or(|wal| same(&self.wal, wal))
        {
            return Ok(());
        }
        Err(StoreError::new(
            Kind::Moved,
            format!(
                "{} is no longer the file that was opened: the vault was moved, removed or \
                 replaced; unmount, put it back and mount again",
                self.database.display()
            ),
        ))
    }
}

/// The files as found when the vault was opened.
#[derive(Debug)]
pub(super) struct Opened {
    database: Identity,
    /// The last change of the database.
    changed: Changed,
    /// The database is read as a file that nobody changes.
    still: AtomicBool,
    /// Closing tidies what a killed writer left in the WAL.
    taken_over: AtomicBool,
    wal: OnceLock<Identity>,
    /// A WAL existed, perhaps an empty one.
    pub(super) wal_existed: bool,
}

impl Opened {
    /// Whether the database is read as a file that nobody changes.
    pub(super) fn is_still(&self) -> bool {
        self.still.load(Ordering::Acquire)
    }

    /// Sets whether it is read so from now on.
    pub(super) fn set_still(&self, still: bool) {
        self.still.store(still, Ordering::Release);
    }

    /// Takes over the WAL that a killed writer left.
    pub(super) fn take_over(&self) {
        self.taken_over.store(true, Ordering::Release);
    }

    /// Whether that was done.
    pub(super) fn is_taken_over(&self) -> bool {
        self.taken_over.load(Ordering::Acquire)
    }

    /// Whether `found` is the WAL.
    pub(super) fn is_wal(&self, found: Identity) -> bool {
        self.wal.get() == Some(&found)
    }
}

/// Size, and seconds and nanoseconds of the last change.
type Changed = (u64, i64, i64);

fn changed(metadata: &Metadata) -> Changed {
    (metadata.size(), metadata.mtime(), metadata.mtime_nsec())
}

/// Device and inode.
pub(super) fn identity(metadata: &Metadata) -> Identity {
    (metadata.dev(), metadata.ino())
}

/// The regular file at `path`, without following a symlink; `None` if there is none.
fn regular_file(path: &Path) -> Result<Option<Metadata>, StoreError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() => Ok(Some(metadata)),
        Ok(_) => Err(StoreError::new(
            Kind::NotAVault,
            format!(
                "{} is a symlink or a special file; a vault's files must be regular files in its \
                 directory",
                path.display()
            ),
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoreError::of_file("cannot look at", path, &error)),
    }
}

/// The same for a file that SQLite creates and overwrites. A file with a hard link elsewhere is
/// refused: it may belong to another program.
fn file_of_its_own(path: &Path) -> Result<Option<Metadata>, StoreError> {
    let found = regular_file(path)?;
    match &found {
        Some(metadata) if metadata.nlink() > 1 => Err(StoreError::new(
            Kind::NotAVault,
            format!(
                "{} has another name somewhere else (a hard link), and that file would be \
                 overwritten; see who has made it, and remove one of the two names",
                path.display()
            ),
        )),
        _ => Ok(found),
    }
}

/// Refuses a directory on a file system that cannot keep the promises a vault needs.
///
/// # Errors
/// [`UnsafeFilesystem`](Kind::UnsafeFilesystem) with the name of the file system.
pub fn refuse_unsafe_filesystem(directory: &Path) -> Result<(), StoreError> {
    let status = statfs(directory).map_err(|error| {
        StoreError::of_file(
            "cannot look at the file system of",
            directory,
            &error.into(),
        )
    })?;
    // The magic numbers have 32 bits; type and sign of the field depend on the platform.
    let magic = status.filesystem_type().0 as u32;
    match UNSAFE_FILESYSTEMS.iter().find(|(known, _)| *known == magic) {
        None => Ok(()),
        Some((_, name)) => Err(StoreError::new(
            Kind::UnsafeFilesystem,
            format!(
                "{} lies on {name}, which does not keep the promises that a vault needs (locks, \
                 shared memory, syncs); move it to a local disk, or pass -o unsafe-filesystem if \
                 one host alone uses it",
                directory.display()
            ),
        )),
    }
}
