//! The protocol of `control.sock`, in the directory of a vault that is mounted for writing. It is a
//! second way to the control plane, for users who do not see the mount (because it is in a
//! container, or in another mount namespace).
//!
//! A connection carries one question in one line, `DEVICE:INODE status`, `DEVICE:INODE audit`,
//! `DEVICE:INODE end` or `DEVICE:INODE control COMMAND`, and one answer, a JSON value in one line;
//! `end` has two answers, the second when the mount has ended. The numbers name the directory that
//! the client means, in case a socket was moved elsewhere. Each side checks the user of the other.
//! Nothing secret is sent.
//!
//! New versions add members to answers, and never change or remove one: client and daemon may
//! differ in version. A program that writes a command to `.secretfs/control` reads the same answer
//! through the same descriptor.

use std::fs::{File, Metadata};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use super::command::{MAX_COMMAND, Refusal};
use crate::error::Class;

/// Longest question, in bytes.
pub(super) const MAX_QUESTION: usize = MAX_COMMAND + 64;
/// Longest answer, in bytes. The history grows as long as the vault exists.
pub(super) const MAX_ANSWER: usize = 64 << 20;

/// An answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Answer {
    /// The command has begun, and will complete.
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
    /// The daemon refuses.
    Refused {
        /// The class, by its name. A daemon of before does not tell it.
        #[serde(default, serialize_with = "as_name", deserialize_with = "by_name")]
        class: Option<Class>,
        /// The errno's name, `EBUSY` for one.
        errno: String,
        /// The reason, for people.
        why: String,
    },
}

/// The outcome of a command.
impl From<Result<(), Refusal>> for Answer {
    fn from(begun: Result<(), Refusal>) -> Self {
        begun.map_or_else(Self::from, |()| Self::Begun)
    }
}

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Self {
        Self::Refused {
            class: Some(refusal.class),
            errno: refusal.errno.name(),
            why: refusal.why,
        }
    }
}

impl Answer {
    /// Its one line.
    pub(super) fn line(&self) -> serde_json::Result<Vec<u8>> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        Ok(line)
    }
}

// Serde calls it with a reference to the member.
#[allow(clippy::ref_option)]
fn as_name<S: Serializer>(class: &Option<Class>, to: S) -> Result<S::Ok, S::Error> {
    class.map(Class::as_str).serialize(to)
}

/// A class that only another program knows is none.
fn by_name<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Class>, D::Error> {
    let name = Option::<String>::deserialize(from)?;
    Ok(name.and_then(|name| Class::from_name(&name)))
}

/// The name of a directory on the wire: its device and inode number.
pub(super) fn mark(directory: &Metadata) -> String {
    format!("{}:{}", directory.dev(), directory.ino())
}

/// A short path to an open file, even if its own path is long or has changed.
pub(super) fn path_of(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_and_daemon_of_different_versions_understand_each_other() {
        let of = |json: &str| serde_json::from_str::<Answer>(json).expect("an answer");
        let refused = |class| Answer::Refused {
            class,
            errno: "EBUSY".to_owned(),
            why: "w".to_owned(),
        };
        let before = r#"{"refused":{"errno":"EBUSY","why":"w"}}"#;
        assert_eq!(of(before), refused(None));
        let later = r#"{"refused":{"class":"tired","errno":"EBUSY","why":"w","until":1}}"#;
        assert_eq!(of(later), refused(None));
        let now = refused(Some(Class::Busy));
        let line = now.line().expect("a line");
        assert_eq!(
            line,
            *b"{\"refused\":{\"class\":\"busy\",\"errno\":\"EBUSY\",\"why\":\"w\"}}\n"
        );
        assert_eq!(of(&String::from_utf8_lossy(&line)), now);
    }
}
