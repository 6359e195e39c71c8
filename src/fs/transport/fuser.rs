//! The fuser adapter: converts, calls and replies, and decides nothing.

use std::cell::Cell;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, FileAttr, FileType, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use crate::crypto::memory;
use crate::vault::{Kind, NewNode, RenameMode, Timestamp};

use super::super::entry::FrontDoor;
use super::super::io::Transfer;
use super::super::{Attr, Done, Errno, SetAttributes};
use super::busy_poll::BusyPoll;
use super::session::Serving;
use super::threads::{AtWork, RequestThreads};
use super::who::Known;

/// Bound on what one READ or WRITE transfers, in bytes, and so on what the request buffers ever hold
/// of a secret: the 128 KiB that many programs ask for, wherever in a page their buffer begins.
pub const MAX_TRANSFER: u32 = 132 * 1024;

/// Serves a file system through fuser.
#[derive(Debug)]
pub(super) struct Adapter {
    door: Arc<FrontDoor>,
    threads: Arc<RequestThreads>,
    known: Known,
}

impl Adapter {
    /// Serves what is behind `door`. Threads look for the next request on `device` before they sleep.
    pub(super) fn new(door: Arc<FrontDoor>, device: OwnedFd, serving: Serving) -> Self {
        let busy_poll = BusyPoll::new(device, serving.patience);
        let threads = Arc::new(RequestThreads::new(serving.threads, busy_poll));
        Self {
            door,
            threads,
            known: match serving.idmap {
                true => Known::of_idmapped(serving.is_own),
                false => Known::ByKernel,
            },
        }
    }

    /// The threads that take its requests.
    pub(super) fn threads(&self) -> &Arc<RequestThreads> {
        &self.threads
    }

    /// How a failure is told to who asks for a node by its number.
    fn by_number(&self, request: &Request, ino: INodeNo) -> ByNumber {
        let door = &self.door;
        ByNumber {
            beside_writer: door.vault().is_read_only().then(|| Arc::clone(door)),
            thread: request.pid(),
            ino: ino.0,
        }
    }

    /// To be called first in every request; what is returned stands for its duration.
    fn begin(&self, request: &Request) -> AtWork {
        received(request);
        self.threads.begin()
    }
}

impl From<Errno> for fuser::Errno {
    fn from(errno: Errno) -> Self {
        fuser::Errno::from_i32(errno.0)
    }
}

thread_local! {
    static RECEIVED: Cell<bool> = const { Cell::new(false) };
}

/// Keeps the stack of this thread, and the buffer in which names and contents arrive, out of swap.
/// fuser has one for each thread, and a request lies at its beginning. None of its pages behind the
/// largest request is ever touched.
fn received(request: &Request) {
    if !RECEIVED.replace(true) {
        let start = std::ptr::from_ref(request).cast();
        memory::keep_in(start, MAX_TRANSFER as usize + 4096);
        memory::keep_stack_in();
    }
}

fn kind(kind: Kind) -> FileType {
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
        // fuser counts the nanoseconds of a time before 1970 backwards from its second.
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

fn file_attr(attr: &Attr) -> FileAttr {
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

/// Node ids are never reused, so there is one generation of each.
const GENERATION: Generation = Generation(0);

fn entry(door: &Arc<FrontDoor>, reply: ReplyEntry) -> Box<dyn FnOnce(Result<Attr, Errno>) + Send> {
    let door = Arc::clone(door);
    Box::new(move |result| match result {
        Ok(attr) => {
            door.remember(&attr);
            reply.entry(&attr.ttl, &file_attr(&attr), GENERATION);
        }
        Err(error) => reply.error(error.into()),
    })
}

fn attributes(asked: ByNumber, reply: ReplyAttr) -> Box<dyn FnOnce(Result<Attr, Errno>) + Send> {
    Box::new(move |result| match result {
        Ok(attr) => reply.attr(&attr.ttl, &file_attr(&attr)),
        Err(error) => reply.error(asked.errno(error)),
    })
}

fn empty(reply: ReplyEmpty) -> Box<dyn FnOnce(Result<(), Errno>) + Send> {
    Box::new(move |result| match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error.into()),
    })
}

/// The kernel names a node by its number: if that is gone, the name that it was found by is out
/// of date. For ESTALE the kernel looks the name up again; ENOENT would be the program's.
struct ByNumber {
    /// There it depends on what the thread was told before.
    beside_writer: Option<Arc<FrontDoor>>,
    thread: u32,
    ino: u64,
}

impl ByNumber {
    fn errno(&self, error: Errno) -> fuser::Errno {
        match (error, &self.beside_writer) {
            (error, Some(door)) => door.gone_for(self.thread, self.ino, error).into(),
            (Errno(libc::ENOENT), None) => fuser::Errno::ESTALE,
            (error, None) => error.into(),
        }
    }
}

/// How open files are to be treated: nothing through the page cache, and no FLUSH for readers.
fn open_flags(flushes: bool) -> FopenFlags {
    match flushes {
        true => FopenFlags::FOPEN_DIRECT_IO,
        false => FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH,
    }
}

fn data(asked: &ByNumber, result: Result<Vec<u8>, Errno>, size: u32, reply: ReplyXattr) {
    match result {
        Err(error) => reply.error(asked.errno(error)),
        Ok(bytes) if size == 0 => reply.size(bytes.len() as u32),
        Ok(bytes) if bytes.len() > size as usize => reply.error(fuser::Errno::ERANGE),
        Ok(bytes) => reply.data(&bytes),
    }
}

impl fuser::Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // Without this one, O_TRUNC would arrive as a truncation by path, which publishes.
        config
            .add_capabilities(InitFlags::FUSE_ATOMIC_O_TRUNC)
            .map_err(|_| {
                std::io::Error::other("the kernel's FUSE cannot open and truncate at once")
            })?;
        let is_idmapped = self.known != Known::ByKernel;
        if is_idmapped {
            let idmap = config.add_capabilities(InitFlags::FUSE_ALLOW_IDMAP);
            idmap.map_err(|_| {
                std::io::Error::other(
                    "the kernel does not let FUSE mounts be idmapped (Linux does from 6.12 on); \
                     mount without -o idmap",
                )
            })?;
        }
        for wanted in [
            InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
            InitFlags::FUSE_DONT_MASK,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            // Who writes so does not wait, and may be another when it is asked who it is.
            match is_idmapped {
                true => InitFlags::empty(),
                false => InitFlags::FUSE_ASYNC_DIO,
            },
            InitFlags::FUSE_EXPORT_SUPPORT,
        ] {
            // Older kernels do without.
            let _ = config.add_capabilities(wanted);
        }
        // As long as there are more requests under way that nobody waits for, the kernel holds back
        // the next: a RELEASE, which publishes, would be overtaken by an OPEN made after it.
        let _ = config.set_max_background(u16::MAX);
        // These only fail for values out of range, and then keep the nearest in range.
        let _ = config.set_max_write(MAX_TRANSFER);
        let _ = config.set_time_granularity(Duration::from_nanos(1));
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _at_work = self.begin(request);
        let (asked, door) = (self.by_number(request, parent), Arc::clone(&self.door));
        let matters = self.door.depends_on_caller(parent.0);
        self.door.lookup_for(
            self.known.caller_if(matters, request),
            parent.0,
            name.as_bytes(),
            Box::new(move |found| match found {
                // The directory that it is looked for in is gone.
                Err(error @ Errno(libc::ESTALE)) => reply.error(asked.errno(error)),
                found => entry(&door, reply)(found),
            }),
        );
    }

    fn forget(&self, _: &Request, ino: INodeNo, lookups: u64) {
        self.door.forget(ino.0, lookups);
    }

    fn getattr(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: Option<fuser::FileHandle>,
        reply: ReplyAttr,
    ) {
        let _at_work = self.begin(request);
        let asked = self.by_number(request, ino);
        let matters = self.door.depends_on_caller(ino.0);
        let fh = fh.map(|fh| fh.0);
        self.door.getattr(
            self.known.caller_if(matters, request),
            ino.0,
            fh,
            attributes(asked, reply),
        );
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<fuser::FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let _at_work = self.begin(request);
        let set = SetAttributes {
            mode: mode.map(|mode| mode & 0o7777),
            uid,
            gid,
            size,
            accessed: atime.map(stamp),
            modified: mtime.map(stamp),
        };
        self.door.setattr(
            self.known.caller(request),
            ino.0,
            fh.map(|fh| fh.0),
            set,
            attributes(self.by_number(request, ino), reply),
        );
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        let _at_work = self.begin(request);
        match self.door.read_link(ino.0) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(self.by_number(request, ino).errno(error)),
        }
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let _at_work = self.begin(request);
        let kind = match mode & libc::S_IFMT {
            libc::S_IFREG | 0 => Kind::File,
            libc::S_IFIFO => Kind::Fifo,
            libc::S_IFSOCK => Kind::Socket,
            libc::S_IFCHR => Kind::CharDevice,
            libc::S_IFBLK => Kind::BlockDevice,
            _ => return reply.error(fuser::Errno::EINVAL),
        };
        let new = NewNode {
            device: rdev,
            ..new_node(request, kind, mode & !umask)
        };
        self.door.make(
            self.known.caller(request),
            parent.0,
            name.as_bytes(),
            new,
            entry(&self.door, reply),
        );
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let _at_work = self.begin(request);
        let new = new_node(request, Kind::Directory, mode & !umask);
        self.door.make(
            self.known.caller(request),
            parent.0,
            name.as_bytes(),
            new,
            entry(&self.door, reply),
        );
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _at_work = self.begin(request);
        self.door.unlink(
            self.known.caller(request),
            parent.0,
            name.as_bytes(),
            empty(reply),
        );
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _at_work = self.begin(request);
        self.door.rmdir(
            self.known.caller(request),
            parent.0,
            name.as_bytes(),
            empty(reply),
        );
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let _at_work = self.begin(request);
        let target = target.as_os_str().as_bytes().to_vec();
        let new = NewNode {
            target,
            ..new_node(request, Kind::Symlink, 0o777)
        };
        self.door.make(
            self.known.caller(request),
            parent.0,
            name.as_bytes(),
            new,
            entry(&self.door, reply),
        );
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let _at_work = self.begin(request);
        let mode = if flags.is_empty() {
            RenameMode::Replace
        } else if flags == RenameFlags::RENAME_NOREPLACE {
            RenameMode::NoReplace
        } else if flags == RenameFlags::RENAME_EXCHANGE {
            RenameMode::Exchange
        } else {
            return reply.error(match self.door.vault().is_read_only() {
                true => fuser::Errno::EROFS,
                false => fuser::Errno::EINVAL,
            });
        };
        let (from, to) = (
            (parent.0, name.as_bytes()),
            (new_parent.0, new_name.as_bytes()),
        );
        self.door
            .rename(self.known.caller(request), from, to, mode, empty(reply));
    }

    fn link(
        &self,
        request: &Request,
        ino: INodeNo,
        parent: INodeNo,
        name: &OsStr,
        reply: ReplyEntry,
    ) {
        let _at_work = self.begin(request);
        let to = (parent.0, name.as_bytes());
        self.door.link(
            self.known.caller(request),
            ino.0,
            to,
            entry(&self.door, reply),
        );
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let _at_work = self.begin(request);
        let asked = self.by_number(request, ino);
        self.door.open(
            self.known.caller(request),
            ino.0,
            flags.0,
            Box::new(move |opened| match opened {
                Ok(opened) => {
                    reply.opened(fuser::FileHandle(opened.fh), open_flags(opened.flushes));
                }
                Err(error) => reply.error(asked.errno(error)),
            }),
        );
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let _at_work = self.begin(request);
        let door = Arc::clone(&self.door);
        self.door.create(
            self.known.caller(request),
            parent.0,
            name.as_bytes(),
            new_node(request, Kind::File, mode & !umask),
            flags,
            Box::new(move |created| match created {
                Ok((attr, opened)) => {
                    door.remember(&attr);
                    reply.created(
                        &attr.ttl,
                        &file_attr(&attr),
                        GENERATION,
                        fuser::FileHandle(opened.fh),
                        open_flags(opened.flushes),
                    );
                }
                Err(error) => reply.error(error.into()),
            }),
        );
    }

    fn read(
        &self,
        request: &Request,
        _ino: INodeNo,
        fh: fuser::FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let _at_work = self.begin(request);
        let transfer = Transfer {
            lock_owner: lock_owner.map(|owner| owner.0),
            kill_set_id: false,
            pid: request.pid(),
        };
        self.door.read(
            fh.0,
            offset,
            size,
            transfer,
            Box::new(move |read| match read {
                Ok(bytes) => reply.data(bytes),
                Err(error) => reply.error(error.into()),
            }),
        );
    }

    fn write(
        &self,
        request: &Request,
        _ino: INodeNo,
        fh: fuser::FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let _at_work = self.begin(request);
        let cached = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let transfer = Transfer {
            lock_owner: lock_owner.map(|owner| owner.0).filter(|_| !cached),
            kill_set_id: write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID),
            pid: request.pid(),
        };
        self.door.write_flagged(
            self.known
                .caller_if(self.door.write_depends_on_caller(fh.0), request),
            (fh.0, offset),
            data,
            transfer,
            flags.0,
            Box::new(move |written| match written {
                Ok(count) => reply.written(count),
                Err(error) => reply.error(error.into()),
            }),
        );
    }

    fn flush(
        &self,
        request: &Request,
        _ino: INodeNo,
        fh: fuser::FileHandle,
        lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        let _at_work = self.begin(request);
        self.door
            .flush(fh.0, request.pid(), lock_owner.0, empty(reply));
    }

    fn release(
        &self,
        request: &Request,
        _ino: INodeNo,
        fh: fuser::FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        received(request);
        let _at_work = self.threads.begin_release();
        self.door.release(fh.0);
        reply.ok();
    }

    fn fsync(
        &self,
        request: &Request,
        _ino: INodeNo,
        fh: fuser::FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        let _at_work = self.begin(request);
        self.door.fsync(fh.0, empty(reply));
    }

    fn opendir(&self, request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let _at_work = self.begin(request);
        match self.door.open_directory(ino.0) {
            Ok(fh) => reply.opened(fuser::FileHandle(fh), FopenFlags::empty()),
            Err(error) => reply.error(self.by_number(request, ino).errno(error)),
        }
    }

    fn readdir(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: fuser::FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let _at_work = self.begin(request);
        let read = self.door.read_directory(ino.0, fh.0, offset, |entry| {
            let name = OsStr::from_bytes(&entry.name);
            reply.add(INodeNo(entry.ino), entry.position, kind(entry.kind), name)
        });
        match read {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error.into()),
        }
    }

    fn readdirplus(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: fuser::FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let _at_work = self.begin(request);
        let mut failure = None;
        let mut told = Vec::new();
        let read = self.door.read_directory_plus(ino.0, fh.0, offset, |entry| {
            match self.door.entry_attr(ino.0, entry) {
                Ok(attr) => {
                    let full = reply.add(
                        INodeNo(entry.ino),
                        entry.position,
                        OsStr::from_bytes(&entry.name),
                        &attr.ttl,
                        &file_attr(&attr),
                        GENERATION,
                    );
                    // The dots do not count as looked up.
                    if !full && entry.name != b"." && entry.name != b".." {
                        told.push(attr);
                    }
                    full
                }
                // Removed since the entry was read; beside a writer that is ESTALE.
                Err(Errno(libc::ENOENT | libc::ESTALE)) => false,
                // It was logged; what is left is to be got out.
                Err(Errno(libc::EIO)) if self.door.vault().is_salvage() => false,
                Err(error) => {
                    failure = Some(error);
                    true
                }
            }
        });
        match read.and(failure.map_or(Ok(()), Err)) {
            Ok(()) => {
                told.iter().for_each(|attr| self.door.remember(attr));
                reply.ok();
            }
            Err(error) => reply.error(error.into()),
        }
    }

    fn releasedir(
        &self,
        _: &Request,
        _ino: INodeNo,
        fh: fuser::FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.door.release_directory(fh.0);
        reply.ok();
    }

    fn fsyncdir(
        &self,
        request: &Request,
        _ino: INodeNo,
        _fh: fuser::FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.door.barrier(self.known.caller(request), empty(reply));
    }

    fn statfs(&self, _: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        match self.door.figures() {
            Ok(f) => reply.statfs(
                f.blocks,
                f.free,
                f.available,
                f.files,
                f.files_free,
                f.block,
                crate::vault::MAX_NAME as u32,
                f.block,
            ),
            Err(error) => reply.error(error.into()),
        }
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let _at_work = self.begin(request);
        let pair = (name.as_bytes(), value);
        self.door
            .set_xattr(self.known.caller(request), ino.0, pair, flags, empty(reply));
    }

    fn getxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        let _at_work = self.begin(request);
        let value = self.door.get_xattr(ino.0, name.as_bytes());
        data(&self.by_number(request, ino), value, size, reply);
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let _at_work = self.begin(request);
        let names = self.door.list_xattrs(ino.0);
        data(&self.by_number(request, ino), names, size, reply);
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _at_work = self.begin(request);
        self.door.remove_xattr(
            self.known.caller(request),
            ino.0,
            name.as_bytes(),
            empty(reply),
        );
    }

    fn access(&self, _: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        // The kernel decides (`default_permissions`) and does not ask.
        reply.ok();
    }

    fn fallocate(
        &self,
        request: &Request,
        _ino: INodeNo,
        fh: fuser::FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let _at_work = self.begin(request);
        let done = self
            .door
            .changed_by(self.known.caller(request), fh.0, empty(reply));
        self.door.allocate(fh.0, offset, length, mode, done);
    }

    fn lseek(
        &self,
        request: &Request,
        _ino: INodeNo,
        fh: fuser::FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        // The kernel asks for data and holes only: as beyond the end, there are none.
        let sought = u64::try_from(offset)
            .map_err(|_| Errno(libc::ENXIO))
            .and_then(|offset| {
                self.door
                    .seek(self.known.caller_if(false, request), fh.0, offset, whence)
            });
        match sought {
            Ok(offset) => reply.offset(offset as i64),
            Err(error) => reply.error(error.into()),
        }
    }

    fn copy_file_range(
        &self,
        request: &Request,
        _ino_in: INodeNo,
        fh_in: fuser::FileHandle,
        offset_in: u64,
        _ino_out: INodeNo,
        fh_out: fuser::FileHandle,
        offset_out: u64,
        length: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let _at_work = self.begin(request);
        let done: Done<u32> = Box::new(move |copied| match copied {
            Ok(count) => reply.written(count),
            Err(error) => reply.error(error.into()),
        });
        self.door.copy_range(
            self.known.caller(request),
            (fh_in.0, offset_in),
            (fh_out.0, offset_out),
            length,
            self.door
                .changed_by(self.known.caller(request), fh_out.0, done),
        );
    }
}

/// What is made belongs to whom the kernel names.
fn new_node(request: &Request, kind: Kind, mode: u32) -> NewNode {
    NewNode {
        kind,
        mode: mode & 0o7777,
        uid: request.uid(),
        gid: request.gid(),
        device: 0,
        target: Vec::new(),
    }
}
