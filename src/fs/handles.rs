//! What is open: handles, the nodes they belong to, their drafts and the versions they pin.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

use crate::crypto::SecretBytes;
use crate::store::NodeId;
use crate::vault::{Kind, LastChunk, OpenFiles, Version};

use super::Errno;
use super::budget::Reservation;
use super::draft::Draft;
use super::pages::Pages;
use super::readings::{Reading, Told};

/// A file handle: what the kernel passes with every request for an open file.
pub type FileHandle = u64;

/// How a handle was opened.
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

/// A version's content in memory, or what is needed to read it piece by piece.
#[derive(Debug)]
pub(super) enum Loaded {
    Whole {
        bytes: SecretBytes,
        _reservation: Reservation,
    },
    Pieces(Version),
}

/// The chunk that a handle read last. Not shared: readers at different places would take it from
/// each other.
pub(super) type LastPiece = Arc<Mutex<LastChunk>>;

/// The version that a reader has settled on.
#[derive(Clone, Debug)]
pub(super) struct Pin {
    pub(super) version: u64,
    pub(super) length: u64,
    /// Dropped when memory runs short, and loaded again.
    pub(super) loaded: Option<Arc<Loaded>>,
    pub(super) last: LastPiece,
}

/// What a handle has of its own.
#[derive(Debug, Default)]
pub(super) struct HandleState {
    pub(super) write: bool,
    /// It may be mapped for writing.
    pub(super) maps: bool,
    /// The process that opened it; `None` when it cannot be seen, or only reads.
    pub(super) opener: Option<u32>,
    /// A replacement of its own.
    pub(super) own: Option<Draft>,
    pub(super) pin: Option<Pin>,
    /// What its process may have been told of; of those that only read.
    pub(super) reading: Reading,
    /// Since when the reader knows the end of what it has pinned.
    ended: Option<Instant>,
    /// A descriptor of it was closed: it may have been the last.
    pub(super) flushed: bool,
    /// Number of the last change that came through it, in the draft it writes to.
    pub(super) wrote: u64,
    /// Lock owners that wrote, for when process ids are not to be seen.
    pub(super) owners: HashSet<u64>,
    /// Processes that wrote, other than the opener.
    pub(super) groups: Vec<u32>,
    /// It was read by way of the page cache.
    pub(super) paged: bool,
    /// When its draft's length was last asked for through it.
    pub(super) sought: Option<Instant>,
    /// The kernel has thrown away pages that were written to: the draft may lack what they had.
    pub(super) spoiled: bool,
}

impl HandleState {
    /// Whether a reader at `offset` has been waiting for `patience` at the end of what it has
    /// pinned.
    pub(super) fn waits_at_end(&mut self, offset: u64, patience: Duration) -> bool {
        match &self.pin {
            Some(pin) if offset >= pin.length => {
                self.ended.get_or_insert_with(Instant::now).elapsed() >= patience
            }
            _ => {
                self.ended = None;
                false
            }
        }
    }

    /// Settles on a version.
    pub(super) fn settle(&mut self, pin: Option<Pin>) {
        (self.pin, self.ended) = (pin, None);
    }
}

/// What all handles of a node share.
#[derive(Default)]
pub(super) struct NodeState {
    pub(super) handles: HashMap<FileHandle, HandleState>,
    /// The draft of those that write in place.
    pub(super) shared: Option<Draft>,
    /// Publications under way.
    pub(super) publishing: u32,
    /// What waits for them.
    pub(super) waiting: Vec<Box<dyn FnOnce() + Send>>,
    /// Contents in memory, by version.
    pub(super) loaded: HashMap<u64, Weak<Loaded>>,
    /// Pages may be in the page cache.
    pub(super) paged: bool,
    pub(super) pages: Pages,
    /// Who was told of which version, while somebody may still read another.
    pub(super) told: Told,
    /// The length that the kernel believes in, as far as it came from here.
    pub(super) believed: Option<u64>,
    /// Versions before the current one may be in the store.
    kept: bool,
}

impl NodeState {
    /// The draft that a handle writes to, if it has begun.
    pub(super) fn draft_of(&mut self, handle: FileHandle) -> Option<&mut Draft> {
        let state = self.handles.get_mut(&handle)?;
        match (&mut state.own, state.write) {
            (Some(own), _) => Some(own),
            (None, true) => self.shared.as_mut(),
            (None, false) => None,
        }
    }

    /// Versions that some handle still reads, to be kept in the store; to be reaped later.
    pub(super) fn keep_pinned(&mut self) -> Vec<u64> {
        let handles = self.handles.values();
        let pins = handles.filter_map(|h| h.pin.as_ref().map(|pin| pin.version));
        let mut versions: Vec<_> = pins.collect();
        self.add_promised(&mut versions);
        self.kept |= !versions.is_empty();
        versions
    }

    /// Whether a handle that has left something unpublished may be closed by now.
    pub(super) fn may_be_closed(&self) -> bool {
        let unpublished = |draft: &Option<Draft>| draft.as_ref().is_some_and(Draft::is_unpublished);
        self.handles
            .values()
            .any(|h| h.flushed && (unpublished(&h.own) || unpublished(&self.shared)))
    }

    pub(super) fn has_writers(&self) -> bool {
        self.handles.values().any(|h| h.write)
    }

    /// Whether somebody can still write to the in-place draft.
    pub(super) fn has_writers_in_place(&self) -> bool {
        self.handles.values().any(|h| h.write && h.own.is_none())
    }
}

/// A node with open handles.
pub(super) struct OpenNode {
    pub(super) id: NodeId,
    state: Mutex<NodeState>,
}

impl OpenNode {
    pub(super) fn lock(&self) -> MutexGuard<'_, NodeState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An open file.
pub(super) struct Handle {
    pub(super) node: Arc<OpenNode>,
    pub(super) access: Access,
    /// Every write goes to the end, as fcntl(2) last had it.
    pub(super) append: AtomicBool,
    /// The process that opened it; `None` when it cannot be seen.
    pub(super) opener: Option<u32>,
}

/// A node that the kernel has looked up and not forgotten.
struct Known {
    lookups: u64,
    /// The version of a file whose attributes the kernel may remember.
    told: u64,
    /// The kernel lets programs hold on to it without opening it here: a directory that somebody
    /// works in, an open pipe.
    held: bool,
    /// It lost its last name and is deleted when the kernel forgets it.
    kept: bool,
}

#[derive(Default)]
struct Nodes {
    open: HashMap<NodeId, Arc<OpenNode>>,
    /// Being deleted by a transaction under way; cannot be opened any more.
    dying: HashSet<NodeId>,
    known: HashMap<NodeId, Known>,
}

/// All that is open.
#[derive(Default)]
pub(super) struct Table {
    nodes: Mutex<Nodes>,
    handles: RwLock<HashMap<FileHandle, Arc<Handle>>>,
    next: std::sync::atomic::AtomicU64,
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, Nodes> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a handle. Its node cannot be deleted from now on until the handle is closed.
    pub(super) fn open(
        &self,
        node: NodeId,
        access: Access,
        opener: Option<u32>,
    ) -> Result<(FileHandle, Arc<Handle>), Errno> {
        let fh = 1 + self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut nodes = self.lock();
        if nodes.dying.contains(&node) {
            return Err(Errno(libc::ENOENT));
        }
        let open = nodes.open.entry(node).or_insert_with(|| {
            Arc::new(OpenNode {
                id: node,
                state: Mutex::default(),
            })
        });
        let state = HandleState {
            write: access.write,
            maps: access.write && access.read,
            opener,
            ..HandleState::default()
        };
        open.lock().handles.insert(fh, state);
        let handle = Arc::new(Handle {
            node: Arc::clone(open),
            access,
            append: AtomicBool::new(access.append),
            opener,
        });
        drop(nodes);
        let mut handles = self.handles.write().unwrap_or_else(PoisonError::into_inner);
        handles.insert(fh, Arc::clone(&handle));
        Ok((fh, handle))
    }

    /// Handles that are opened from now on have higher numbers.
    pub(super) fn last(&self) -> FileHandle {
        self.next.load(std::sync::atomic::Ordering::Relaxed)
    }

    pub(super) fn get(&self, fh: FileHandle) -> Result<Arc<Handle>, Errno> {
        let handles = self.handles.read().unwrap_or_else(PoisonError::into_inner);
        handles.get(&fh).cloned().ok_or(Errno(libc::EBADF))
    }

    /// Takes a handle out. Its state stays with the node, which must not be forgotten before what
    /// the handle leaves behind is seen to be published.
    pub(super) fn take(&self, fh: FileHandle) -> Option<Arc<Handle>> {
        let mut handles = self.handles.write().unwrap_or_else(PoisonError::into_inner);
        handles.remove(&fh)
    }

    /// Takes out a handle that nobody has used.
    pub(super) fn discard(&self, fh: FileHandle) {
        if let Some(handle) = self.take(fh) {
            handle.node.lock().handles.remove(&fh);
        }
    }

    /// The node's shared state, if anything of it is open or being published.
    pub(super) fn node(&self, id: NodeId) -> Option<Arc<OpenNode>> {
        self.lock().open.get(&id).cloned()
    }

    /// Forgets a node that has neither handles nor publications any more; tells whether versions
    /// were kept for its handles. `None` when it is still in use.
    pub(super) fn forget_if_idle(&self, id: NodeId) -> Option<bool> {
        let mut nodes = self.lock();
        let kept = {
            let state = nodes.open.get(&id)?.lock();
            if !state.handles.is_empty() || state.publishing > 0 {
                return None;
            }
            state.kept
        };
        nodes.open.remove(&id);
        Some(kept)
    }

    pub(super) fn all_nodes(&self) -> Vec<Arc<OpenNode>> {
        self.lock().open.values().cloned().collect()
    }

    /// The kernel is about to be told of a node.
    pub(super) fn remember(&self, id: NodeId, kind: Kind, version: u64) {
        let mut nodes = self.lock();
        let known = nodes.known.entry(id).or_insert(Known {
            lookups: 0,
            told: 0,
            held: !matches!(kind, Kind::File | Kind::Symlink),
            kept: false,
        });
        known.lookups += 1;
        known.told = version;
    }

    /// The kernel is told of a version of a node that it knows; returns of which it was told before.
    pub(super) fn note_told(&self, id: NodeId, version: u64) -> Option<u64> {
        let mut nodes = self.lock();
        let known = nodes.known.get_mut(&id)?;
        Some(std::mem::replace(&mut known.told, version))
    }

    /// The kernel takes back `lookups`; tells whether the node waited for the last of them to be
    /// deleted.
    pub(super) fn forget(&self, id: NodeId, lookups: u64) -> bool {
        let mut nodes = self.lock();
        let Some(known) = nodes.known.get_mut(&id) else {
            return false;
        };
        known.lookups = known.lookups.saturating_sub(lookups);
        known.lookups == 0 && nodes.known.remove(&id).is_some_and(|known| known.kept)
    }

    /// Number of open handles.
    pub(super) fn len(&self) -> usize {
        self.handles
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    /// The transaction that was deleting nodes is over.
    fn revive(&self, ids: &[NodeId]) {
        let mut nodes = self.lock();
        for id in ids {
            nodes.dying.remove(id);
        }
    }
}

/// The table as a deleting job sees it: what is not open starts dying.
pub(super) struct Reaper {
    pub(super) table: Arc<Table>,
    /// The name goes on to name something else: who has just looked it up must still find one or
    /// the other, so what the kernel knows stays.
    replacing: bool,
    doomed: Mutex<Vec<NodeId>>,
}

impl Reaper {
    pub(super) fn new(table: Arc<Table>, replacing: bool) -> Self {
        Self {
            table,
            replacing,
            doomed: Mutex::default(),
        }
    }
}

impl OpenFiles for Reaper {
    fn is_open_or_dying(&self, node: NodeId) -> bool {
        let mut nodes = self.table.lock();
        let replacing = self.replacing;
        let known = nodes.known.get_mut(&node).is_some_and(|known| {
            known.kept |= replacing || known.held;
            known.kept
        });
        if known || nodes.open.contains_key(&node) {
            return true;
        }
        nodes.dying.insert(node);
        self.doomed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(node);
        false
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        let doomed = self
            .doomed
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        self.table.revive(doomed);
    }
}
