//! Requests that both are asked, and their answers.

use libc::{O_EXCL, O_TRUNC};
use secretfs::fs::SetAttributes;
use secretfs::vault::{Kind, Timestamp};

use super::{Both, Process, Request, Set, data, number, same, same_bytes, xattr};
use crate::support::layer::caller_as;
use crate::support::reference::{CONTROL, Ino, Opening, ROOT, When};
use crate::support::rotating::reencrypt;

impl Both {
    pub(super) fn ask(&mut self, request: &Request) -> Option<()> {
        let start = Timestamp::now();
        let now = || When(start, Timestamp::now());
        match request {
            Request::Create(place, mode, flags, process) => {
                let (parent, name) = self.place(place);
                let caller = caller_as(process.pid(), 0);
                let created = self.fs.create_as(caller, (parent, &name), *mode, *flags);
                let how = Opening {
                    flags: *flags,
                    opener: process.seen(),
                    uid: 0,
                };
                let made = created.as_ref().ok().map(|(attr, _)| attr.ino);
                let known = self.reference.find(parent, &name);
                let expected = match known {
                    Ok(ino) if flags & O_EXCL == 0 && (parent, &name[..]) != (ROOT, CONTROL) => {
                        self.reference.may_open(ino)
                    }
                    _ => {
                        let at = (parent, &name[..]);
                        self.reference.make(at, Kind::File, *mode, made, now())
                    }
                };
                assert_eq!(number(&created), expected.err());
                let (attr, fh) = created.ok()?;
                let flags = if known.is_ok() {
                    *flags
                } else {
                    flags & !O_TRUNC
                };
                if known.is_ok() {
                    assert_eq!(known, Ok(attr.ino));
                }
                self.reference
                    .open(attr.ino, fh, Opening { flags, ..how }, now());
                self.look(attr.ino, None);
            }
            Request::Open(index, flags, process, uid) => {
                // Now and then of something that is no file.
                let ino = match process {
                    Process::Unseen => self.node(index),
                    _ => self.file(index)?,
                };
                let opened = self.fs.open_as(caller_as(process.pid(), *uid), ino, *flags);
                assert_eq!(number(&opened), self.reference.may_open(ino).err());
                let how = Opening {
                    flags: *flags,
                    opener: process.seen(),
                    uid: *uid,
                };
                self.reference.open(ino, opened.ok()?, how, now());
                self.fs.barrier();
            }
            Request::Read(index, place, size, process) => {
                let fh = self.handle(index)?;
                let offset = self.offset(fh, *place);
                let read = self.fs.read_as(process.pid(), fh, offset, *size as u32);
                let expected = self.reference.read(fh, offset, *size, process.pid());
                same_bytes(read, expected);
            }
            Request::ReadWhole(index) => {
                let ino = self.file(index)?;
                if self.reference.nodes[&ino].links > 0 {
                    let expected = self.reference.seen_by_all(ino).to_vec();
                    same_bytes(self.fs.read_all(ino), Ok(expected));
                }
            }
            Request::Write(index, place, size, seed, (process, kill_set_id)) => {
                let fh = self.handle(index)?;
                let offset = self.offset(fh, *place);
                let data = data(*size, *seed);
                let how = (process.pid(), process.owner(), *kill_set_id);
                let written = self.fs.write_as(fh, offset, &data, how);
                if *kill_set_id {
                    self.fs.barrier();
                }
                same(written, self.reference.write(fh, offset, &data, how, now()));
            }
            Request::Flush(index, process, owner) => {
                let fh = self.handle(index)?;
                let flushed = self.fs.flush_as(fh, process.pid(), *owner);
                assert_eq!(flushed, Ok(()));
                self.reference.flush(fh, process.seen(), *owner, now());
            }
            Request::Fsync(index) => {
                let fh = self.handle(index)?;
                assert_eq!(self.fs.fsync(fh), Ok(()));
                self.reference.fsync(fh, now());
            }
            Request::Release(index) => {
                let fh = self.handle(index)?;
                let ino = self.reference.handles[&fh].ino;
                self.fs.release(fh);
                self.settle(ino);
                self.reference.release(fh, now());
                self.reference.stat(ino, None, 0);
            }
            Request::Truncate(index, size, uid) => {
                let ino = self.file(index)?;
                let set = SetAttributes {
                    size: Some(*size),
                    ..SetAttributes::default()
                };
                let caller = caller_as(std::process::id(), *uid);
                let cut = self.fs.setattr_as(caller, ino, None, set);
                self.fs.barrier();
                let expected = self.reference.truncate_path(ino, *size, *uid, now());
                same(cut.map(drop), expected);
            }
            Request::TruncateHandle(index, size, uid) => {
                let fh = self.handle(index)?;
                let ino = self.reference.handles[&fh].ino;
                let set = SetAttributes {
                    size: Some(*size),
                    ..SetAttributes::default()
                };
                let caller = caller_as(std::process::id(), *uid);
                let cut = self.fs.setattr_as(caller, ino, Some(fh), set);
                self.fs.barrier();
                let expected = self.reference.truncate_handle(fh, *size, *uid, now());
                same(cut.map(drop), expected);
            }
            Request::Stat(index, process) => {
                let ino = self.node(index);
                self.look_as(ino, None, *process);
            }
            Request::StatHandle(index) => {
                let fh = self.handle(index)?;
                let ino = self.reference.handles[&fh].ino;
                self.look(ino, Some(fh));
            }
            Request::Allocate(index, range, mode) => {
                let fh = self.handle(index)?;
                let allocated = self.fs.allocate(fh, *range, *mode);
                same(allocated, self.reference.allocate(fh, *range, *mode, now()));
            }
            Request::Copy(from, to, size) => {
                let from = (self.handle(&from.0)?, from.1);
                let to = (self.handle(&to.0)?, to.1);
                let from = (from.0, self.offset(from.0, from.1));
                let to = (to.0, self.offset(to.0, to.1));
                let copied = self.fs.copy_range(from, to, *size);
                same(copied, self.reference.copy_range(from, to, *size, now()));
            }
            Request::Seek(index, offset, hole) => {
                let fh = self.handle(index)?;
                let whence = if *hole {
                    libc::SEEK_HOLE
                } else {
                    libc::SEEK_DATA
                };
                let found = self.fs.0.seek(caller_as(0, 0), fh, *offset, whence);
                same(found, self.reference.seek(fh, *offset, *hole));
            }
            Request::OpenDirectory(_)
            | Request::ReadDirectory(..)
            | Request::CloseDirectory(_)
            | Request::List(..) => self.ask_directory(request)?,
            _ => self.ask_name(request)?,
        }
        Some(())
    }

    fn ask_name(&mut self, request: &Request) -> Option<()> {
        let start = Timestamp::now();
        let now = || When(start, Timestamp::now());
        match request {
            Request::Make(place, kind, mode) => {
                let (parent, name) = self.place(place);
                let made = self.fs.make_as((parent, &name), *kind, *mode);
                let ino = made.as_ref().ok().map(|attr| attr.ino);
                let expected = self
                    .reference
                    .make((parent, &name), *kind, *mode, ino, now());
                assert_eq!(number(&made), expected.err());
                self.reference.expect_attr(ino?, None, 0, &made.ok()?);
            }
            Request::Lookup(place) => {
                let (parent, name) = self.place(place);
                if (parent, &name[..]) == (ROOT, CONTROL) {
                    return None;
                }
                let found = self.fs.lookup(parent, &name);
                let expected = self.reference.find(parent, &name);
                // What comes with a name is for the kernel, which asks when it is to be told.
                same(found.map(|attr| attr.ino), expected);
                self.look(expected.ok()?, None);
            }
            Request::Link(index, place) => {
                let ino = self.node(index);
                let (parent, name) = self.place(place);
                let linked = self.fs.link(ino, parent, &name);
                let expected = self.reference.link(ino, (parent, &name), now());
                assert_eq!(number(&linked), expected.err());
                if linked.is_ok() {
                    self.look(ino, None);
                }
            }
            Request::Remove(place, directory) => {
                let (parent, name) = self.place(place);
                let removed = match directory {
                    true => self.fs.rmdir(parent, &name),
                    false => self.fs.unlink(parent, &name),
                };
                let expected = self.reference.remove((parent, &name), *directory, now());
                same(removed, expected);
            }
            Request::Rename(from, to, mode) => {
                let (from, to) = (self.place(from), self.place(to));
                let (from, to) = ((from.0, &from.1[..]), (to.0, &to.1[..]));
                let renamed = self.fs.rename(from, to, *mode);
                same(renamed, self.reference.rename(from, to, *mode, now()));
            }
            Request::Change(index, set, uid) => {
                let ino = self.node(index);
                let time = |seconds: &i64| Timestamp {
                    seconds: *seconds,
                    nanoseconds: 999_999_999,
                };
                let set = match set {
                    Set::Mode(mode) => SetAttributes {
                        mode: Some(*mode),
                        ..SetAttributes::default()
                    },
                    Set::Owner(uid, gid) => SetAttributes {
                        uid: *uid,
                        gid: *gid,
                        ..SetAttributes::default()
                    },
                    Set::Times(accessed, modified) => SetAttributes {
                        accessed: accessed.as_ref().map(time),
                        modified: modified.as_ref().map(time),
                        ..SetAttributes::default()
                    },
                };
                let caller = caller_as(std::process::id(), *uid);
                let changed = self.fs.setattr_as(caller, ino, None, set);
                let changes = [set.mode, set.uid, set.gid].iter().any(Option::is_some);
                if changes || set.accessed.is_some() || set.modified.is_some() {
                    let caller = (*uid, std::process::id());
                    self.reference.set_attributes(ino, &set, caller, now());
                }
                assert_eq!(number(&changed), None);
                self.look(ino, None);
            }
            Request::SetXattr(index, number, size, flags) => {
                let (ino, name) = (self.node(index), xattr(*number));
                let value = data(*size as u64, *number);
                let set = self.fs.set_xattr(ino, name, &value, *flags);
                same(
                    set,
                    self.reference.set_xattr(ino, name, &value, *flags, now()),
                );
            }
            Request::RemoveXattr(index, number) => {
                let (ino, name) = (self.node(index), xattr(*number));
                let removed = self.fs.remove_xattr(ino, name);
                same(removed, self.reference.remove_xattr(ino, name, now()));
            }
            Request::Xattrs(index, number) => {
                let (ino, name) = (self.node(index), xattr(*number));
                let found = self.fs.0.get_xattr(ino, name);
                same(found, self.reference.get_xattr(ino, name));
                self.expect_xattr_names(ino);
            }
            Request::Reencrypt(transactions) => reencrypt(self.fs.0.vault(), *transactions),
            other => unreachable!("{other:?} is asked elsewhere"),
        }
        Some(())
    }

    pub(super) fn expect_xattr_names(&self, ino: Ino) {
        let names = self.reference.nodes[&ino].xattrs.keys();
        let expected: Vec<u8> = names.flat_map(|n| n.iter().copied().chain([0])).collect();
        assert_eq!(self.fs.0.list_xattrs(ino), Ok(expected));
    }
}
