//! The directory of the local KMS: checks its owner and mode, reads and replaces its files.
//!
//! This module must never follow a symbolic link, read a file that others could have read or
//! written, replace a key that another process created, or leave half a file under a key's name. It
//! reaches every file through the directory's descriptor, so that nobody can exchange the directory
//! meanwhile.

use std::fs::{DirBuilder, File, TryLockError};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use nix::unistd::{UnlinkatFlags, fsync, geteuid, linkat, unlinkat};
use zeroize::Zeroizing;

use super::record::{MAX_LEN, Record};
use crate::crypto::secret::fill_random;
use crate::kms::{KmsError, KmsErrorKind};

const LOCK: &str = ".lock";
const TEMPORARY: &str = ".tmp-";
/// The ending of a key file's name.
pub(super) const SUFFIX: &str = ".key";

/// The open directory, which belongs to the caller alone.
pub(super) struct KeyDir {
    path: PathBuf,
    fd: OwnedFd,
}

/// Held while keys are created, changed or erased. Readers need no lock: files are replaced whole.
pub(super) struct DirLock(#[expect(dead_code, reason = "held, not read")] File);

/// Whether an attempt created the key, or found it there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Created {
    Now,
    Before,
}

impl KeyDir {
    /// Opens `path`; `None` if it does not exist.
    pub(super) fn open(path: &Path) -> Result<Option<Self>, KmsError> {
        let Some(fd) = open_directory("the local KMS's directory", path)? else {
            return Ok(None);
        };
        let stat = fstat(&fd).map_err(|e| io_error("examine", path, e))?;
        check_private(&stat, path, "0700")?;
        Ok(Some(Self {
            path: path.to_owned(),
            fd,
        }))
    }

    /// Opens `path`; creates it first if it does not exist.
    pub(super) fn open_or_create(path: &Path) -> Result<Self, KmsError> {
        if let Some(dir) = Self::open(path)? {
            return Ok(dir);
        }
        let made: Vec<&Path> = path.ancestors().take_while(|dir| !dir.exists()).collect();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|e| io_error("create the local KMS's directory", path, errno(&e)))?;
        // Without this, a power failure could remove the directory and its keys.
        for parent in made.iter().filter_map(|dir| dir.parent()) {
            let synced = File::open(parent).and_then(|parent| parent.sync_all());
            synced.map_err(|e| io_error("sync", parent, errno(&e)))?;
        }
        Self::open(path)?.ok_or_else(|| io_error("open", path, Errno::ENOENT))
    }

    /// The path of a key's file.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(file_name(name))
    }

    /// The key `name`; `None` if there is none.
    pub(super) fn read(&self, name: &str) -> Result<Option<Record>, KmsError> {
        read_key(&self.fd, &self.file(name), name, |stat, path| {
            check_private(stat, path, "0600")
        })
    }

    /// The names of all keys, sorted.
    pub(super) fn names(&self) -> Result<Vec<String>, KmsError> {
        let mut names: Vec<String> = self
            .entries()?
            .into_iter()
            .filter(|name| !name.starts_with('.'))
            .filter_map(|name| name.strip_suffix(SUFFIX).map(str::to_owned))
            .collect();
        names.sort();
        Ok(names)
    }

    /// Waits at most `wait` for other processes that change keys here, and removes the temporary
    /// files of those that died.
    pub(super) fn lock(&self, wait: Duration) -> Result<DirLock, KmsError> {
        let path = self.path.join(LOCK);
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = openat(&self.fd, LOCK, flags, Mode::from_bits_truncate(0o600))
            .map(File::from)
            .map_err(|e| io_error("open the lock file", &path, e))?;
        let start = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if start.elapsed() < wait => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(error(
                        KmsErrorKind::Unreachable,
                        format!(
                            "another process has held {} for {} s; try again, or see who with `fuser`",
                            path.display(),
                            wait.as_secs()
                        ),
                    ));
                }
                Err(TryLockError::Error(e)) => return Err(io_error("lock", &path, errno(&e))),
            }
        }
        for name in self
            .entries()?
            .iter()
            .filter(|name| name.starts_with(TEMPORARY))
        {
            self.wipe(name)?;
        }
        Ok(DirLock(file))
    }

    /// Stores a new key; never replaces one.
    pub(super) fn create(&self, _lock: &DirLock, record: &Record) -> Result<Created, KmsError> {
        let path = self.file(&record.name);
        let temporary = self.write_temporary(record)?;
        // A link fails if the name exists; a rename would replace the file.
        let name = file_name(&record.name);
        let linked = linkat(
            &self.fd,
            temporary.as_str(),
            &self.fd,
            name.as_str(),
            AtFlags::empty(),
        );
        let removed = unlinkat(&self.fd, temporary.as_str(), UnlinkatFlags::NoRemoveDir);
        match linked {
            Ok(()) => {}
            Err(Errno::EEXIST) => return Ok(Created::Before),
            Err(e) => return Err(io_error("create the key file", &path, e)),
        }
        removed.map_err(|e| io_error("clear up beside", &path, e))?;
        self.sync()?;
        Ok(Created::Now)
    }

    /// Replaces a key's file in one step.
    pub(super) fn replace(&self, _lock: &DirLock, record: &Record) -> Result<(), KmsError> {
        let temporary = self.write_temporary(record)?;
        let name = file_name(&record.name);
        renameat(&self.fd, temporary.as_str(), &self.fd, name.as_str())
            .map_err(|e| io_error("replace the key file", &self.file(&record.name), e))?;
        self.sync()
    }

    /// Overwrites and removes a key's file.
    pub(super) fn erase(&self, _lock: &DirLock, name: &str) -> Result<(), KmsError> {
        self.wipe(&file_name(name))
    }

    /// Overwrites and removes a file. Overwriting helps little on file systems that copy on write,
    /// and much on the others. A file that has another link is only unlinked: a creator that died
    /// between link and unlink left the key itself under a temporary name, too.
    fn wipe(&self, name: &str) -> Result<(), KmsError> {
        let path = self.path.join(name);
        let flags = OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let file = match openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(Errno::ENOENT) => return Ok(()),
            Err(e) => return Err(io_error("erase", &path, e)),
        };
        let overwrite = |mut file: File| {
            let metadata = file.metadata()?;
            if metadata.nlink() > 1 {
                return Ok(());
            }
            let len = metadata.len().min(MAX_LEN as u64);
            std::io::copy(&mut std::io::repeat(0).take(len), &mut file)?;
            file.sync_all()
        };
        overwrite(file).map_err(|e| io_error("overwrite", &path, errno(&e)))?;
        unlinkat(&self.fd, name, UnlinkatFlags::NoRemoveDir)
            .map_err(|e| io_error("remove", &path, e))?;
        self.sync()
    }

    fn write_temporary(&self, record: &Record) -> Result<String, KmsError> {
        let path = self.file(&record.name);
        let bytes = record
            .encode()
            .ok_or_else(|| damaged(&path, "it cannot be written"))?;
        let mut random = [0; 8];
        fill_random(&mut random).map_err(|e| error(KmsErrorKind::BadAnswer, e.to_string()))?;
        let name = format!("{TEMPORARY}{:016x}", u64::from_le_bytes(random));
        let flags =
            OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut file = openat(
            &self.fd,
            name.as_str(),
            flags,
            Mode::from_bits_truncate(0o600),
        )
        .map(File::from)
        .map_err(|e| io_error("create a file beside", &path, e))?;
        if let Err(e) = file.write_all(&bytes).and_then(|()| file.sync_all()) {
            // If this fails, the next holder of the lock removes the file.
            let _ = unlinkat(&self.fd, name.as_str(), UnlinkatFlags::NoRemoveDir);
            return Err(io_error("write the key file", &path, errno(&e)));
        }
        Ok(name)
    }

    fn sync(&self) -> Result<(), KmsError> {
        fsync(self.fd.as_fd()).map_err(|e| io_error("sync", &self.path, e))
    }

    fn entries(&self) -> Result<Vec<String>, KmsError> {
        entries(&self.fd, &self.path)
    }
}

/// Opens the directory `path`; `None` if it does not exist. Errors call it `what`.
pub(super) fn open_directory(what: &str, path: &Path) -> Result<Option<OwnedFd>, KmsError> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match open(path, flags, Mode::empty()) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::ENOENT) => Ok(None),
        Err(Errno::ELOOP | Errno::ENOTDIR) => Err(error(
            KmsErrorKind::Configuration,
            format!(
                "{what} {} is no directory, or a symbolic link, which is refused; name the real directory",
                path.display()
            ),
        )),
        Err(e) => Err(io_error(&format!("open {what}"), path, e)),
    }
}

/// The key `name` in the file `path` of the directory `dir`; `None` if there is no such file.
/// `private` refuses a file with the wrong owner or mode.
pub(super) fn read_key(
    dir: &OwnedFd,
    path: &Path,
    name: &str,
    private: impl FnOnce(&FileStat, &Path) -> Result<(), KmsError>,
) -> Result<Option<Record>, KmsError> {
    let file = path.file_name().unwrap_or_default();
    // O_NONBLOCK: a FIFO in the file's place must not hang the mount.
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let fd = match openat(dir, file, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::ENOENT) => return Ok(None),
        Err(Errno::ELOOP) => {
            return Err(error(
                KmsErrorKind::Configuration,
                format!(
                    "the key file {} is a symbolic link, which is refused; put the file itself there",
                    path.display()
                ),
            ));
        }
        Err(e) => return Err(io_error("open the key file", path, e)),
    };
    let stat = fstat(&fd).map_err(|e| io_error("examine", path, e))?;
    if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
        return Err(error(
            KmsErrorKind::Configuration,
            format!(
                "the key file {} is no regular file; remove it",
                path.display()
            ),
        ));
    }
    private(&stat, path)?;
    let bytes = read_bounded(File::from(fd), path)?;
    let record = Record::decode(&bytes).map_err(|why| damaged(path, why))?;
    if record.name != name {
        return Err(damaged(
            path,
            "it holds the key of another name: it was renamed",
        ));
    }
    Ok(Some(record))
}

/// The names in a directory. Names that are not UTF-8 belong to no key and are left out.
pub(super) fn entries(dir: &OwnedFd, path: &Path) -> Result<Vec<String>, KmsError> {
    let failed = |e| io_error("list", path, e);
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut dir = nix::dir::Dir::openat(dir, ".", flags, Mode::empty()).map_err(failed)?;
    let mut names = Vec::new();
    for entry in dir.iter() {
        if let Ok(name) = entry.map_err(failed)?.file_name().to_str() {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

pub(super) fn file_name(name: &str) -> String {
    format!("{name}{SUFFIX}")
}

fn read_bounded(mut file: File, path: &Path) -> Result<Zeroizing<Vec<u8>>, KmsError> {
    let failed = |e: std::io::Error| io_error("read the key file", path, errno(&e));
    let len = file.metadata().map_err(failed)?.len();
    let len = usize::try_from(len).ok().filter(|len| *len <= MAX_LEN);
    let len = len.ok_or_else(|| damaged(path, "it is too long"))?;
    // Reserve the right size at once: a vector that grows leaves unwiped copies behind. Files are
    // never changed in place, so the size does not change during the read.
    let mut bytes = Zeroizing::new(vec![0; len]);
    file.read_exact(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// Refuses a file that does not belong to the caller alone.
pub(super) fn check_private(stat: &FileStat, path: &Path, mode: &str) -> Result<(), KmsError> {
    let me = geteuid().as_raw();
    if stat.st_uid != me {
        return Err(error(
            KmsErrorKind::Configuration,
            format!(
                "{} belongs to user {}, but secretfs runs as user {me}: a local KMS is used by its owner alone; run secretfs as that user, or `chown {me} {}`",
                path.display(),
                stat.st_uid,
                path.display()
            ),
        ));
    }
    if stat.st_mode & 0o077 != 0 {
        return Err(error(
            KmsErrorKind::Configuration,
            format!(
                "{} is open to other users (mode {:04o}): whoever reads it can unlock every vault under it; `chmod {mode} {}`, and rotate the key if somebody else could have read it",
                path.display(),
                stat.st_mode & 0o7777,
                path.display()
            ),
        ));
    }
    Ok(())
}

fn damaged(path: &Path, why: &str) -> KmsError {
    error(
        KmsErrorKind::BadAnswer,
        format!(
            "the key file {} cannot be used: {why}; restore it from a backup",
            path.display()
        ),
    )
}

fn errno(e: &std::io::Error) -> Errno {
    e.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

pub(super) fn io_error(what: &str, path: &Path, e: Errno) -> KmsError {
    let (kind, next) = match e {
        Errno::EACCES | Errno::EPERM => (
            KmsErrorKind::Denied,
            "run secretfs as the owner of the local KMS",
        ),
        Errno::EROFS | Errno::ENOSPC | Errno::EDQUOT => (
            KmsErrorKind::Configuration,
            "the local KMS's directory must be writable",
        ),
        _ => (KmsErrorKind::Unreachable, "look at that file system"),
    };
    error(
        kind,
        format!("cannot {what} {}: {}; {next}", path.display(), e.desc()),
    )
}

pub(super) fn error(kind: KmsErrorKind, message: String) -> KmsError {
    KmsError { kind, message }
}
