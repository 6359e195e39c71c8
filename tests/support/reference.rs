//! What the file system promises, as simply as it can be said: everything in memory, one request
//! after the other. Knows nothing of how secretfs does it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use libc::{
    EBADF, EEXIST, EFBIG, EINVAL, EISDIR, ENODATA, ENOENT, ENOSPC, ENOTDIR, ENOTEMPTY, ENXIO,
    EOPNOTSUPP, EPERM,
};
use secretfs::fs::{Attr, SetAttributes};
use secretfs::vault::{Kind, MAX_XATTRS, RenameMode, Timestamp};

pub type Ino = u64;
pub type Fh = u64;
/// A process of one thread; 0 cannot be seen.
pub type Process = u32;
pub type Answer<T> = Result<T, i32>;

pub const ROOT: Ino = 1;
pub const CONTROL: &[u8] = b".secretfs";

/// Between which two moments something happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct When(pub Timestamp, pub Timestamp);

impl When {
    pub fn at(time: Timestamp) -> Self {
        Self(time, time)
    }

    fn later(self, other: Self) -> Self {
        Self(self.0.max(other.0), self.1.max(other.1))
    }

    fn fits(self, time: Timestamp) -> bool {
        self.0 <= time && time <= self.1
    }
}

/// A content that is being written.
#[derive(Clone, Debug)]
struct Draft {
    bytes: Vec<u8>,
    unpublished: bool,
    /// Handles that wrote something that is not published.
    writers: BTreeSet<Fh>,
    edited: When,
    modified: Option<Timestamp>,
    /// It was emptied: nothing of the old content is in it.
    replaces: bool,
    /// For whom it counts.
    user: u32,
}

impl Draft {
    fn clean(bytes: Vec<u8>, user: u32, now: When) -> Self {
        Self {
            bytes,
            unpublished: false,
            writers: BTreeSet::new(),
            edited: now,
            modified: None,
            replaces: false,
            user,
        }
    }

    fn touch(&mut self, writer: Option<Fh>, now: When) {
        self.unpublished = true;
        self.writers.extend(writer);
        (self.edited, self.modified) = (now, None);
    }

    fn modified(&self) -> When {
        self.modified.map_or(self.edited, When::at)
    }
}

/// A content that was published.
#[derive(Clone, Debug, Default)]
struct Version {
    number: u64,
    bytes: Rc<Vec<u8>>,
}

#[derive(Clone, Debug)]
pub struct Node {
    pub kind: Kind,
    pub mode: u32,
    uid: u32,
    gid: u32,
    pub links: u32,
    device: u32,
    pub target: Vec<u8>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    accessed: When,
    modified: When,
    changed: When,
    current: Version,
    /// The version that last replaced the content as a whole.
    replaced: u64,
    /// The one in-place draft.
    shared: Option<Draft>,
    /// What processes were told of last that asked without a handle, while somebody may still read
    /// another version. Those that cannot be seen count as one, 0.
    told: BTreeMap<Process, Version>,
    pub entries: BTreeMap<Vec<u8>, Ino>,
    parent: Ino,
}

#[derive(Clone, Debug)]
pub struct Handle {
    pub ino: Ino,
    read: bool,
    write: bool,
    append: bool,
    opener: Option<u32>,
    user: u32,
    owners: BTreeSet<u64>,
    /// Processes that wrote.
    authors: BTreeSet<Process>,
    /// Who opened it, or read or wrote through it last.
    used_by: Process,
    /// A replacement draft.
    own: Option<Draft>,
    /// What a reader has settled on.
    pin: Option<Version>,
    /// What was current when a reader opened it, or asked for the end, before the first read.
    fresh: Option<Version>,
    /// The length of what it has settled on was told: a read at the beginning stays there.
    held: bool,
    /// Where the last read ended.
    read_to: u64,
}

impl Node {
    /// What the first read of a handle gets that was opened at `fresh`: what its process was told since.
    fn since<'v>(&'v self, fresh: &'v Version, process: Process) -> &'v Version {
        match self.told.get(&process) {
            Some(told) if told.number > fresh.number => told,
            _ => fresh,
        }
    }
}

impl Handle {
    fn writes_in_place(&self) -> bool {
        self.write && self.own.is_none()
    }

    /// Whether a process opened it for writing, or wrote through it.
    fn is_written_by(&self, process: Process) -> bool {
        self.write && (self.opener == Some(process) || self.authors.contains(&process))
    }

    /// Whether it is in the middle of what was replaced as a whole, and goes on there.
    fn reads_on(&self, node: &Node) -> bool {
        let is_within = |pin: &Version| 0 < self.read_to && self.read_to < pin.bytes.len() as u64;
        let pin = self.pin.as_ref().filter(|pin| pin.number < node.replaced);
        !self.write && pin.is_some_and(is_within)
    }
}

/// How something is opened.
#[derive(Clone, Copy, Debug)]
pub struct Opening {
    pub flags: i32,
    /// Process, if it can be seen.
    pub opener: Option<u32>,
    pub uid: u32,
}

/// All that there is.
#[derive(Clone, Debug)]
pub struct Reference {
    pub nodes: BTreeMap<Ino, Node>,
    pub handles: BTreeMap<Fh, Handle>,
    /// Open directories.
    pub directories: BTreeMap<Fh, Ino>,
    pub max_size: u64,
    pub max_memory: u64,
}

fn without_set_id(mode: u32) -> u32 {
    let mode = mode & !0o4000;
    if mode & 0o010 != 0 {
        mode & !0o2000
    } else {
        mode
    }
}

pub fn window(bytes: &[u8], offset: u64, size: u64) -> Vec<u8> {
    let start = offset.min(bytes.len() as u64);
    let end = (start + size).min(bytes.len() as u64);
    bytes[start as usize..end as usize].to_vec()
}

impl Reference {
    pub fn new(root: &Attr) -> Self {
        let mut reference = Self {
            nodes: BTreeMap::new(),
            handles: BTreeMap::new(),
            directories: BTreeMap::new(),
            max_size: 0,
            max_memory: 0,
        };
        let now = When::at(root.changed);
        let node = new_node(Kind::Directory, root.mode, (root.uid, root.gid), ROOT, now);
        reference.nodes.insert(ROOT, node);
        reference
    }

    // --- names ------------------------------------------------------------------------------

    /// A directory that names can be made in.
    fn directory(&self, ino: Ino) -> Answer<&Node> {
        let node = self.nodes.get(&ino).ok_or(ENOENT)?;
        match (node.kind, node.links) {
            (Kind::Directory, 0) => Err(ENOENT),
            (Kind::Directory, _) => Ok(node),
            (_, _) => Err(ENOTDIR),
        }
    }

    fn may_change(&self, (parent, name): (Ino, &[u8])) -> Answer<()> {
        if parent == ROOT && name == CONTROL {
            return Err(EPERM);
        }
        self.directory(parent)?;
        match name.len() {
            256.. => Err(libc::ENAMETOOLONG),
            0 => Err(EINVAL),
            _ => Ok(()),
        }
    }

    pub fn find(&self, parent: Ino, name: &[u8]) -> Answer<Ino> {
        let directory = self.directory(parent)?;
        if name.len() > 255 {
            return Err(libc::ENAMETOOLONG);
        }
        directory.entries.get(name).copied().ok_or(ENOENT)
    }

    fn put(&mut self, parent: Ino, name: &[u8], ino: Ino, now: When) {
        let directory = self.nodes.get_mut(&parent).unwrap();
        directory.entries.insert(name.to_vec(), ino);
        (directory.modified, directory.changed) = (now, now);
        let node = self.nodes.get_mut(&ino).unwrap();
        if node.kind == Kind::Directory {
            node.parent = parent;
        }
    }

    fn take(&mut self, parent: Ino, name: &[u8], now: When) -> Ino {
        let directory = self.nodes.get_mut(&parent).unwrap();
        (directory.modified, directory.changed) = (now, now);
        directory.entries.remove(name).unwrap()
    }

    /// What making `ino` answers; `made` is the node's number, when it was made.
    pub fn make(
        &mut self,
        (parent, name): (Ino, &[u8]),
        kind: Kind,
        mode: u32,
        made: Option<Ino>,
        now: When,
    ) -> Answer<()> {
        self.may_change((parent, name))?;
        if self.find(parent, name).is_ok() {
            return Err(EEXIST);
        }
        let directory = &self.nodes[&parent];
        let inherits = directory.mode & 0o2000 != 0;
        let gid = if inherits { directory.gid } else { 0 };
        let mode = match kind {
            Kind::Directory if inherits => mode | 0o2000,
            _ => mode,
        };
        let Some(ino) = made else { return Ok(()) };
        assert!(
            self.nodes.keys().all(|known| *known < ino),
            "node numbers are never used again"
        );
        let node = new_node(kind, mode, (0, gid), parent, now);
        self.nodes.insert(ino, node);
        self.put(parent, name, ino, now);
        Ok(())
    }

    pub fn link(&mut self, ino: Ino, to: (Ino, &[u8]), now: When) -> Answer<()> {
        let node = self.nodes.get(&ino).ok_or(ENOENT)?;
        if node.kind == Kind::Directory || to == (ROOT, CONTROL) {
            return Err(EPERM);
        }
        if node.links == 0 {
            return Err(ENOENT);
        }
        self.may_change(to)?;
        if self.find(to.0, to.1).is_ok() {
            return Err(EEXIST);
        }
        let node = self.nodes.get_mut(&ino).unwrap();
        node.links += 1;
        node.changed = now;
        self.put(to.0, to.1, ino, now);
        Ok(())
    }

    pub fn remove(&mut self, from: (Ino, &[u8]), directory: bool, now: When) -> Answer<()> {
        self.may_change(from)?;
        let ino = self.find(from.0, from.1)?;
        let node = &self.nodes[&ino];
        match (directory, node.kind) {
            (true, Kind::Directory) if !node.entries.is_empty() => return Err(ENOTEMPTY),
            (true, Kind::Directory) => {}
            (true, _) => return Err(ENOTDIR),
            (false, Kind::Directory) => return Err(EISDIR),
            (false, _) => {}
        }
        self.take(from.0, from.1, now);
        self.drop_link(ino, now);
        Ok(())
    }

    fn drop_link(&mut self, ino: Ino, now: When) {
        let node = self.nodes.get_mut(&ino).unwrap();
        node.links -= 1;
        node.changed = now;
        self.forget_if_unused(ino);
    }

    fn is_open(&self, ino: Ino) -> bool {
        self.handles.values().any(|handle| handle.ino == ino)
            || self.directories.values().any(|open| *open == ino)
    }

    fn forget_if_unused(&mut self, ino: Ino) {
        if self.nodes.get(&ino).is_some_and(|node| node.links == 0) && !self.is_open(ino) {
            self.nodes.remove(&ino);
        }
    }

    fn is_inside(&self, mut directory: Ino, ancestor: Ino) -> bool {
        loop {
            if directory == ancestor {
                return true;
            }
            if directory == ROOT {
                return false;
            }
            directory = self.nodes[&directory].parent;
        }
    }

    pub fn rename(
        &mut self,
        from: (Ino, &[u8]),
        to: (Ino, &[u8]),
        mode: RenameMode,
        now: When,
    ) -> Answer<()> {
        if [from, to].contains(&(ROOT, CONTROL)) {
            return Err(EPERM);
        }
        let moved = self.find(from.0, from.1)?;
        self.may_change(to)?;
        let taken = self.find(to.0, to.1).ok();
        if self.is_inside(to.0, moved) {
            return Err(EINVAL);
        }
        match (mode, taken) {
            (RenameMode::NoReplace, Some(_)) => return Err(EEXIST),
            (RenameMode::Exchange, None) => return Err(ENOENT),
            (_, Some(taken)) if taken == moved => return Ok(()),
            (RenameMode::Exchange, Some(taken)) => {
                if self.is_inside(from.0, taken) {
                    return Err(EINVAL);
                }
                self.take(from.0, from.1, now);
                self.take(to.0, to.1, now);
                self.put(from.0, from.1, taken, now);
                self.nodes.get_mut(&taken).unwrap().changed = now;
            }
            (RenameMode::Replace, Some(taken)) => {
                let is_directory = |ino: &Ino| self.nodes[ino].kind == Kind::Directory;
                match (is_directory(&moved), is_directory(&taken)) {
                    (true, false) => return Err(ENOTDIR),
                    (false, true) => return Err(EISDIR),
                    (true, true) if !self.nodes[&taken].entries.is_empty() => {
                        return Err(ENOTEMPTY);
                    }
                    (_, _) => {}
                }
                self.take(to.0, to.1, now);
                self.take(from.0, from.1, now);
                self.drop_link(taken, now);
            }
            (_, None) => {
                self.take(from.0, from.1, now);
            }
        }
        self.put(to.0, to.1, moved, now);
        self.nodes.get_mut(&moved).unwrap().changed = now;
        Ok(())
    }

    // --- attributes -------------------------------------------------------------------------

    /// Compares what `stat` shows to a process, through a handle or not.
    pub fn expect_attr(&self, ino: Ino, fh: Option<Fh>, process: Process, attr: &Attr) {
        let node = &self.nodes[&ino];
        let subdirectories = || {
            let kinds = node.entries.values().map(|ino| self.nodes[ino].kind);
            kinds.filter(|kind| *kind == Kind::Directory).count() as u32
        };
        let links = match (node.kind, node.links) {
            (Kind::Directory, 0) => 0,
            (Kind::Directory, _) => 2 + subdirectories(),
            (_, links) => links,
        };
        let device = match node.kind {
            Kind::CharDevice | Kind::BlockDevice => node.device,
            _ => 0,
        };
        let size = match node.kind {
            Kind::File => self.size(ino, fh, process),
            Kind::Directory => node.entries.len() as u64,
            Kind::Symlink => node.target.len() as u64,
            _ => 0,
        };
        let (mut modified, mut changed) = (node.modified, node.changed);
        let handle = fh.map(|fh| &self.handles[&fh]);
        let first = node.current.number == 0;
        let draft = match handle {
            Some(Handle { own: Some(own), .. }) => Some(own),
            Some(handle) => node.shared.as_ref().filter(|_| handle.write || first),
            None if first => node.shared.as_ref(),
            None => self.draft_told_to(ino, process),
        };
        if let Some(draft) = draft.filter(|draft| draft.unpublished) {
            modified = draft.modified();
            changed = changed.later(draft.edited);
        }
        let expected = (
            ino, node.kind, node.mode, links, node.uid, node.gid, device, size,
        );
        let found = (
            attr.ino,
            attr.kind,
            attr.mode,
            attr.links,
            attr.uid,
            attr.gid,
            attr.device,
            attr.size,
        );
        assert_eq!(
            found, expected,
            "node, kind, mode, links, owner, group, device, size"
        );
        let times = [
            (attr.accessed, node.accessed),
            (attr.modified, modified),
            (attr.changed, changed),
        ];
        for ((time, expected), name) in times.into_iter().zip(["atime", "mtime", "ctime"]) {
            assert!(expected.fits(time), "{name} {time:?} is not {expected:?}");
        }
    }

    fn handles_of(&self, ino: Ino) -> impl Iterator<Item = &Handle> {
        self.handles
            .values()
            .filter(move |handle| handle.ino == ino)
    }

    /// The draft that a process is told of without a handle: of those that it writes the one that was
    /// changed last. One that has only opened the file for reading since is told of what is published.
    fn draft_told_to(&self, ino: Ino, process: Process) -> Option<&Draft> {
        let used = || self.handles_of(ino).filter(|h| h.used_by == process);
        if process == 0 || used().next().is_some() && used().all(|handle| !handle.write) {
            return None;
        }
        let shared = self.nodes[&ino].shared.as_ref();
        let written = self.handles_of(ino).filter(|h| h.is_written_by(process));
        let drafts = written.filter_map(|handle| handle.own.as_ref().or(shared));
        let draft = drafts.max_by_key(|draft| (draft.unpublished, draft.edited.0))?;
        // If that is what is published, it is the same for all.
        let published = self.nodes[&ino].current.bytes.len();
        (draft.unpublished || draft.bytes.len() != published).then_some(draft)
    }

    /// The one handle of a process if it is in the middle of what was replaced: it is told of that.
    fn drained_by(&self, ino: Ino, process: Process) -> Option<Fh> {
        let of_process = |(_, h): &(&Fh, &Handle)| h.ino == ino && h.used_by == process;
        let mut used = self.handles.iter().filter(of_process);
        let (fh, handle) = used.next().filter(|_| process != 0)?;
        let is_only = used.next().is_none();
        (is_only && handle.reads_on(&self.nodes[&ino])).then_some(*fh)
    }

    /// A process asks for attributes, through a handle or not.
    pub fn stat(&mut self, ino: Ino, fh: Option<Fh>, process: Process) {
        let Some(node) = self.nodes.get(&ino) else {
            return;
        };
        if node.kind != Kind::File || node.current.number == 0 {
            return;
        }
        let current = node.current.clone();
        let Some(fh) = fh else {
            return self.tell(ino, process, current);
        };
        let Some(handle) = self.handles.get_mut(&fh).filter(|handle| !handle.write) else {
            return;
        };
        if handle.fresh.is_some() {
            handle.fresh = Some(current);
            return;
        }
        handle.held = true;
        if let Some(pin) = &handle.pin
            && !handle.reads_on(node)
            && pin.number != current.number
        {
            (handle.pin, handle.read_to) = (Some(current), 0);
        }
    }

    /// A process is told of the current version, unless it is told of what it writes, or is in the
    /// middle of.
    fn tell(&mut self, ino: Ino, process: Process, current: Version) {
        if self.draft_told_to(ino, process).is_some() {
            return;
        }
        if let Some(fh) = self.drained_by(ino, process) {
            self.handles.get_mut(&fh).unwrap().held = true;
            return;
        }
        let is_outdated = |handle: &Handle| {
            let fresh = handle.fresh.as_ref();
            fresh.is_some_and(|fresh| fresh.number != current.number)
        };
        let may_read_again = |handle: &Handle| {
            let has_read = !handle.write && handle.pin.is_some();
            process != 0 && handle.used_by == process && has_read
        };
        if self
            .handles_of(ino)
            .any(|h| is_outdated(h) || may_read_again(h))
        {
            let told = &mut self.nodes.get_mut(&ino).unwrap().told;
            told.insert(process, current);
        }
    }

    /// The length through a handle: of its draft, or of what it reads; without: of what the process
    /// writes, of what it is in the middle of, of what is published, or of the first draft.
    pub fn size(&self, ino: Ino, fh: Option<Fh>, process: Process) -> u64 {
        let node = &self.nodes[&ino];
        let handle = fh.map(|fh| &self.handles[&fh]);
        if let Some(own) = handle.and_then(|handle| handle.own.as_ref()) {
            return own.bytes.len() as u64;
        }
        let writes = handle.is_some_and(|h| h.write) || node.current.number == 0;
        if let Some(draft) = node.shared.as_ref().filter(|_| writes) {
            return draft.bytes.len() as u64;
        }
        let reads = match handle {
            Some(handle) => handle.fresh.as_ref().or(handle.pin.as_ref()),
            None if node.current.number == 0 => None,
            None => {
                if let Some(draft) = self.draft_told_to(ino, process) {
                    return draft.bytes.len() as u64;
                }
                let drained = self.drained_by(ino, process);
                drained.and_then(|fh| self.handles[&fh].pin.as_ref())
            }
        };
        let reads = reads.filter(|_| handle.is_none_or(|handle| !handle.write));
        reads.unwrap_or(&node.current).bytes.len() as u64
    }

    /// By a user, in a process.
    pub fn set_attributes(
        &mut self,
        ino: Ino,
        set: &SetAttributes,
        (uid, process): (u32, u32),
        now: When,
    ) {
        let latest = self.draft_told_to(ino, process);
        let latest = latest
            .filter(|draft| draft.unpublished)
            .map(|draft| draft.edited);
        let node = self.nodes.get_mut(&ino).unwrap();
        if set.uid.is_some() || set.gid.is_some() {
            if node.kind != Kind::Directory {
                // A locking flag goes, too, unless the caller is privileged.
                let locking = if uid == 0 { 0 } else { 0o2000 };
                node.mode = without_set_id(node.mode) & !locking;
            }
            node.uid = set.uid.unwrap_or(node.uid);
            node.gid = set.gid.unwrap_or(node.gid);
        }
        node.mode = set.mode.unwrap_or(node.mode);
        node.accessed = set.accessed.map_or(node.accessed, When::at);
        let published = node.current.number > 0;
        let mut is_told = set.modified.is_none() || set.accessed.is_some();
        is_told |= set.mode.is_some() || set.uid.is_some() || set.gid.is_some();
        if let Some(time) = set.modified {
            let own = self.handles.values_mut().filter(|h| h.ino == ino);
            let own = own.filter_map(|handle| handle.own.as_mut());
            let mut drafts: Vec<_> = own.chain(&mut node.shared).collect();
            let of_caller = latest.is_some();
            // It is told with what the caller is writing. If that is nothing, what others publish later
            // does not move it again.
            drafts.retain(|draft| latest.is_none_or(|edited| draft.edited == edited));
            drafts
                .iter_mut()
                .for_each(|draft| draft.modified = Some(time));
            if !(of_caller && published) {
                node.modified = When::at(time);
                is_told = true;
            }
        }
        if is_told {
            node.changed = now;
        }
    }

    fn drop_set_id(&mut self, ino: Ino, now: When) {
        if let Some(node) = self.nodes.get_mut(&ino) {
            let mode = without_set_id(node.mode);
            if mode != node.mode {
                (node.mode, node.changed) = (mode, now);
            }
        }
    }

    pub fn get_xattr(&self, ino: Ino, name: &[u8]) -> Answer<Vec<u8>> {
        let node = &self.nodes[&ino];
        if !name.starts_with(b"user.") {
            return Err(EOPNOTSUPP);
        }
        if name == b"user.secretfs.version" && node.kind == Kind::File {
            return Ok(node.current.number.to_string().into_bytes());
        }
        node.xattrs.get(name).cloned().ok_or(ENODATA)
    }

    fn may_change_xattr(name: &[u8]) -> Answer<()> {
        if name.starts_with(b"user.secretfs.") {
            return Err(EPERM);
        }
        if !name.starts_with(b"user.") {
            return Err(EOPNOTSUPP);
        }
        Ok(())
    }

    pub fn set_xattr(
        &mut self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        flags: i32,
        now: When,
    ) -> Answer<()> {
        Self::may_change_xattr(name)?;
        let node = self.nodes.get_mut(&ino).ok_or(ENOENT)?;
        match node.xattrs.contains_key(name) {
            true if flags & libc::XATTR_CREATE != 0 => return Err(EEXIST),
            false if flags & libc::XATTR_REPLACE != 0 => return Err(ENODATA),
            _ => {}
        }
        let mut xattrs = node.xattrs.clone();
        xattrs.insert(name.to_vec(), value.to_vec());
        let total: usize = xattrs.iter().map(|(n, v)| n.len() + v.len() + 16).sum();
        if total > MAX_XATTRS {
            return Err(ENOSPC);
        }
        (node.xattrs, node.changed) = (xattrs, now);
        Ok(())
    }

    pub fn remove_xattr(&mut self, ino: Ino, name: &[u8], now: When) -> Answer<()> {
        Self::may_change_xattr(name)?;
        let node = self.nodes.get_mut(&ino).ok_or(ENOENT)?;
        node.xattrs.remove(name).ok_or(ENODATA)?;
        node.changed = now;
        Ok(())
    }
}

fn new_node(kind: Kind, mode: u32, (uid, gid): (u32, u32), parent: Ino, now: When) -> Node {
    Node {
        kind,
        mode,
        uid,
        gid,
        links: 1,
        device: 0x0103,
        target: b"target".to_vec(),
        xattrs: BTreeMap::new(),
        accessed: now,
        modified: now,
        changed: now,
        current: Version::default(),
        replaced: 0,
        shared: None,
        told: BTreeMap::new(),
        entries: BTreeMap::new(),
        parent,
    }
}

// --- contents ---------------------------------------------------------------------------------

impl Reference {
    pub fn may_open(&self, ino: Ino) -> Answer<()> {
        let node = self.nodes.get(&ino).ok_or(ENOENT)?;
        match node.kind {
            Kind::Directory => Err(EISDIR),
            Kind::File => Ok(()),
            _ => Err(EINVAL),
        }
    }

    pub fn open(&mut self, ino: Ino, fh: Fh, mut how: Opening, now: When) {
        let access = how.flags & libc::O_ACCMODE;
        if access == libc::O_RDONLY && how.flags & libc::O_TRUNC != 0 {
            // Nothing will be written through it: as truncate(2).
            self.truncate_path(ino, 0, how.uid, now)
                .expect("shorter is possible");
            how.flags &= !libc::O_TRUNC;
        }
        let mut handle = Handle {
            ino,
            read: access != libc::O_WRONLY,
            write: access != libc::O_RDONLY,
            append: how.flags & libc::O_APPEND != 0,
            opener: how.opener,
            user: how.uid,
            owners: BTreeSet::new(),
            authors: BTreeSet::new(),
            used_by: how.opener.unwrap_or(0),
            own: None,
            pin: None,
            fresh: None,
            held: false,
            read_to: 0,
        };
        let node = self.nodes.get_mut(&ino).unwrap();
        if !handle.write && node.current.number > 0 {
            handle.fresh = Some(node.current.clone());
        }
        if how.flags & libc::O_TRUNC != 0 {
            if node.current.number > 0 {
                let mut own = Draft::clean(Vec::new(), how.uid, now);
                own.touch(None, now);
                handle.own = Some(own);
            } else if let Some(shared) = node.shared.as_mut().filter(|s| !s.bytes.is_empty()) {
                shared.bytes.clear();
                shared.touch(None, now);
            }
            if how.uid != 0 {
                self.drop_set_id(ino, now);
            }
        }
        assert!(
            self.handles.insert(fh, handle).is_none(),
            "a handle is used twice"
        );
    }

    pub fn read(&mut self, fh: Fh, offset: u64, size: u64, process: Process) -> Answer<Vec<u8>> {
        let is_new =
            |(other, h): (&Fh, &Handle)| *other != fh && h.used_by == process && h.fresh.is_some();
        let ino = self.handles[&fh].ino;
        let mut of_node = self.handles.iter().filter(|(_, h)| h.ino == ino);
        let has_new_one = of_node.any(is_new);
        let handle = self.handles.get_mut(&fh).unwrap();
        let node = self.nodes.get_mut(&ino).unwrap();
        if !handle.read {
            return Err(EBADF);
        }
        let draft = match (&handle.own, handle.write || node.current.number == 0) {
            (Some(own), _) => Some(own),
            (None, true) => node.shared.as_ref(),
            (None, false) => None,
        };
        if let Some(draft) = draft {
            return Ok(window(&draft.bytes, offset, size));
        }
        if node.current.number == 0 {
            return Ok(Vec::new());
        }
        let first = handle.fresh.take();
        let is_first = first.is_some();
        let (pin, held) = match (first, &handle.pin) {
            // What was told is what is read.
            (Some(fresh), _) => (node.since(&fresh, process).clone(), true),
            // The beginning again: what its process was told since, or the newest.
            (None, Some(pin)) if !handle.write && offset == 0 && !handle.held => {
                let told = node.told.get(&process).filter(|_| process != 0);
                let told = told.filter(|told| told.number >= pin.number);
                (told.unwrap_or(&node.current).clone(), false)
            }
            (None, Some(pin)) if !handle.write => {
                // It is at the end, or was not replaced but edited.
                let is_edited = pin.number >= node.replaced;
                let follows = offset > 0 && (offset >= pin.bytes.len() as u64 || is_edited);
                let pin = if follows { &node.current } else { pin };
                (pin.clone(), handle.held)
            }
            (None, _) => (node.current.clone(), handle.held),
        };
        // What it was told before is not what it reads next, but through another that it has not read
        // from.
        if process != 0 && !has_new_one {
            node.told.remove(&process);
        }
        let length = pin.bytes.len() as u64;
        handle.held = held && 0 < offset && (is_first || offset < length);
        handle.read_to = (offset + size).min(length);
        handle.used_by = process;
        handle.pin = Some(pin);
        Ok(window(&handle.pin.as_ref().unwrap().bytes, offset, size))
    }

    /// Bytes of the drafts for which `counts`.
    fn drafts(&self, counts: impl Fn(&Draft) -> bool) -> u64 {
        let own = self.handles.values().filter_map(|h| h.own.as_ref());
        let shared = self.nodes.values().filter_map(|n| n.shared.as_ref());
        own.chain(shared)
            .filter(|draft| counts(draft))
            .map(|draft| draft.bytes.len() as u64)
            .sum()
    }

    /// Whether a user may have `more` bytes in a draft that is `length` long then: an eighth is kept
    /// for small ones, and everybody but root leaves a quarter of what the others have left.
    fn may_take(&self, user: u32, more: u64, length: u64) -> Answer<()> {
        let kept = match length <= 128 << 10 {
            true => 0,
            false => self.max_memory / 8,
        };
        let taken = self.drafts(|_| true) + more + kept;
        let free = self.max_memory.checked_sub(taken);
        let own = self.drafts(|draft| draft.user == user) + more;
        match free {
            _ if more == 0 => Ok(()),
            Some(free) if user == 0 || own <= 3 * free => Ok(()),
            _ => Err(ENOSPC),
        }
    }

    /// The draft that a handle writes to; the in-place one begins as a copy.
    fn draft(&mut self, fh: Fh, now: When) -> Answer<&mut Draft> {
        let handle = &self.handles[&fh];
        let (ino, user) = (handle.ino, handle.user);
        if handle.own.is_none() && self.nodes[&ino].shared.is_none() {
            let copied = Rc::clone(&self.nodes[&ino].current.bytes);
            let length = copied.len() as u64;
            self.may_take(user, length, length)?;
            let draft = Draft::clean(copied.to_vec(), user, now);
            self.nodes.get_mut(&ino).unwrap().shared = Some(draft);
        }
        match &mut self.handles.get_mut(&fh).unwrap().own {
            Some(own) => Ok(own),
            None => Ok(self.nodes.get_mut(&ino).unwrap().shared.as_mut().unwrap()),
        }
    }

    /// Whether the draft may have `size` bytes.
    fn may_resize(&mut self, fh: Fh, size: u64, now: When) -> Answer<()> {
        let max_size = self.max_size;
        let draft = self.draft(fh, now)?;
        let (length, user) = (draft.bytes.len() as u64, draft.user);
        if size > length && size > max_size {
            return Err(EFBIG);
        }
        self.may_take(user, size.saturating_sub(length), size)
    }

    pub fn write(
        &mut self,
        fh: Fh,
        offset: u64,
        data: &[u8],
        (process, owner, kill_set_id): (Process, u64, bool),
        now: When,
    ) -> Answer<u32> {
        let handle = &self.handles[&fh];
        let (ino, append) = (handle.ino, handle.append);
        if !handle.write {
            return Err(EBADF);
        }
        if kill_set_id {
            self.drop_set_id(ino, now);
        }
        let length = self.draft(fh, now)?.bytes.len();
        let at = if append { length } else { offset as usize };
        let end = at + data.len();
        if !data.is_empty() {
            self.may_resize(fh, (end.max(length)) as u64, now)?;
            let draft = self.draft(fh, now)?;
            draft.bytes.resize(end.max(length), 0);
            draft.bytes[at..end].copy_from_slice(data);
            draft.touch(Some(fh), now);
        }
        let handle = self.handles.get_mut(&fh).unwrap();
        handle.owners.insert(owner);
        handle.authors.insert(process);
        handle.used_by = process;
        // What it was told before is not what it reads next.
        self.nodes.get_mut(&ino).unwrap().told.remove(&process);
        Ok(data.len() as u32)
    }

    /// ftruncate(2).
    pub fn truncate_handle(&mut self, fh: Fh, size: u64, uid: u32, now: When) -> Answer<()> {
        let handle = &self.handles[&fh];
        let (ino, writes) = (handle.ino, handle.write);
        if uid != 0 {
            self.drop_set_id(ino, now);
        }
        if !writes {
            return Err(EINVAL);
        }
        let handle = &self.handles[&fh];
        let node = self.nodes.get_mut(&handle.ino).unwrap();
        if size == 0 && handle.own.is_none() && node.shared.is_none() {
            // Needs neither the old content nor room for it.
            node.shared = Some(Draft::clean(Vec::new(), handle.user, now));
        }
        self.may_resize(fh, size, now)?;
        let draft = self.draft(fh, now)?;
        draft.bytes.resize(size as usize, 0);
        draft.touch(Some(fh), now);
        draft.replaces |= size == 0;
        Ok(())
    }

    /// truncate(2), which publishes at once.
    pub fn truncate_path(&mut self, ino: Ino, size: u64, uid: u32, now: When) -> Answer<()> {
        const NOBODY: Fh = 0;
        let how = Opening {
            flags: libc::O_WRONLY,
            opener: None,
            uid,
        };
        self.open(ino, NOBODY, how, now);
        let cut = self.truncate_handle(NOBODY, size, uid, now);
        if cut.is_ok() {
            self.publish_shared(ino, now);
        }
        self.release(NOBODY, now);
        cut
    }

    pub fn allocate(
        &mut self,
        fh: Fh,
        (offset, length): (u64, u64),
        mode: i32,
        now: When,
    ) -> Answer<()> {
        if !self.handles[&fh].write {
            return Err(EBADF);
        }
        let zeroes = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE;
        if mode & !(zeroes | libc::FALLOC_FL_KEEP_SIZE) != 0 {
            return Err(EOPNOTSUPP);
        }
        let size = self.draft(fh, now)?.bytes.len() as u64;
        let end = offset + length;
        let extends = mode & libc::FALLOC_FL_KEEP_SIZE == 0 && end > size;
        if extends {
            self.may_resize(fh, end, now)?;
            self.draft(fh, now)?.bytes.resize(end as usize, 0);
        }
        let draft = self.draft(fh, now)?;
        if mode & zeroes != 0 {
            let length = draft.bytes.len() as u64;
            draft.bytes[offset.min(length) as usize..end.min(length) as usize].fill(0);
        }
        if extends || mode & zeroes != 0 {
            draft.touch(Some(fh), now);
        }
        Ok(())
    }

    pub fn copy_range(
        &mut self,
        from: (Fh, u64),
        to: (Fh, u64),
        length: u64,
        now: When,
    ) -> Answer<u32> {
        // By nobody who can be seen.
        let data = self.read(from.0, from.1, length, 0)?;
        self.write(to.0, to.1, &data, (0, 0, false), now)
    }

    /// By a process that cannot be seen.
    pub fn seek(&mut self, fh: Fh, offset: u64, hole: bool) -> Answer<u64> {
        let handle = self.handles.get_mut(&fh).unwrap();
        let (ino, node) = (handle.ino, &self.nodes[&handle.ino]);
        if let Some(fresh) = handle.fresh.as_mut().filter(|_| !handle.write) {
            *fresh = node.since(fresh, 0).clone();
        }
        let size = self.size(ino, Some(fh), 0);
        match hole {
            _ if offset >= size => Err(ENXIO),
            true => Ok(size),
            false => Ok(offset),
        }
    }

    // --- publishing -------------------------------------------------------------------------

    fn publish(&mut self, ino: Ino, draft: &Draft, own: bool, now: When) {
        let nobody_reads = self.handles_of(ino).all(|handle| handle.write);
        let node = self.nodes.get_mut(&ino).unwrap();
        if nobody_reads {
            node.told.clear();
        }
        node.current = Version {
            number: node.current.number + 1,
            bytes: Rc::new(draft.bytes.clone()),
        };
        (node.modified, node.changed) = (draft.modified(), now);
        if own || draft.replaces {
            node.replaced = node.current.number;
        }
        if own {
            // A clean in-place draft begins anew; one with changes wins whole if published later.
            node.shared = node.shared.take().filter(|shared| shared.unpublished);
            if let Some(shared) = &mut node.shared {
                shared.replaces = true;
            }
        }
    }

    fn publish_own(&mut self, fh: Fh, now: When) {
        let handle = self.handles.get_mut(&fh).unwrap();
        let ino = handle.ino;
        let own = handle.own.as_mut().unwrap();
        own.unpublished = false;
        own.writers.clear();
        let draft = own.clone();
        self.publish(ino, &draft, true, now);
    }

    fn publish_shared(&mut self, ino: Ino, now: When) {
        let shared = self.nodes.get_mut(&ino).unwrap().shared.as_mut().unwrap();
        shared.unpublished = false;
        shared.writers.clear();
        let draft = shared.clone();
        shared.replaces = false;
        self.publish(ino, &draft, false, now);
        self.end_idle_draft(ino);
    }

    fn end_idle_draft(&mut self, ino: Ino) {
        let mut handles = self.handles.values();
        if !handles.any(|h| h.ino == ino && h.writes_in_place()) {
            self.nodes.get_mut(&ino).unwrap().shared = None;
        }
    }

    /// A descriptor was closed by process `pid`.
    pub fn flush(&mut self, fh: Fh, pid: Option<u32>, owner: u64, now: When) {
        let handle = &self.handles[&fh];
        let ino = handle.ino;
        let by_opener = match (handle.opener, pid) {
            (Some(opener), Some(pid)) => opener == pid,
            (_, _) => handle.owners.contains(&owner),
        };
        if !handle.write || !by_opener {
            return;
        }
        match &handle.own {
            Some(own) if own.writers.contains(&fh) => self.publish_own(fh, now),
            Some(_) => {}
            None => {
                let shared = self.nodes[&ino].shared.as_ref();
                if shared.is_some_and(|shared| shared.writers.contains(&fh)) {
                    self.publish_shared(ino, now);
                }
            }
        }
    }

    pub fn fsync(&mut self, fh: Fh, now: When) {
        let handle = &self.handles[&fh];
        let ino = handle.ino;
        match &handle.own {
            Some(own) if own.unpublished => self.publish_own(fh, now),
            Some(_) => {}
            None if handle.write => {
                let shared = self.nodes[&ino].shared.as_ref();
                if shared.is_some_and(|shared| shared.unpublished) {
                    self.publish_shared(ino, now);
                }
            }
            None => {}
        }
    }

    /// The last descriptor was closed.
    pub fn release(&mut self, fh: Fh, now: When) {
        let handle = self.handles.remove(&fh).unwrap();
        let ino = handle.ino;
        if let Some(own) = handle.own.as_ref().filter(|own| own.unpublished) {
            self.publish(ino, own, true, now);
        }
        let mut others = self.handles.values();
        let last = !others.any(|h| h.ino == ino && h.writes_in_place());
        let shared = self.nodes[&ino].shared.as_ref();
        if last && shared.is_some_and(|shared| shared.unpublished) {
            self.publish_shared(ino, now);
        }
        self.end_idle_draft(ino);
        if self.handles_of(ino).next().is_none() {
            self.nodes.get_mut(&ino).unwrap().told.clear();
        }
        self.forget_if_unused(ino);
    }

    pub fn close_directory(&mut self, fh: Fh) {
        let ino = self.directories.remove(&fh).unwrap();
        self.forget_if_unused(ino);
    }

    // --- endings ----------------------------------------------------------------------------

    /// An orderly end publishes what is left: replacements in the order in which they were
    /// begun, then what was written in place.
    pub fn publish_all(&mut self, now: When) {
        let replacing = |(_, h): &(&Fh, &Handle)| h.own.as_ref().is_some_and(|d| d.unpublished);
        let handles: Vec<_> = self.handles.iter().filter(replacing).collect();
        let handles: Vec<_> = handles.into_iter().map(|(fh, _)| *fh).collect();
        for fh in handles {
            self.publish_own(fh, now);
        }
        let written = |(_, n): &(&Ino, &Node)| n.shared.as_ref().is_some_and(|d| d.unpublished);
        let inos: Vec<_> = self.nodes.iter().filter(written).map(|(i, _)| *i).collect();
        for ino in inos {
            self.publish_shared(ino, now);
        }
    }

    /// All is closed, whatever was not published is gone.
    pub fn cut(&mut self) {
        self.handles.clear();
        self.directories.clear();
        self.nodes.retain(|_, node| node.links > 0);
        for node in self.nodes.values_mut() {
            node.shared = None;
            node.told.clear();
        }
    }

    /// Versions that are to be found in a vault that nobody has open, each once.
    pub fn versions(&self) -> u64 {
        let published = |node: &&Node| node.current.number > 0;
        self.nodes.values().filter(published).count() as u64
    }

    pub fn entries(&self) -> u64 {
        self.nodes.values().map(|n| n.entries.len() as u64).sum()
    }

    /// What is published.
    pub fn content(&self, ino: Ino) -> &[u8] {
        &self.nodes[&ino].current.bytes
    }

    /// What somebody reads who opens it now.
    pub fn seen_by_all(&self, ino: Ino) -> &[u8] {
        let node = &self.nodes[&ino];
        match &node.shared {
            Some(shared) if node.current.number == 0 => &shared.bytes,
            _ => &node.current.bytes,
        }
    }
}

/// The number of names in each state of a directory that is read piece by piece.
#[derive(Clone, Debug, Default)]
pub struct Stream {
    pub position: u64,
    pub seen: HashMap<Vec<u8>, u32>,
    /// There all the time.
    pub stable: BTreeSet<Vec<u8>>,
    /// There at some time.
    pub ever: BTreeSet<Vec<u8>>,
}

impl Stream {
    /// These names are there now.
    pub fn note<'n>(&mut self, names: impl Iterator<Item = &'n Vec<u8>>) {
        let now: BTreeSet<_> = names.cloned().collect();
        match self.ever.is_empty() && self.position == 0 && self.seen.is_empty() {
            true => self.stable = now.clone(),
            false => self.stable.retain(|name| now.contains(name)),
        }
        self.ever.extend(now);
    }

    /// It was read to its end.
    pub fn expect_complete(&self) {
        assert!(
            self.seen.values().all(|count| *count == 1),
            "once each: {self:?}"
        );
        for name in self
            .stable
            .iter()
            .map(|name| &name[..])
            .chain([&b"."[..], b".."])
        {
            assert!(
                self.seen.contains_key(name),
                "{name:?} was left out: {self:?}"
            );
        }
        for name in self
            .seen
            .keys()
            .filter(|name| name[..] != *b"." && name[..] != *b"..")
        {
            assert!(
                self.ever.contains(name),
                "{name:?} never was there: {self:?}"
            );
        }
    }
}
