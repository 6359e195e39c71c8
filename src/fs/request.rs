//! The types of requests and answers.

use std::time::Duration;

use crate::vault::{Kind, Timestamp, Whose};

use super::errno::Errno;

/// The callback of an operation, which gets its result.
pub type Done<T> = Box<dyn FnOnce(Result<T, Errno>) + Send>;

/// The caller of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// Thread id; 0 if it is not visible from here.
    pub pid: u32,
}

impl Caller {
    /// The user whose share of the disk's time the request uses.
    pub(super) fn whose(&self) -> Whose {
        Whose::of(self.uid)
    }
}

/// The attributes that `stat` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Inode number.
    pub ino: u64,
    /// Kind of the node.
    pub kind: Kind,
    /// Permission bits, set-id bits and sticky bit.
    pub mode: u32,
    /// Number of links.
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
    /// How long the kernel may keep the attributes.
    pub ttl: Duration,
    /// The version of a file's content.
    pub version: u64,
}

/// A file handle, which the kernel passes with every request for an open file.
pub type FileHandle = u64;

/// The access mode of a handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Reading is allowed.
    pub read: bool,
    /// Writing is allowed.
    pub write: bool,
    /// Every write goes to the end.
    pub append: bool,
}

impl Access {
    /// The access that open(2)'s flags ask for.
    pub fn from_flags(flags: i32) -> Self {
        let mode = flags & libc::O_ACCMODE;
        Self {
            read: mode == libc::O_RDONLY || mode == libc::O_RDWR,
            write: mode == libc::O_WRONLY || mode == libc::O_RDWR,
            append: flags & libc::O_APPEND != 0,
        }
    }
}

/// The callback of a read, which is called once with the bytes.
pub type ReadDone = Box<dyn FnOnce(Result<&[u8], Errno>) + Send>;

/// Facts about the caller of a write or read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Transfer {
    /// The kernel's lock owner; `None` for the page cache (`mmap`, `sendfile`, `splice`).
    pub lock_owner: Option<u64>,
    /// The writer is not privileged, so set-id bits are cleared.
    pub kill_set_id: bool,
    /// The calling thread; 0 if it is not visible from here.
    pub pid: u32,
}

/// The part of `bytes` that a read at `offset` gets.
pub(crate) fn window(bytes: &[u8], offset: u64, size: u32) -> &[u8] {
    let start = usize::try_from(offset)
        .unwrap_or(usize::MAX)
        .min(bytes.len());
    let end = start.saturating_add(size as usize).min(bytes.len());
    &bytes[start..end]
}
