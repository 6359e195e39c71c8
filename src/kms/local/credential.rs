//! Local keys that systemd passes to a unit as credentials. The TPM or a key of the host decrypts
//! them, memory that is never swapped out holds them, and they are gone when the unit ends.
//!
//! The credential `secretfs.NAME.key` has the bytes of the file of the key `NAME`, and replaces
//! that file. It is read-only: to change a key, the operator changes the file that the credential
//! was made from, and makes a new credential.
//!
//! This module must never fall back to another key when the credential cannot be used, nor trust a
//! credential that anybody but its owner and systemd could have read or written.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use nix::sys::stat::{FileStat, fstat};
use nix::unistd::geteuid;

use super::dir::{self, SUFFIX, check_private};
use super::record::Record;
use crate::kms::{KmsError, KmsErrorKind};

/// In this variable systemd names the directory of a unit's credentials.
pub const CREDENTIALS_VARIABLE: &str = "CREDENTIALS_DIRECTORY";
const PREFIX: &str = "secretfs.";

/// The directory of a unit's credentials.
#[derive(Clone, Debug)]
pub(super) struct Credentials {
    path: PathBuf,
}

impl Credentials {
    /// The directory that the environment names. Touches nothing.
    pub(super) fn named(variable: Option<OsString>) -> Result<Option<Self>, KmsError> {
        let Some(path) = variable.filter(|path| !path.is_empty()) else {
            return Ok(None);
        };
        // Make it absolute now: the daemon changes its working directory.
        match std::path::absolute(&path) {
            Ok(path) => Ok(Some(Self { path })),
            Err(e) => Err(dir::error(
                KmsErrorKind::Configuration,
                format!(
                    "the directory {} that {CREDENTIALS_VARIABLE} names has no absolute path: {e}; correct or unset it",
                    Path::new(&path).display()
                ),
            )),
        }
    }

    /// The directory.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The path of the credential for the key `name`.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(format!("{PREFIX}{name}{SUFFIX}"))
    }

    /// The key `name`; `None` if there is no such credential.
    pub(super) fn read(&self, name: &str) -> Result<Option<Record>, KmsError> {
        let Some(fd) = dir::open_directory("the credentials directory", &self.path)? else {
            return Ok(None);
        };
        let record = dir::read_key(&fd, &self.file(name), name, |stat, path| {
            check_lent(stat, path, "0400")
        })?;
        if record.is_some() {
            // Only now: the directory's mode does not matter while it holds no key of ours.
            let stat = fstat(&fd).map_err(|e| dir::io_error("examine", &self.path, e))?;
            check_lent(&stat, &self.path, "0500")?;
        }
        Ok(record)
    }

    /// The names of all keys, unordered.
    pub(super) fn names(&self) -> Result<Vec<String>, KmsError> {
        let Some(fd) = dir::open_directory("the credentials directory", &self.path)? else {
            return Ok(Vec::new());
        };
        let name = |file: String| {
            let name = file.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
            (!name.starts_with('.')).then(|| name.to_owned())
        };
        let files = dir::entries(&fd, &self.path)?;
        Ok(files.into_iter().filter_map(name).collect())
    }

    /// The error for an attempt to change the key `name`.
    pub(super) fn read_only(&self, name: &str) -> KmsError {
        dir::error(
            KmsErrorKind::Configuration,
            format!(
                "local-kms://{name} is the credential {}, which can only be read; change the key file that it was made from, without {CREDENTIALS_VARIABLE}, make the credential anew with systemd-creds, and start the unit again",
                self.file(name).display()
            ),
        )
    }

    /// The error for a key whose deletion date has passed, and which cannot be erased here.
    pub(super) fn expired(&self, name: &str) -> KmsError {
        dir::error(
            KmsErrorKind::NotFound,
            format!(
                "local-kms://{name} is deleted: the deletion date in the credential {} has passed; remove the credential, or make a new one from an enabled key",
                self.file(name).display()
            ),
        )
    }
}

/// Refuses a file that is neither the caller's alone nor lent to the caller by root. systemd makes
/// the directory 0500 and the files 0400. For a unit of another user, it changes their owner, or
/// lends them through an access control list where the file system has those; the group's mode bits
/// then show the list's mask.
fn check_lent(stat: &FileStat, path: &Path, mode: &str) -> Result<(), KmsError> {
    let lent = stat.st_uid == 0 && !geteuid().is_root() && stat.st_mode & 0o027 == 0;
    if lent {
        return Ok(());
    }
    check_private(stat, path, mode)
}
