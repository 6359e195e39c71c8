//! What is open: handles, the nodes they belong to, their drafts and the versions they pin.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crate::store::NodeId;
use crate::vault::{Kind, Node, OpenFiles, ROOT};

use super::draft::Draft;
use super::handoff::answered_elsewhere;
use super::loaded::{InMemory, Pin};
use super::pages::Pages;
use super::queue::Whose;
use super::readings::{Reading, Told};
use super::{Attr, Errno};

/// Bytes of extended attributes that are held of a file that is open beside a writer.
const FEW_XATTRS: usize = 2 * 1024;

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

/// What a handle has of its own.
#[derive(Debug, Default)]
pub(super) struct HandleState {
    pub(super) write: bool,
    /// It may be mapped for writing.
    pub(super) maps: bool,
    /// The process that opened it; `None` when it cannot be seen, or only reads.
    pub(super) opener: Option<u32>,
    /// The user who opened it.
    pub(super) whose: Whose,
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

/// What goes on when publications are over.
type Waiting = Vec<Box<dyn FnOnce() + Send>>;

/// What all handles of a node share.
#[derive(Default)]
pub(super) struct NodeState {
    pub(super) handles: HashMap<FileHandle, HandleState>,
    /// The draft of those that write in place.
    pub(super) shared: Option<Draft>,
    /// Publications under way.
    pub(super) publishing: u32,
    /// What waits for them, in the order in which it came.
    waiting: Waiting,
    /// What waited goes on just now.
    pub(super) resuming: bool,
    pub(super) loaded: InMemory,
    /// Pages may be in the page cache.
    pub(super) paged: bool,
    pub(super) pages: Pages,
    /// Who was told of which version, while somebody may still read another.
    pub(super) told: Told,
    /// The length that the kernel believes in, as far as it came from here.
    pub(super) believed: Option<u64>,
    /// Versions besides the current one may be in the store.
    kept: bool,
    /// Beside a writer, which may remove it: the node as it was opened.
    pub(super) opened: Option<Arc<Node>>,
    /// That is without its extended attributes.
    pub(super) opened_bare: bool,
    /// The node is on the list of those whose drafts are looked at for what was appended.
    pub(super) is_watched: bool,
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

    /// Whether everybody is shown the in-place draft, `version` being the current one: nothing was
    /// published yet, save that the draft is stored now and then.
    pub(super) fn shows_draft(&self, version: u64) -> bool {
        version == 0 || self.shared.as_ref().is_some_and(Draft::is_first)
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

    /// Pieces of a content that was not published may be in the store.
    pub(super) fn leave_pieces(&mut self) {
        self.kept = true;
    }

    /// Whether a handle may be closed by now that has left something unpublished, or a draft that is
    /// nothing to its process any more.
    pub(super) fn may_be_closed(&self) -> bool {
        // What is being published now overtakes the others.
        let publishes = self.publishing > 0;
        let counts = |draft: &Draft| publishes || draft.is_unpublished() || draft.is_overtaken();
        let shared = self.shared.as_ref().is_some_and(Draft::is_unpublished);
        let mut flushed = self.handles.values().filter(|own| own.flushed);
        flushed.any(|own| shared || own.own.as_ref().is_some_and(counts))
    }

    /// Beside a writer: settles a handle on what was read of the node.
    pub(super) fn settle_beside_writer(
        &mut self,
        handle: FileHandle,
        node: Arc<Node>,
        pin: Option<Pin>,
    ) {
        self.remember_opened(node);
        if let Some(own) = self.handles.get_mut(&handle) {
            own.settle(pin);
        }
    }

    /// Beside a writer, which may remove it: what was read of the node. Extended attributes of any size
    /// are not held for everybody who opens it.
    pub(super) fn remember_opened(&mut self, node: Arc<Node>) {
        self.opened_bare = node.xattr_bytes() > FEW_XATTRS;
        self.opened = Some(match self.opened_bare {
            true => Arc::new(node.without_xattrs()),
            false => node,
        });
    }

    /// Has `then` go on when the publications that are under way, and what waits for them by now, are
    /// over.
    pub(super) fn wait(&mut self, then: impl FnOnce() + Send + 'static) {
        self.waiting.push(Box::new(then));
        answered_elsewhere();
    }

    /// Whether somebody waits until nothing is being published: who publishes without pause would keep
    /// them waiting for ever, and waits behind them.
    pub(super) fn somebody_waits(&self) -> bool {
        self.resuming || !self.waiting.is_empty()
    }

    /// Those who go on now. Until `resuming` is taken back by whoever has them do so, nobody else gets
    /// any.
    pub(super) fn take_waiting(&mut self) -> Option<Waiting> {
        if self.publishing > 0 || self.resuming || self.waiting.is_empty() {
            return None;
        }
        self.resuming = true;
        Some(std::mem::take(&mut self.waiting))
    }

    pub(super) fn has_writers(&self) -> bool {
        self.handles.values().any(|h| h.write)
    }

    /// Who has opened a handle.
    pub(super) fn user_of(&self, handle: FileHandle) -> Whose {
        self.handles
            .get(&handle)
            .map(|h| h.whose)
            .unwrap_or_default()
    }

    /// Who can write to the in-place draft: one of them.
    pub(super) fn user_in_place(&self) -> Whose {
        let mut writers = self.handles.values().filter(|h| h.write && h.own.is_none());
        writers.next().map(|h| h.whose).unwrap_or_default()
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
    /// Held while a large content is decrypted that others may be about to ask for.
    loading: Mutex<()>,
}

impl OpenNode {
    pub(super) fn lock(&self) -> MutexGuard<'_, NodeState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps others from decrypting a content of it at the same time. Taken before its state.
    pub(super) fn lock_loading(&self) -> MutexGuard<'_, ()> {
        self.loading.lock().unwrap_or_else(PoisonError::into_inner)
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
    /// The user who opened it, for whom it counts what is held for it.
    pub(super) user: u32,
}

/// A node that the kernel has looked up and not forgotten: a program may be about to open it, or
/// hold on to it without opening it here, as a directory that it works in.
#[derive(Default)]
struct Known {
    lookups: u64,
    /// The version of a file whose attributes the kernel may remember.
    told: u64,
    /// It lost its last name and is deleted when the kernel forgets it.
    kept: bool,
}

/// Attributes as the kernel was told of them, by node.
type Seen = HashMap<NodeId, Attr>;

#[derive(Default)]
struct Nodes {
    open: HashMap<NodeId, Arc<OpenNode>>,
    /// Being deleted by a transaction under way; cannot be opened any more.
    dying: HashSet<NodeId>,
    known: HashMap<NodeId, Known>,
    /// Of what the kernel knows, what it was told first, or since it was compared last with what is
    /// so now. Only where somebody else changes it.
    seen: Option<Seen>,
}

impl Nodes {
    fn keep_if_known(&mut self, id: NodeId) -> bool {
        let known = self.known.get_mut(&id);
        known.map(|known| known.kept = true).is_some()
    }
}

/// All that is open.
#[derive(Default)]
pub(super) struct Table {
    nodes: Mutex<Nodes>,
    handles: RwLock<HashMap<FileHandle, Arc<Handle>>>,
    next: std::sync::atomic::AtomicU64,
    /// The kernel was told of directories that it did not know.
    new_directories: AtomicBool,
}

impl Table {
    /// `beside_writer`: somebody else changes what is told of nodes.
    pub(super) fn of(beside_writer: bool) -> Self {
        Self {
            nodes: Mutex::new(Nodes {
                seen: beside_writer.then(Seen::new),
                ..Nodes::default()
            }),
            ..Self::default()
        }
    }

    fn lock(&self) -> MutexGuard<'_, Nodes> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a handle. Its node cannot be deleted from now on until the handle is closed.
    pub(super) fn open(
        &self,
        node: NodeId,
        access: Access,
        opener: Option<u32>,
        user: u32,
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
                loading: Mutex::default(),
            })
        });
        let state = HandleState {
            write: access.write,
            maps: access.write && access.read,
            opener,
            whose: Whose::of(user),
            ..HandleState::default()
        };
        open.lock().handles.insert(fh, state);
        let handle = Arc::new(Handle {
            node: Arc::clone(open),
            access,
            append: AtomicBool::new(access.append),
            opener,
            user,
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

    /// The kernel is about to be told of a node. It is found by a name that nobody can take away before
    /// the kernel has the answer: whoever looks a name up, or takes one away, holds the lock of its
    /// directory. Where that is not so (names that a listing has read ahead, nodes by their number), the
    /// kernel asks anew for what turns out to be gone.
    pub(super) fn remember(&self, attr: &Attr) {
        let mut nodes = self.lock();
        if let Some(seen) = &mut nodes.seen {
            // Who watches it may have been told that.
            if let Entry::Vacant(unseen) = seen.entry(attr.ino) {
                unseen.insert(*attr);
                if attr.kind == Kind::Directory {
                    self.new_directories.store(true, Ordering::Relaxed);
                }
            }
        }
        let known = nodes.known.entry(attr.ino).or_default();
        known.lookups += 1;
        known.told = attr.version;
    }

    /// Keeps a node that has no name any more until the kernel forgets it; tells whether the kernel
    /// knows it at all.
    pub(super) fn keep_if_known(&self, id: NodeId) -> bool {
        self.lock().keep_if_known(id)
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
        if known.lookups > 0 {
            return false;
        }
        if let Some(seen) = &mut nodes.seen {
            seen.remove(&id);
        }
        nodes.known.remove(&id).is_some_and(|known| known.kept)
    }

    /// Whether the kernel may know a node.
    pub(super) fn is_known(&self, id: NodeId) -> bool {
        id == ROOT || self.lock().known.contains_key(&id)
    }

    /// All that the kernel knows beside a writer, as it was seen.
    pub(super) fn all_seen(&self) -> Vec<Attr> {
        let nodes = self.lock();
        nodes
            .seen
            .iter()
            .flat_map(|seen| seen.values())
            .copied()
            .collect()
    }

    /// Whether the kernel was told of a directory that it did not know since this was asked last.
    pub(super) fn has_new_directories(&self) -> bool {
        self.new_directories.swap(false, Ordering::Relaxed)
    }

    /// It was compared with what is so now.
    pub(super) fn see(&self, attr: &Attr) {
        let mut nodes = self.lock();
        if let Some(seen) = nodes.seen.as_mut().and_then(|seen| seen.get_mut(&attr.ino)) {
            *seen = *attr;
        }
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
    doomed: Mutex<Vec<NodeId>>,
}

impl Reaper {
    pub(super) fn new(table: Arc<Table>) -> Self {
        Self {
            table,
            doomed: Mutex::default(),
        }
    }
}

impl OpenFiles for Reaper {
    fn is_open_or_dying(&self, node: NodeId) -> bool {
        let mut nodes = self.table.lock();
        if nodes.keep_if_known(node) || nodes.open.contains_key(&node) {
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
