//! The floor: a file system in memory that does as little as fuser allows, opened and served with the
//! flags that secretfs uses. What it takes is what FUSE takes.

mod database;
mod rows;
mod tree;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request,
    TimeOrNow, WriteFlags,
};
use nix::mount::{MsFlags, mount};
use nix::unistd::setsid;

use database::Database;
use tree::{Node, Tree};

/// As secretfs has them: see its `daemon/mount.rs` and `fs/transport/`.
const TTL: Duration = Duration::from_secs(1);
const MAX_WRITE: u32 = 132 * 1024;
const GENERATION: Generation = Generation(0);

/// The argument that makes this program a daemon.
pub const SERVE: &str = "serve-floor";

struct Floor {
    tree: Mutex<Tree>,
    /// Where what is replaced is stored, too.
    database: Option<Arc<Database>>,
}

impl Floor {
    fn tree(&self) -> MutexGuard<'_, Tree> {
        self.tree.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves a copy of what is in `source` on `point`, until it is unmounted; with a `database` that
/// stores what is replaced.
pub fn serve(
    source: &Path,
    point: &Path,
    threads: usize,
    database: Option<&Path>,
) -> Result<(), String> {
    let fail = |what: &str, e: &dyn std::fmt::Display| format!("{what}: {e}");
    // As every daemon does: the kernel shares processors out by sessions.
    let _ = setsid();
    let mut tree = Tree::default();
    tree.add(Node::Directory(BTreeMap::new()));
    let loaded = tree
        .load(source)
        .map_err(|e| fail("cannot load the tree", &e))?;
    tree.nodes.swap(0, usize::try_from(loaded).unwrap_or(1) - 1);
    let database = database.map(Database::make).transpose()?;
    let device = File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .map_err(|e| fail("cannot open /dev/fuse", &e))?;
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,max_read={MAX_WRITE}",
        device.as_raw_fd()
    );
    mount(
        Some("floor"),
        point,
        Some("fuse.floor"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        Some(options.as_str()),
    )
    .map_err(|e| fail("cannot mount", &e))?;
    let mut config = fuser::Config::default();
    config.acl = fuser::SessionACL::All;
    config.n_threads = Some(threads);
    let floor = Floor {
        tree: Mutex::new(tree),
        database,
    };
    fuser::Session::from_fd(floor, OwnedFd::from(device), fuser::SessionACL::All, config)
        .and_then(fuser::Session::run)
        .map_err(|e| fail("the session ended", &e))
}

fn entry(attr: Option<FileAttr>, reply: ReplyEntry) {
    match attr {
        Some(attr) => reply.entry(&TTL, &attr, GENERATION),
        None => reply.error(Errno::ENOENT),
    }
}

impl fuser::Filesystem for Floor {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        for wanted in [
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
            InitFlags::FUSE_DONT_MASK,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_ASYNC_DIO,
        ] {
            let _ = config.add_capabilities(wanted);
        }
        let _ = config.set_max_background(u16::MAX);
        let _ = config.set_max_write(MAX_WRITE);
        let _ = config.set_time_granularity(Duration::from_nanos(1));
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let mut tree = self.tree();
        let child = tree.child(parent.0, name);
        entry(child.and_then(|ino| tree.attr(ino)), reply);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.tree().attr(ino.0) {
            Some(attr) => reply.attr(&TTL, &attr),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        if let (Some(size), Some(Node::File(content))) = (size, self.tree().get(ino.0)) {
            content.resize(usize::try_from(size).unwrap_or(usize::MAX), 0);
        }
        self.getattr(request, ino, fh, reply);
    }

    fn mkdir(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let mut tree = self.tree();
        let ino = tree.add(Node::Directory(BTreeMap::new()));
        if let Some(children) = tree.children(parent.0) {
            children.insert(name.to_owned(), ino);
        }
        entry(tree.attr(ino), reply);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let mut tree = self.tree();
        let removed = tree.children(parent.0).and_then(|c| c.remove(name));
        match removed {
            Some(_) => reply.ok(),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mut tree = self.tree();
        let Some(ino) = tree.children(parent.0).and_then(|c| c.remove(name)) else {
            return reply.error(Errno::ENOENT);
        };
        let replaced = tree
            .children(new_parent.0)
            .and_then(|c| c.insert(new_name.to_owned(), ino));
        if let Some(Node::File(content)) = replaced.and_then(|ino| tree.get(ino)) {
            *content = Vec::new();
        }
        drop(tree);
        let stored = self.database.as_ref().map_or(Ok(()), |database| {
            let (from, to) = ((parent.0, name), (new_parent.0, new_name));
            database.rename(ino, replaced, from, to)
        });
        match stored {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        }
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.0 & libc::O_TRUNC != 0
            && let Some(Node::File(content)) = self.tree().get(ino.0)
        {
            content.clear();
        }
        let reading = flags.0 & libc::O_ACCMODE == libc::O_RDONLY;
        reply.opened(FileHandle(ino.0), open_flags(reading));
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let mut tree = self.tree();
        let ino = tree.add(Node::File(Vec::new()));
        if let Some(children) = tree.children(parent.0) {
            children.insert(name.to_owned(), ino);
        }
        let attr = tree.attr(ino).ok_or(Errno::EIO);
        drop(tree);
        let stored = self
            .database
            .as_ref()
            .map_or(Ok(()), |database| database.create(ino, (parent.0, name)));
        match stored.and(attr) {
            Ok(attr) => {
                reply.created(&TTL, &attr, GENERATION, FileHandle(ino), open_flags(false));
            }
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.tree().get(ino.0) {
            Some(Node::File(content)) => {
                let start = usize::try_from(offset).map_or(content.len(), |o| o.min(content.len()));
                let end = content.len().min(start + size as usize);
                reply.data(&content[start..end]);
            }
            _ => reply.error(Errno::EIO),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.tree().get(ino.0) {
            Some(Node::File(content)) => {
                let start = match flags.0 & libc::O_APPEND {
                    0 => usize::try_from(offset).unwrap_or(usize::MAX),
                    _ => content.len(),
                };
                let end = start.saturating_add(data.len());
                if content.len() < end {
                    content.resize(end, 0);
                }
                content[start..end].copy_from_slice(data);
                reply.written(data.len() as u32);
            }
            _ => reply.error(Errno::EIO),
        }
    }

    fn flush(
        &self,
        _: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn fsync(
        &self,
        _: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        match &self.database {
            Some(database) => database.publish(ino.0, reply),
            None => reply.ok(),
        }
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        if let Some(children) = self.tree().children(ino.0) {
            let from = usize::try_from(offset).unwrap_or(usize::MAX);
            for (position, (name, child)) in children.iter().enumerate().skip(from) {
                if reply.add(
                    INodeNo(*child),
                    position as u64 + 1,
                    FileType::RegularFile,
                    name,
                ) {
                    break;
                }
            }
        }
        reply.ok();
    }

    fn readdirplus(
        &self,
        _: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let mut tree = self.tree();
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        // Copied, for the attributes are looked up in the same tree.
        let rest: Vec<(OsString, u64)> = match tree.children(ino.0) {
            // No answer has room for more.
            Some(children) => children
                .iter()
                .skip(from)
                .take(1000)
                .map(|(name, ino)| (name.clone(), *ino))
                .collect(),
            None => Vec::new(),
        };
        for (position, (name, child)) in rest.iter().enumerate() {
            let next = (from + position) as u64 + 1;
            let Some(attr) = tree.attr(*child) else { break };
            if reply.add(INodeNo(*child), next, name, &TTL, &attr, GENERATION) {
                break;
            }
        }
        reply.ok();
    }
}

fn open_flags(reading: bool) -> FopenFlags {
    match reading {
        true => FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH,
        false => FopenFlags::FOPEN_DIRECT_IO,
    }
}
