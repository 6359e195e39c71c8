//! What the file system promises, as simply as it can be said: everything in memory, one request
//! after the other. Knows nothing of how secretfs does it.

mod attributes;
mod contents;
mod names;
mod publishing;
pub mod stream;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use secretfs::fs::Attr;
use secretfs::vault::{Kind, Timestamp};

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
