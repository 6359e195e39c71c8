//! `control.sock` in the directory of a vault that is mounted for writing: a second door to what
//! the control directory of the mount is for, for who does not see the mount (it is in a container,
//! or in another mount namespace).
//!
//! A connection is one question in one line, `DEVICE:INODE status`, `DEVICE:INODE audit`,
//! `DEVICE:INODE end` or `DEVICE:INODE control COMMAND`, and one answer, a JSON value in one line; to
//! `end` it is two, of which the second comes when the mount has ended. The numbers are those of
//! the directory that is meant: a socket may have been moved to where it does not belong. Each side
//! looks at who the other is. Nothing secret goes either way.

use std::fs::{File, Metadata};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::command::MAX_COMMAND;

/// Longest question, in bytes.
pub(super) const MAX_QUESTION: usize = MAX_COMMAND + 64;
/// Longest answer: the history grows for as long as there is a vault.
pub(super) const MAX_ANSWER: usize = 64 << 20;

/// What is answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Answer {
    /// The command is begun, and sure to be done.
    Begun,
    /// The mount has ended, and everything is on disk.
    Ended {
        /// How far the vault has come.
        commit: u64,
    },
    /// What `.secretfs/status` shows.
    Status(Value),
    /// What `.secretfs/audit` shows.
    Audit(Vec<Value>),
    /// It is not done.
    Refused {
        /// The errno's name, `EBUSY` for one.
        errno: String,
        /// In words.
        why: String,
    },
}

/// Which directory is meant.
pub(super) fn mark(directory: &Metadata) -> String {
    format!("{}:{}", directory.dev(), directory.ino())
}

/// The path of what `file` is, however long its own path, and wherever it is by now.
pub(super) fn path_of(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}
