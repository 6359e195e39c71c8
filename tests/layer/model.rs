//! Random requests to the file system layer, answered as the reference answers them, with the
//! vault opened again between runs.
//!
//! `PROPTEST_CASES=20000 cargo nextest run --test model` for a longer campaign.

use std::time::Duration;

use libc::{O_APPEND, O_EXCL, O_RDONLY, O_RDWR, O_TRUNC, O_WRONLY};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::FileFailurePersistence;
use secretfs::fs::{DirectoryEntry, Errno, SetAttributes};
use secretfs::vault::{Kind, RenameMode, Timestamp};

use crate::support::layer::{Layer, Served, caller_as};
use crate::support::process::wait_for;
use crate::support::reference::{Answer, CONTROL, Fh, Ino, Opening, ROOT, Reference, Stream, When};
use crate::support::rotating::reencrypt;

const CASES: u32 = 100;

/// Lengths and offsets at which padding, chunks and whole contents end.
const SIZES: [u64; 10] = [
    0, 1, 255, 256, 257, 65_535, 65_536, 65_537, 131_073, 300_000,
];

/// Largest secret and most memory.
const LIMITS: [(u64, u64); 3] = [(16 << 20, 256 << 20), (300_000, 700_000), (65_537, 200_000)];

// --- what is asked ------------------------------------------------------------------------------

/// A name in one of the directories.
#[derive(Clone, Debug)]
struct At(Index, u8);

/// Where a handle reads or writes.
#[derive(Clone, Copy, Debug)]
enum Place {
    Fixed(u64),
    /// At the end of what the handle sees.
    End,
}

/// Which process; 0 cannot be seen.
#[derive(Clone, Copy, Debug)]
enum Process {
    This,
    Other,
    Unseen,
}

impl Process {
    fn pid(self) -> u32 {
        match self {
            Self::This => std::process::id(),
            Self::Other => 1,
            Self::Unseen => 0,
        }
    }

    fn seen(self) -> Option<u32> {
        Some(self.pid()).filter(|pid| *pid != 0)
    }

    /// What the kernel takes for the owner of its locks.
    fn owner(self) -> u64 {
        match self {
            Self::This => 1,
            Self::Other => 2,
            Self::Unseen => 3,
        }
    }
}

#[derive(Clone, Debug)]
enum Request {
    Create(At, u32, i32, Process),
    Open(Index, i32, Process, u32),
    Read(Index, Place, u64, Process),
    ReadWhole(Index),
    Write(Index, Place, u64, u8, (Process, bool)),
    Flush(Index, Process, u64),
    Fsync(Index),
    Release(Index),
    Truncate(Index, u64, u32),
    TruncateHandle(Index, u64, u32),
    Stat(Index, Process),
    StatHandle(Index),
    Allocate(Index, (u64, u64), i32),
    Copy((Index, Place), (Index, Place), u64),
    Seek(Index, u64, bool),
    Make(At, Kind, u32),
    Lookup(At),
    Link(Index, At),
    Remove(At, bool),
    Rename(At, At, RenameMode),
    Change(Index, Set, u32),
    SetXattr(Index, u8, usize, i32),
    RemoveXattr(Index, u8),
    Xattrs(Index, u8),
    OpenDirectory(Index),
    ReadDirectory(Index, usize),
    CloseDirectory(Index),
    List(Index, usize, bool),
    /// So many transactions more of what replaces all keys.
    Reencrypt(u32),
}

#[derive(Clone, Debug)]
enum Set {
    Mode(u32),
    Owner(Option<u32>, Option<u32>),
    Times(Option<i64>, Option<i64>),
}

/// How a run ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Orderly,
    Aborted,
    Crash,
}

#[derive(Clone, Debug)]
struct Run {
    limits: (u64, u64),
    requests: Vec<Request>,
    end: End,
}

fn at() -> impl Strategy<Value = At> {
    let name = prop_oneof![60 => 0u8..4, 6 => 4u8..8];
    (any::<Index>(), name).prop_map(|(directory, name)| At(directory, name))
}

fn place() -> impl Strategy<Value = Place> {
    let fixed = select(&SIZES[..]).prop_map(Place::Fixed);
    prop_oneof![3 => Just(Place::Fixed(0)), 3 => fixed, 2 => Just(Place::End)]
}

fn process() -> impl Strategy<Value = Process> {
    prop_oneof![
        6 => Just(Process::This),
        2 => Just(Process::Other),
        1 => Just(Process::Unseen),
    ]
}

fn size() -> impl Strategy<Value = u64> {
    select(&SIZES[..])
}

fn uid() -> impl Strategy<Value = u32> {
    prop_oneof![4 => Just(0u32), 1 => Just(1000u32)]
}

fn mode() -> impl Strategy<Value = u32> {
    select(
        &[
            0o600, 0o644, 0o755, 0o4755, 0o2755, 0o6711, 0o2644, 0o1777, 0,
        ][..],
    )
}

fn open_flags() -> impl Strategy<Value = i32> {
    let access = select(&[O_RDONLY, O_RDONLY, O_WRONLY, O_RDWR][..]);
    let truncate = prop_oneof![2 => Just(0), 1 => Just(O_TRUNC)];
    let append = prop_oneof![4 => Just(0), 1 => Just(O_APPEND)];
    (access, truncate, append).prop_map(|(access, truncate, append)| access | truncate | append)
}

fn contents() -> impl Strategy<Value = Request> {
    use Request::*;
    let i = any::<Index>;
    let writer = || (process(), prop::bool::weighted(0.1));
    prop_oneof![
        8 => (i(), open_flags(), process(), uid()).prop_map(|(f, o, p, u)| Open(f, o, p, u)),
        12 => (i(), place(), size(), any::<u8>(), writer())
            .prop_map(|(h, p, s, seed, w)| Write(h, p, s, seed, w)),
        10 => (i(), place(), prop_oneof![size(), Just(100), Just(4096)], process())
            .prop_map(|(h, p, s, by)| Read(h, p, s, by)),
        5 => i().prop_map(ReadWhole),
        8 => (i(), process(), 1u64..4).prop_map(|(h, p, o)| Flush(h, p, o)),
        2 => i().prop_map(Fsync),
        6 => i().prop_map(Release),
        2 => (i(), size(), uid()).prop_map(|(f, s, u)| Truncate(f, s, u)),
        3 => (i(), size(), uid()).prop_map(|(h, s, u)| TruncateHandle(h, s, u)),
        4 => (i(), process()).prop_map(|(n, p)| Stat(n, p)),
        5 => i().prop_map(StatHandle),
        2 => (i(), (size(), size().prop_map(|s| s.max(1))), select(&[0, 1, 3, 0x10, 0x11, 8][..]))
            .prop_map(|(h, r, m)| Allocate(h, r, m)),
        2 => ((i(), place()), (i(), place()), size()).prop_map(|(f, t, s)| Copy(f, t, s)),
        1 => (i(), size(), any::<bool>()).prop_map(|(h, o, b)| Seek(h, o, b)),
    ]
}

fn names() -> impl Strategy<Value = Request> {
    use Request::*;
    let i = any::<Index>;
    let kind = select(
        &[
            Kind::File,
            Kind::Directory,
            Kind::Directory,
            Kind::Directory,
            Kind::Symlink,
            Kind::Fifo,
            Kind::Socket,
            Kind::CharDevice,
            Kind::BlockDevice,
        ][..],
    );
    let exclusive = prop_oneof![Just(0), Just(O_EXCL)];
    let modes = select(
        &[
            RenameMode::Replace,
            RenameMode::Replace,
            RenameMode::NoReplace,
            RenameMode::Exchange,
        ][..],
    );
    let times = || prop::option::of(select(&[-1i64, 0, 1_700_000_000, 4_000_000_000][..]));
    let owner = || prop::option::of(0u32..3);
    let set = prop_oneof![
        mode().prop_map(Set::Mode),
        (owner(), owner()).prop_map(|(u, g)| Set::Owner(u, g)),
        (times(), times()).prop_map(|(a, m)| Set::Times(a, m)),
    ];
    prop_oneof![
        8 => (at(), mode(), open_flags(), exclusive, process())
            .prop_map(|(a, m, f, e, p)| Create(a, m, f | e, p)),
        5 => (at(), kind, mode()).prop_map(|(a, k, m)| Make(a, k, m)),
        4 => at().prop_map(Lookup),
        4 => (i(), at()).prop_map(|(n, a)| Link(n, a)),
        6 => (at(), prop::bool::weighted(0.3)).prop_map(|(a, d)| Remove(a, d)),
        8 => (at(), at(), modes).prop_map(|(f, t, m)| Rename(f, t, m)),
        4 => (i(), set, uid()).prop_map(|(n, s, u)| Change(n, s, u)),
        3 => (i(), 0u8..6, select(&[0usize, 1, 200, 20_000, 40_000, 65_536][..]),
            select(&[0, 0, libc::XATTR_CREATE, libc::XATTR_REPLACE][..]))
            .prop_map(|(n, x, s, f)| SetXattr(n, x, s, f)),
        1 => (i(), 0u8..6).prop_map(|(n, x)| RemoveXattr(n, x)),
        2 => (i(), 0u8..6).prop_map(|(n, x)| Xattrs(n, x)),
        1 => i().prop_map(OpenDirectory),
        2 => (i(), 1usize..4).prop_map(|(d, n)| ReadDirectory(d, n)),
        1 => i().prop_map(CloseDirectory),
        2 => (i(), 1usize..5, any::<bool>()).prop_map(|(d, n, s)| List(d, n, s)),
    ]
}

fn run() -> impl Strategy<Value = Run> {
    let reencrypt = (1u32..8).prop_map(Request::Reencrypt);
    let request = prop_oneof![90 => contents(), 30 => names(), 2 => reencrypt];
    let end = select(&[End::Orderly, End::Aborted, End::Crash][..]);
    let limits = select(&LIMITS[..]);
    (limits, prop::collection::vec(request, 1..60), end).prop_map(|(limits, requests, end)| Run {
        limits,
        requests,
        end,
    })
}

// --- asking both --------------------------------------------------------------------------------

fn name(number: u8) -> Vec<u8> {
    match number {
        3 => vec![0xff, 0xfe, b'\n', b' '],
        4 => vec![b'n'; 255],
        5 => vec![b'n'; 256],
        6 => CONTROL.to_vec(),
        7 => b"...".to_vec(),
        n => vec![b'a' + n],
    }
}

fn xattr(number: u8) -> &'static [u8] {
    match number {
        0 => b"user.a",
        1 => b"user.b",
        2 => b"user.c",
        3 => b"user.secretfs.version",
        4 => b"trusted.a",
        _ => b"user.\xff",
    }
}

fn data(size: u64, seed: u8) -> Vec<u8> {
    let byte = |i: u64| (i as u8).wrapping_mul(7) ^ seed ^ (i >> 8) as u8;
    (0..size).map(byte).collect()
}

fn number(answer: &Result<impl Sized, Errno>) -> Option<i32> {
    answer.as_ref().err().map(|errno| errno.0)
}

/// The two must answer alike.
#[track_caller]
fn same<T: PartialEq>(found: Result<T, Errno>, expected: Answer<T>) {
    let errno = number(&found);
    assert_eq!(errno, expected.as_ref().err().copied(), "error number");
    if let (Ok(found), Ok(expected)) = (found, expected) {
        assert!(found == expected, "another answer");
    }
}

#[track_caller]
fn same_bytes(found: Result<Vec<u8>, Errno>, expected: Answer<Vec<u8>>) {
    if let (Ok(found), Ok(expected)) = (&found, &expected) {
        assert_eq!(found.len(), expected.len(), "number of bytes");
        let differs = found.iter().zip(expected).position(|(a, b)| a != b);
        assert_eq!(differs, None, "first byte that differs");
    }
    same(found, expected);
}

struct Both {
    fs: Served,
    reference: Reference,
    streams: std::collections::BTreeMap<Fh, Stream>,
}

impl Both {
    fn directory(&self, index: &Index) -> Ino {
        let nodes = self.reference.nodes.iter();
        let directories = nodes.filter(|(_, node)| node.kind == Kind::Directory);
        let directories: Vec<_> = directories.map(|(ino, _)| *ino).collect();
        *index.get(&directories)
    }

    fn place(&self, At(directory, number): &At) -> (Ino, Vec<u8>) {
        let directory = self.directory(directory);
        // What is wrong with a name is only told where names can be.
        let removed = self.reference.nodes[&directory].links == 0;
        (directory, name(if removed { 0 } else { *number }))
    }

    fn file(&self, index: &Index) -> Option<Ino> {
        let nodes = self.reference.nodes.iter();
        let files: Vec<_> = nodes
            .filter(|(_, node)| node.kind == Kind::File)
            .map(|(ino, _)| *ino)
            .collect();
        (!files.is_empty()).then(|| *index.get(&files))
    }

    fn node(&self, index: &Index) -> Ino {
        *index.get(&self.reference.nodes.keys().copied().collect::<Vec<_>>())
    }

    fn handle(&self, index: &Index) -> Option<Fh> {
        let handles: Vec<_> = self.reference.handles.keys().copied().collect();
        (!handles.is_empty()).then(|| *index.get(&handles))
    }

    fn stream(&self, index: &Index) -> Option<Fh> {
        let open: Vec<_> = self.reference.directories.keys().copied().collect();
        (!open.is_empty()).then(|| *index.get(&open))
    }

    fn offset(&self, fh: Fh, place: Place) -> u64 {
        match place {
            Place::Fixed(offset) => offset,
            Place::End => {
                let ino = self.reference.handles[&fh].ino;
                self.reference.size(ino, Some(fh), 0)
            }
        }
    }

    /// Asks both for attributes, as somebody does who cannot be seen, and compares them.
    fn look(&mut self, ino: Ino, fh: Option<Fh>) {
        self.look_as(ino, fh, Process::Unseen);
    }

    fn look_as(&mut self, ino: Ino, fh: Option<Fh>, process: Process) {
        let attr = self.fs.getattr_as(caller_as(process.pid(), 0), ino, fh);
        let attr = attr.expect("it can be looked at");
        self.reference.stat(ino, fh, process.pid());
        self.reference.expect_attr(ino, fh, process.pid(), &attr);
    }

    /// Waits for what a close leaves to be published.
    fn settle(&self, ino: Ino) {
        let _ = self.fs.getattr(ino, None);
    }

    fn ask(&mut self, request: &Request) -> Option<()> {
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

    fn expect_xattr_names(&self, ino: Ino) {
        let names = self.reference.nodes[&ino].xattrs.keys();
        let expected: Vec<u8> = names.flat_map(|n| n.iter().copied().chain([0])).collect();
        assert_eq!(self.fs.0.list_xattrs(ino), Ok(expected));
    }

    // --- directories ----------------------------------------------------------------------------

    /// At most `count` entries from `position` on; the dots are checked here.
    fn piece(&self, ino: Ino, fh: Fh, position: u64, count: usize) -> Vec<DirectoryEntry> {
        let mut entries: Vec<DirectoryEntry> = Vec::new();
        let read = self.fs.0.read_directory(ino, fh, position, |entry| {
            if entries.len() == count {
                return true;
            }
            entries.push(entry.clone());
            false
        });
        assert_eq!(read, Ok(()));
        entries
    }

    fn ask_directory(&mut self, request: &Request) -> Option<()> {
        match request {
            Request::OpenDirectory(index) => {
                let ino = self.directory(index);
                let fh = self.fs.0.open_directory(ino).unwrap();
                self.reference.directories.insert(fh, ino);
                self.streams.insert(fh, Stream::default());
                self.note_names();
            }
            Request::ReadDirectory(index, count) => {
                let fh = self.stream(index)?;
                let ino = self.reference.directories[&fh];
                let position = self.streams[&fh].position;
                let entries = self.piece(ino, fh, position, *count);
                let stream = self.streams.get_mut(&fh).unwrap();
                for entry in &entries {
                    stream.position = entry.position;
                    *stream.seen.entry(entry.name.clone()).or_default() += 1;
                }
                if entries.len() < *count {
                    stream.expect_complete();
                    *stream = Stream::default();
                    self.note_names();
                }
            }
            Request::CloseDirectory(index) => {
                let fh = self.stream(index)?;
                self.fs.0.release_directory(fh);
                self.streams.remove(&fh);
                self.reference.close_directory(fh);
            }
            Request::List(index, count, seek) => {
                let ino = self.directory(index);
                self.expect_list(ino, *count, *seek);
            }
            other => unreachable!("{other:?} is asked elsewhere"),
        }
        Some(())
    }

    /// Reads a whole directory in pieces, each with a handle of its own if `seek`.
    fn expect_list(&self, ino: Ino, count: usize, seek: bool) {
        let mut fh = self.fs.0.open_directory(ino).unwrap();
        let mut found = std::collections::BTreeMap::new();
        let mut position = 0;
        loop {
            let entries = self.piece(ino, fh, position, count);
            for entry in &entries {
                position = entry.position;
                let twice = found.insert(entry.name.clone(), (entry.ino, entry.kind));
                assert_eq!(twice, None, "a name is listed twice");
            }
            if entries.len() < count {
                break;
            }
            if seek {
                let last = std::mem::replace(&mut fh, self.fs.0.open_directory(ino).unwrap());
                self.fs.0.release_directory(last);
            }
        }
        self.fs.0.release_directory(fh);
        let nodes = &self.reference.nodes;
        let entries = nodes[&ino].entries.iter();
        let mut expected: std::collections::BTreeMap<_, _> = entries
            .map(|(name, ino)| (name.clone(), (*ino, nodes[ino].kind)))
            .collect();
        assert_eq!(found.remove(&b"."[..]), Some((ino, Kind::Directory)));
        expected.remove(&b"."[..]);
        assert!(found.remove(&b".."[..]).is_some());
        assert_eq!(found, expected);
    }

    /// Directories that are being read learn which names there are.
    fn note_names(&mut self) {
        for (fh, stream) in &mut self.streams {
            let entries = &self.reference.nodes[&self.reference.directories[fh]].entries;
            stream.note(entries.keys());
        }
    }

    // --- all of it ------------------------------------------------------------------------------

    /// Compares everything that can be seen.
    fn compare(&mut self) {
        let nodes: Vec<_> = self.reference.nodes.keys().copied().collect();
        for ino in nodes {
            self.look(ino, None);
        }
        for (ino, node) in &self.reference.nodes {
            self.expect_xattr_names(*ino);
            for (name, value) in &node.xattrs {
                assert_eq!(self.fs.0.get_xattr(*ino, name).as_ref(), Ok(value));
            }
            match node.kind {
                Kind::Directory => {
                    self.expect_list(*ino, 100, false);
                    for (name, child) in &node.entries {
                        assert_eq!(self.fs.lookup(*ino, name).unwrap().ino, *child);
                    }
                }
                Kind::File if node.links > 0 => {
                    let expected = self.reference.seen_by_all(*ino).to_vec();
                    same_bytes(self.fs.read_all(*ino), Ok(expected));
                }
                Kind::Symlink => assert_eq!(self.fs.0.read_link(*ino), Ok(node.target.clone())),
                _ => {}
            }
        }
        let handles = self.reference.handles.iter();
        let handles: Vec<_> = handles.map(|(fh, handle)| (*fh, handle.ino)).collect();
        for (fh, ino) in handles {
            self.look(ino, Some(fh));
        }
    }

    fn end(self, layer: &Layer, end: End) -> Reference {
        let Self {
            fs, mut reference, ..
        } = self;
        let start = Timestamp::now();
        match end {
            End::Orderly => {
                fs.finish();
                reference.publish_all(When(start, Timestamp::now()));
            }
            End::Aborted => fs.abort(),
            End::Crash => {
                fs.barrier();
                let mounted = std::sync::Arc::downgrade(&fs.0);
                let commits = || mounted.upgrade().expect("mounted").vault().state().commit;
                layer.crash_while(commits, || fs.abort());
            }
        }
        expect_clean(layer);
        reference.cut();
        reference
    }
}

fn expect_clean(layer: &Layer) -> secretfs::vault::CheckReport {
    let report = layer.check();
    assert_eq!(report.problem_count, 0, "{:?}", report.problems);
    report
}

fn open(layer: &Layer, reference: Option<Reference>, (size, memory): (u64, u64)) -> Both {
    let fs = layer.open_with(size, memory);
    // Replacing keys is gone on with by itself; from here on nothing is done that is not asked for.
    wait_for("the end of what was begun", Duration::from_secs(60), || {
        !fs.0.vault().is_rotating()
    });
    let reference = reference.unwrap_or_else(|| Reference::new(&fs.getattr(ROOT, None).unwrap()));
    let mut both = Both {
        fs,
        reference,
        streams: Default::default(),
    };
    (both.reference.max_size, both.reference.max_memory) = (size, memory);
    both
}

fn play(runs: &[Run]) {
    let layer = Layer::in_memory();
    let mut reference = None;
    for run in runs {
        let mut both = open(&layer, reference, run.limits);
        for request in &run.requests {
            both.ask(request);
            both.note_names();
        }
        both.compare();
        reference = Some(both.end(&layer, run.end));
    }
    // What is there after all that, all left-overs being gone.
    let mut both = open(&layer, reference, LIMITS[0]);
    both.compare();
    let reference = both.end(&layer, End::Orderly);
    let report = expect_clean(&layer);
    let expected = (
        reference.nodes.len() as u64 + 1,
        reference.entries(),
        reference.versions(),
    );
    assert_eq!(
        (report.nodes, report.entries, report.versions),
        expected,
        "nodes, names and versions"
    );
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(CASES),
        max_shrink_iters: 400,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource(
            "proptest-regressions"
        ))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn requests_are_answered_as_promised_and_everything_is_there_after_reopening(
        runs in prop::collection::vec(run(), 1..4)
    ) {
        play(&runs);
    }
}
