//! What requests and answers are made of.

use std::time::Duration;

use crate::vault::{Kind, Timestamp};

use super::errno::Errno;
use super::queue::Whose;

/// What an operation tells its caller, when it is done.
pub type Done<T> = Box<dyn FnOnce(Result<T, Errno>) + Send>;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// Thread id, 0 when it cannot be seen from here.
    pub pid: u32,
}

impl Caller {
    /// Whose share of the disk's time what it asks for comes out of.
    pub(super) fn whose(&self) -> Whose {
        Whose::of(self.uid)
    }
}

/// What `stat` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Inode number.
    pub ino: u64,
    /// What it is.
    pub kind: Kind,
    /// Permission bits, set-id bits and sticky bit.
    pub mode: u32,
    /// Links.
    pub links: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number.
    pub device: u32,
    /// Length in bytes.
    pub size: u64,
    /// Last access.
    pub accessed: Timestamp,
    /// Last change of the content.
    pub modified: Timestamp,
    /// Last change of anything.
    pub changed: Timestamp,
    /// How long that may be remembered.
    pub ttl: Duration,
    /// Which version of a file's content that is.
    pub version: u64,
}
