//! What is open: handles, the nodes they belong to, their drafts and the versions they pin.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::store::NodeId;
use crate::vault::{Node, Whose};

use super::draft::Draft;
use super::handoff::answered_elsewhere;
use super::loaded::{InMemory, Pin};
use super::pages::Pages;
use super::readings::{Reading, Told};
use super::{Access, FileHandle};

/// Bytes of extended attributes that are held of a file that is open beside a writer.
const FEW_XATTRS: usize = 2 * 1024;

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
    /// Of a handle that process `opener` of `user` opens.
    pub(super) fn new(access: Access, opener: Option<u32>, user: u32) -> Self {
        Self {
            write: access.write,
            maps: access.write && access.read,
            opener,
            whose: Whose::of(user),
            ..Self::default()
        }
    }

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

    /// Whether versions besides the current one may be in the store.
    pub(super) fn has_kept(&self) -> bool {
        self.kept
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
    /// A node of which nothing is open yet.
    pub(super) fn new(id: NodeId) -> Self {
        Self {
            id,
            state: Mutex::default(),
            loading: Mutex::default(),
        }
    }

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
