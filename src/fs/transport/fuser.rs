//! The requests from fuser: each is converted, passed to the front door, and answered. Nothing is
//! decided here.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::SystemTime;

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, FileHandle, FopenFlags, INodeNo, KernelConfig,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::super::Errno;
use super::adapter::Adapter;
use super::convert::{changes, made_by_mknod, new_node, reading, rename_mode, writing};
use super::negotiation::negotiate;
use super::replies::{self, Listing};
use crate::vault::{Kind, NewNode};

impl fuser::Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        negotiate(config, self.is_idmapped())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _at_work = self.begin(request);
        let caller = self.caller_if(self.door.depends_on_caller(parent.0), request);
        let done = replies::named_entry(&self.door, self.by_number(request, parent), reply);
        self.door
            .lookup_for(caller, parent.0, name.as_bytes(), done);
    }

    fn forget(&self, _: &Request, ino: INodeNo, lookups: u64) {
        self.door.forget(ino.0, lookups);
    }

    fn getattr(&self, request: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        let _at_work = self.begin(request);
        let caller = self.caller_if(self.door.depends_on_caller(ino.0), request);
        let done = replies::attributes(self.by_number(request, ino), reply);
        self.door.getattr(caller, ino.0, fh.map(|fh| fh.0), done);
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
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let _at_work = self.begin(request);
        let set = changes((mode, uid, gid, size), (atime, mtime));
        let caller = self.caller(request);
        let done = replies::attributes(self.by_number(request, ino), reply);
        self.door
            .setattr(caller, ino.0, fh.map(|fh| fh.0), set, done);
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
        let Some(kind) = made_by_mknod(mode) else {
            return reply.error(fuser::Errno::EINVAL);
        };
        let new = NewNode {
            device: rdev,
            ..new_node(request, kind, mode & !umask)
        };
        let (caller, done) = (self.caller(request), self.entry(reply));
        self.door.make(caller, parent.0, name.as_bytes(), new, done);
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
        let (caller, done) = (self.caller(request), self.entry(reply));
        self.door.make(caller, parent.0, name.as_bytes(), new, done);
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _at_work = self.begin(request);
        let (caller, done) = (self.caller(request), replies::empty(reply));
        self.door.unlink(caller, parent.0, name.as_bytes(), done);
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _at_work = self.begin(request);
        let (caller, done) = (self.caller(request), replies::empty(reply));
        self.door.rmdir(caller, parent.0, name.as_bytes(), done);
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
        let new = NewNode {
            target: target.as_os_str().as_bytes().to_vec(),
            ..new_node(request, Kind::Symlink, 0o777)
        };
        let (caller, done) = (self.caller(request), self.entry(reply));
        self.door.make(caller, parent.0, name.as_bytes(), new, done);
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
        let Some(mode) = rename_mode(flags) else {
            return reply.error(match self.door.vault().is_read_only() {
                true => fuser::Errno::EROFS,
                false => fuser::Errno::EINVAL,
            });
        };
        let from = (parent.0, name.as_bytes());
        let to = (new_parent.0, new_name.as_bytes());
        let (caller, done) = (self.caller(request), replies::empty(reply));
        self.door.rename(caller, from, to, mode, done);
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
        let (caller, done) = (self.caller(request), self.entry(reply));
        self.door.link(caller, ino.0, to, done);
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let _at_work = self.begin(request);
        let done = replies::opened(self.by_number(request, ino), reply);
        self.door.open(self.caller(request), ino.0, flags.0, done);
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
        let new = new_node(request, Kind::File, mode & !umask);
        let (caller, done) = (self.caller(request), replies::created(&self.door, reply));
        self.door
            .create(caller, parent.0, name.as_bytes(), new, flags, done);
    }

    fn read(
        &self,
        request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let _at_work = self.begin(request);
        let transfer = reading(request, lock_owner);
        self.door
            .read(fh.0, offset, size, transfer, replies::bytes(reply));
    }

    fn write(
        &self,
        request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let _at_work = self.begin(request);
        let transfer = writing(request, lock_owner, write_flags);
        let caller = self.caller_if(self.door.write_depends_on_caller(fh.0), request);
        let (place, done) = ((fh.0, offset), replies::written(reply));
        self.door
            .write_flagged(caller, place, data, transfer, flags.0, done);
    }

    fn flush(
        &self,
        request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        let _at_work = self.begin(request);
        let done = replies::empty(reply);
        self.door.flush(fh.0, request.pid(), lock_owner.0, done);
    }

    fn release(
        &self,
        request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let _at_work = self.begin_release(request);
        self.door.release(fh.0);
        reply.ok();
    }

    fn fsync(
        &self,
        request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        let _at_work = self.begin(request);
        self.door.fsync(fh.0, replies::empty(reply));
    }

    fn opendir(&self, request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let _at_work = self.begin(request);
        match self.door.open_directory(ino.0) {
            Ok(fh) => reply.opened(FileHandle(fh), FopenFlags::empty()),
            Err(error) => reply.error(self.by_number(request, ino).errno(error)),
        }
    }

    fn readdir(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let _at_work = self.begin(request);
        let add = |entry: &_| replies::add(entry, &mut reply);
        match self.door.read_directory(ino.0, fh.0, offset, add) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error.into()),
        }
    }

    fn readdirplus(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let _at_work = self.begin(request);
        let is_salvage = self.door.vault().is_salvage();
        let mut listing = Listing::of(reply);
        let add = |entry: &_| listing.add(entry, self.door.entry_attr(ino.0, entry), is_salvage);
        let read = self.door.read_directory_plus(ino.0, fh.0, offset, add);
        listing.send(&self.door, read);
    }

    fn releasedir(
        &self,
        _: &Request,
        _ino: INodeNo,
        fh: FileHandle,
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
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.door
            .barrier(self.caller(request), replies::empty(reply));
    }

    fn statfs(&self, _: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        replies::figures(self.door.figures(), reply);
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
        let (caller, done) = (self.caller(request), replies::empty(reply));
        self.door
            .set_xattr(caller, ino.0, (name.as_bytes(), value), flags, done);
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
        replies::xattr(&self.by_number(request, ino), value, size, reply);
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let _at_work = self.begin(request);
        let names = self.door.list_xattrs(ino.0);
        replies::xattr(&self.by_number(request, ino), names, size, reply);
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _at_work = self.begin(request);
        let (caller, done) = (self.caller(request), replies::empty(reply));
        self.door.remove_xattr(caller, ino.0, name.as_bytes(), done);
    }

    fn access(&self, _: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        // The kernel decides itself (`default_permissions`), and never asks.
        reply.ok();
    }

    fn fallocate(
        &self,
        request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let _at_work = self.begin(request);
        let caller = self.caller(request);
        let done = self.door.changed_by(caller, fh.0, replies::empty(reply));
        self.door.allocate(fh.0, offset, length, mode, done);
    }

    fn lseek(
        &self,
        request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let caller = self.caller_if(false, request);
        // The kernel asks for data and holes only; beyond the end there are none.
        let sought = u64::try_from(offset)
            .map_err(|_| Errno(libc::ENXIO))
            .and_then(|offset| self.door.seek(caller, fh.0, offset, whence));
        replies::sought(sought, reply);
    }

    fn copy_file_range(
        &self,
        request: &Request,
        _ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        _ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        length: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let _at_work = self.begin(request);
        let caller = self.caller(request);
        let (from, to) = ((fh_in.0, offset_in), (fh_out.0, offset_out));
        let done = self.door.changed_by(caller, to.0, replies::written(reply));
        self.door.copy_range(caller, from, to, length, done);
    }
}
