//! Local keys that systemd hands to a unit as credentials: decrypted by the TPM or a key of the host,
//! kept in memory that is not swapped out, and gone with the unit.
//!
//! The credential `secretfs.NAME.key` holds what the file of the key `NAME` holds, to the byte, and
//! is used in its stead. It can only be read: who changes a key changes the file that the credential
//! was made from, and makes another one.
//!
//! Must never take another key because the credential cannot be used, nor trust one that others than
//! its owner and systemd could have written or read.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use nix::sys::stat::{FileStat, fstat};
use nix::unistd::geteuid;

use super::dir::{self, SUFFIX, check_private};
use super::record::Record;
use crate::kms::{KmsError, KmsErrorKind};

/// Where systemd says that the credentials of a unit are.
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
        // Absolute at once: a daemon changes its working directory.
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

    /// Where the key `name` is, if it is here.
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
            // Not before there is something to use: what is in there may be of no concern.
            let stat = fstat(&fd).map_err(|e| dir::io_error("examine", &self.path, e))?;
            check_lent(&stat, &self.path, "0500")?;
        }
        Ok(record)
    }

    /// The names of all keys, in no order.
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

    /// What is said to who would change the key `name`.
    pub(super) fn read_only(&self, name: &str) -> KmsError {
        dir::error(
            KmsErrorKind::Configuration,
            format!(
                "local-kms://{name} is the credential {}, which can only be read; change the key file that it was made from, without {CREDENTIALS_VARIABLE}, make the credential anew with systemd-creds, and start the unit again",
                self.file(name).display()
            ),
        )
    }

    /// What is said of a key whose time is over, and which cannot be erased here.
    pub(super) fn expired(&self, name: &str) -> KmsError {
        dir::error(
            KmsErrorKind::NotFound,
            format!(
                "local-kms://{name} has been deleted: the date is over that the credential {} bears; remove the credential, or make it anew from a key that serves",
                self.file(name).display()
            ),
        )
    }
}

/// Refuses what is neither the caller's alone nor lent to the caller by root. systemd makes the
/// directory 0500 and the files 0400. To a unit of another user it gives them away, or, where they
/// can have an access control list, lends them by that; then the bits of the group show its mask.
fn check_lent(stat: &FileStat, path: &Path, mode: &str) -> Result<(), KmsError> {
    let lent = stat.st_uid == 0 && !geteuid().is_root() && stat.st_mode & 0o027 == 0;
    if lent {
        return Ok(());
    }
    check_private(stat, path, mode)
}
