//! Converts between the kernel's types and those of the file system.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    FileAttr, FileType, FopenFlags, Generation, INodeNo, LockOwner, RenameFlags, Request,
    TimeOrNow, WriteFlags,
};

use super::super::{Attr, Errno, SetAttributes, Transfer};
use crate::vault::{Kind, NewNode, RenameMode, Timestamp};

/// Limit on one READ or WRITE, in bytes, and so on the part of a secret in a request buffer: the
/// 128 KiB that many programs ask for, wherever in a page their buffer begins.
pub const MAX_TRANSFER: u32 = 132 * 1024;

/// Node ids are never reused, so each has one generation.
pub(super) const GENERATION: Generation = Generation(0);

impl From<Errno> for fuser::Errno {
    fn from(errno: Errno) -> Self {
        fuser::Errno::from_i32(errno.0)
    }
}

pub(super) fn kind(kind: Kind) -> FileType {
    match kind {
        Kind::File | Kind::System => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
    }
}

fn time(stamp: Timestamp) -> SystemTime {
    let whole = Duration::from_secs(stamp.seconds.unsigned_abs());
    let part = Duration::from_nanos(stamp.nanoseconds.into());
    let base = match stamp.seconds >= 0 {
        true => UNIX_EPOCH.checked_add(whole),
        false => UNIX_EPOCH.checked_sub(whole),
    };
    base.and_then(|base| base.checked_add(part))
        .unwrap_or(UNIX_EPOCH)
}

fn stamp(time: TimeOrNow) -> Timestamp {
    match time {
        // For a time before 1970, fuser counts nanoseconds backwards from the second.
        TimeOrNow::SpecificTime(time) => match UNIX_EPOCH.duration_since(time) {
            Ok(before) if !before.is_zero() => Timestamp {
                seconds: i64::try_from(before.as_secs()).map_or(i64::MIN, |s| -s),
                nanoseconds: before.subsec_nanos(),
            },
            Ok(_) | Err(_) => time.into(),
        },
        TimeOrNow::Now => Timestamp::now(),
    }
}

pub(super) fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.size.div_ceil(512),
        atime: time(attr.accessed),
        mtime: time(attr.modified),
        ctime: time(attr.changed),
        crtime: UNIX_EPOCH,
        kind: kind(attr.kind),
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.links,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.device,
        blksize: 4096,
        flags: 0,
    }
}

/// Flags that keep open files out of the page cache, and make the kernel send no FLUSH for readers.
pub(super) fn open_flags(flushes: bool) -> FopenFlags {
    match flushes {
        true => FopenFlags::FOPEN_DIRECT_IO,
        false => FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH,
    }
}

/// The kind of node that mknod(2) asks for; `None` if there is no such kind.
pub(super) fn made_by_mknod(mode: u32) -> Option<Kind> {
    match mode & libc::S_IFMT {
        libc::S_IFREG | 0 => Some(Kind::File),
        libc::S_IFIFO => Some(Kind::Fifo),
        libc::S_IFSOCK => Some(Kind::Socket),
        libc::S_IFCHR => Some(Kind::CharDevice),
        libc::S_IFBLK => Some(Kind::BlockDevice),
        _ => None,
    }
}

/// The mode of a renameat2(2); `None` for unknown flags.
pub(super) fn rename_mode(flags: RenameFlags) -> Option<RenameMode> {
    if flags.is_empty() {
        Some(RenameMode::Replace)
    } else if flags == RenameFlags::RENAME_NOREPLACE {
        Some(RenameMode::NoReplace)
    } else if flags == RenameFlags::RENAME_EXCHANGE {
        Some(RenameMode::Exchange)
    } else {
        None
    }
}

/// The changes that a SETATTR asks for: mode, owner, group and length, and the two times.
pub(super) fn changes(
    (mode, uid, gid, size): (Option<u32>, Option<u32>, Option<u32>, Option<u64>),
    (accessed, modified): (Option<TimeOrNow>, Option<TimeOrNow>),
) -> SetAttributes {
    SetAttributes {
        mode: mode.map(|mode| mode & 0o7777),
        uid,
        gid,
        size,
        accessed: accessed.map(stamp),
        modified: modified.map(stamp),
    }
}

/// The reader of a READ.
pub(super) fn reading(request: &Request, lock_owner: Option<LockOwner>) -> Transfer {
    Transfer {
        lock_owner: lock_owner.map(|owner| owner.0),
        kill_set_id: false,
        pid: request.pid(),
    }
}

/// The writer of a WRITE.
pub(super) fn writing(
    request: &Request,
    lock_owner: Option<LockOwner>,
    flags: WriteFlags,
) -> Transfer {
    let cached = flags.contains(WriteFlags::FUSE_WRITE_CACHE);
    Transfer {
        lock_owner: lock_owner.map(|owner| owner.0).filter(|_| !cached),
        kill_set_id: flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID),
        pid: request.pid(),
    }
}

/// A new node belongs to the user and group that the kernel names.
pub(super) fn new_node(request: &Request, kind: Kind, mode: u32) -> NewNode {
    NewNode {
        kind,
        mode: mode & 0o7777,
        uid: request.uid(),
        gid: request.gid(),
        device: 0,
        target: Vec::new(),
    }
}
