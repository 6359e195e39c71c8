//! What is open: handles, the nodes they belong to, their drafts and the versions they pin.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::store::NodeId;
use crate::vault::{Node, Timestamp, Whose};

use super::authors::{Authors, Place};
use super::draft::Draft;
use super::handle_state::Handles;
use super::handoff::answered_elsewhere;
use super::loaded::{InMemory, Pin};
use super::mapped::Mapped;
use super::pages::{Pages, Source};
use super::readers::Readers;
use super::readings::Told;
use super::{Access, FileHandle};

/// Bytes of extended attributes that are held of a file that is open beside a writer.
const FEW_XATTRS: usize = 2 * 1024;

/// What goes on when publications are over.
type Waiting = Vec<Box<dyn FnOnce() + Send>>;

/// What all handles of a node share.
#[derive(Default)]
pub(super) struct NodeState {
    pub(super) handles: Handles,
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
    /// Those who write it.
    pub(super) fn authors(&self) -> Authors<'_> {
        Authors::new(&self.handles, self.shared.as_ref(), &self.pages)
    }

    /// Those who read it.
    pub(super) fn readers(&mut self) -> Readers<'_> {
        Readers::new(&mut self.handles, &mut self.told)
    }

    /// Whose its pages in the kernel's cache are.
    pub(super) fn mapped(&mut self) -> Mapped<'_> {
        Mapped::new(&mut self.handles, &mut self.shared, &mut self.pages)
    }

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
        self.readers().add_promised(&mut versions);
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

    /// The kernel takes the file to reach at least so far.
    pub(super) fn note_reach(&mut self, end: u64) {
        self.believed = self.believed.map(|believed| believed.max(end));
    }

    /// A modification time is set: for what its process is writing, with which it is told to others.
    /// `false` when that is what is published, and the drafts of others, which do not move it again.
    pub(super) fn set_modified(&mut self, thread: u32, node: &Place, time: Timestamp) -> bool {
        let own = self.authors().draft_of_process(thread, node);
        let own = own.filter(|(_, draft)| draft.is_unpublished());
        let draft = match own.map(|(source, _)| source) {
            Some(Source::Own(fh)) => self.handles.get_mut(&fh).and_then(|own| own.own.as_mut()),
            Some(Source::Shared) => self.shared.as_mut(),
            Some(Source::Content(_)) | None => None,
        };
        if let Some(draft) = draft {
            draft.modified = Some(time);
            return true;
        }
        let own = self.handles.values_mut().filter_map(|own| own.own.as_mut());
        own.chain(&mut self.shared)
            .for_each(|draft| draft.modified = Some(time));
        false
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
