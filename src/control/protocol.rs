//! The protocol of `control.sock`, in the directory of a vault that is mounted for writing. It is a second
//! door to the control plane, for users who do not see the mount (it is in a container, or in another
//! mount namespace).
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

/// An answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Answer {
    /// The command is begun, and sure to be done.
    Begun,
    /// The mount has ended, and everything is on disk.
    Ended {
        /// The last commit of the vault.
        commit: u64,
    },
    /// The content of `.secretfs/status`.
    Status(Value),
    /// The content of `.secretfs/audit`.
    Audit(Vec<Value>),
    /// The daemon does not do it.
    Refused {
        /// The errno's name, `EBUSY` for one.
        errno: String,
        /// In words.
        why: String,
    },
}

/// Names a directory, by its device and inode number.
pub(super) fn mark(directory: &Metadata) -> String {
    format!("{}:{}", directory.dev(), directory.ino())
}

/// A path of an open file, however long its own path is, and wherever it has moved.
pub(super) fn path_of(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}
