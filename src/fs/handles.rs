//! Open handles and their nodes, with their drafts and pinned versions.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::store::NodeId;
use crate::sync::{Mutex, MutexGuard, Rank};
use crate::vault::{Node, Timestamp, Whose};

use super::authors::{Authors, Place};
use super::draft::Draft;
use super::handle_state::Handles;
use super::handoff::answered_elsewhere;
use super::loaded::{InMemory, Pin};
use super::mapped::Mapped;
use super::pages::{Pages, Source};
use super::readers::Readers;
use super::readings::LastSeen;
use super::{Access, FileHandle};

/// Limit on the extended attributes that are held for a file open beside a writer, in bytes.
const FEW_XATTRS: usize = 2 * 1024;

/// Requests that continue after publications.
type Waiting = Vec<Box<dyn FnOnce() + Send>>;

/// The state that all handles of a node share.
#[derive(Default)]
pub(super) struct NodeState {
    pub(super) handles: Handles,
    /// The in-place draft.
    pub(super) shared: Option<Draft>,
    /// Number of publications under way.
    pub(super) publishing: u32,
    /// Requests that wait for them, in order of arrival.
    waiting: Waiting,
    /// Waiting requests are being continued now.
    pub(super) resuming: bool,
    pub(super) loaded: InMemory,
    /// The page cache may have pages of the node.
    pub(super) paged: bool,
    pub(super) pages: Pages,
    /// The versions that processes have seen, while one may still read another version.
    pub(super) last_seen: LastSeen,
    /// The length that the kernel uses, if it came from here.
    pub(super) believed: Option<u64>,
    /// The store may have versions besides the current one.
    kept: bool,
    /// Beside a writer, which may remove it: the node at the time of the open.
    pub(super) opened: Option<Arc<Node>>,
    /// `opened` lacks its extended attributes.
    pub(super) opened_bare: bool,
    /// The node is being watched for appended data.
    pub(super) is_watched: bool,
}

impl NodeState {
    /// Those who write it.
    pub(super) fn authors(&self) -> Authors<'_> {
        Authors::new(&self.handles, self.shared.as_ref(), &self.pages)
    }

    /// Those who read it.
    pub(super) fn readers(&mut self) -> Readers<'_> {
        Readers::new(&mut self.handles, &mut self.last_seen)
    }

    /// The node's pages in the kernel's cache, with their sources.
    pub(super) fn mapped(&mut self) -> Mapped<'_> {
        Mapped::new(&mut self.handles, &mut self.shared, &mut self.pages)
    }

    /// The draft that a handle writes to, if there is one.
    pub(super) fn draft_of(&mut self, handle: FileHandle) -> Option<&mut Draft> {
        let state = self.handles.get_mut(&handle)?;
        match (&mut state.own, state.write) {
            (Some(own), _) => Some(own),
            (None, true) => self.shared.as_mut(),
            (None, false) => None,
        }
    }

    /// Whether all processes see the in-place draft, if `version` is the current one: nothing was
    /// published yet, although the draft may be stored at times.
    pub(super) fn shows_draft(&self, version: u64) -> bool {
        version == 0 || self.shared.as_ref().is_some_and(Draft::is_first)
    }

    /// Versions that handles still read. The store keeps them, and they are reaped later.
    pub(super) fn keep_pinned(&mut self) -> Vec<u64> {
        let handles = self.handles.values();
        let pins = handles.filter_map(|h| h.pin.as_ref().map(|pin| pin.version));
        let mut versions: Vec<_> = pins.collect();
        self.readers().add_promised(&mut versions);
        self.kept |= !versions.is_empty();
        versions
    }

    /// Whether the store may have versions besides the current one.
    pub(super) fn has_kept(&self) -> bool {
        self.kept
    }

    /// Notes that the store may have pieces of a content that was not published.
    pub(super) fn leave_pieces(&mut self) {
        self.kept = true;
    }

    /// Whether a handle that may be closed by now has left unpublished data, or a draft that its
    /// process no longer uses.
    pub(super) fn may_be_closed(&self) -> bool {
        // A publication under way overtakes the other drafts.
        let publishes = self.publishing > 0;
        let counts = |draft: &Draft| publishes || draft.is_unpublished() || draft.is_overtaken();
        let shared = self.shared.as_ref().is_some_and(Draft::is_unpublished);
        let mut flushed = self.handles.values().filter(|own| own.flushed);
        flushed.any(|own| shared || own.own.as_ref().is_some_and(counts))
    }

    /// Beside a writer: pins a handle to the version that was read with the node.
    pub(super) fn pin_beside_writer(
        &mut self,
        handle: FileHandle,
        node: Arc<Node>,
        pin: Option<Pin>,
    ) {
        self.remember_opened(node);
        if let Some(own) = self.handles.get_mut(&handle) {
            own.pin_to(pin);
        }
    }

    /// Beside a writer, which may remove the node: stores it as read, without large extended
    /// attributes, which would take memory for every open file.
    pub(super) fn remember_opened(&mut self, node: Arc<Node>) {
        self.opened_bare = node.xattr_bytes() > FEW_XATTRS;
        self.opened = Some(match self.opened_bare {
            true => Arc::new(node.without_xattrs()),
            false => node,
        });
    }

    /// Runs `then` after the publications under way, and the requests that already wait for them.
    pub(super) fn wait(&mut self, then: impl FnOnce() + Send + 'static) {
        self.waiting.push(Box::new(then));
        answered_elsewhere();
    }

    /// Whether requests wait for the end of publications. A new publication then waits behind them:
    /// otherwise an endless series would make them wait forever.
    pub(super) fn somebody_waits(&self) -> bool {
        self.resuming || !self.waiting.is_empty()
    }

    /// The requests that continue now. Only one thread gets them, until it resets `resuming`.
    pub(super) fn take_waiting(&mut self) -> Option<Waiting> {
        if self.publishing > 0 || self.resuming || self.waiting.is_empty() {
            return None;
        }
        self.resuming = true;
        Some(std::mem::take(&mut self.waiting))
    }

    /// Notes that the kernel assumes at least this length.
    pub(super) fn note_reach(&mut self, end: u64) {
        self.believed = self.believed.map(|believed| believed.max(end));
    }

    /// Sets a modification time on the draft of its process, which becomes visible with the draft.
    /// Returns `false` if the time applies to the published content, and to the drafts of others,
    /// which do not change it again.
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

    /// The user who opened a handle.
    pub(super) fn user_of(&self, handle: FileHandle) -> Whose {
        self.handles
            .get(&handle)
            .map(|h| h.whose)
            .unwrap_or_default()
    }

    /// A user who can write to the in-place draft.
    pub(super) fn user_in_place(&self) -> Whose {
        let mut writers = self.handles.values().filter(|h| h.write && h.own.is_none());
        writers.next().map(|h| h.whose).unwrap_or_default()
    }

    /// Whether any handle can still write to the in-place draft.
    pub(super) fn has_writers_in_place(&self) -> bool {
        self.handles.values().any(|h| h.write && h.own.is_none())
    }
}

/// A node with open handles.
pub(super) struct OpenNode {
    pub(super) id: NodeId,
    state: Mutex<NodeState>,
    /// Held while a large content is decrypted, which other threads may want, too.
    loading: Mutex<()>,
}

impl OpenNode {
    /// A node without handles.
    pub(super) fn new(id: NodeId) -> Self {
        Self {
            id,
            state: Mutex::new(Rank::NodeState, NodeState::default()),
            loading: Mutex::new(Rank::Loading, ()),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, NodeState> {
        self.state.lock()
    }

    /// Keeps other threads from decrypting its content at the same time. Taken before the lock of
    /// its state.
    pub(super) fn lock_loading(&self) -> MutexGuard<'_, ()> {
        self.loading.lock()
    }
}

/// An open file.
pub(super) struct Handle {
    pub(super) node: Arc<OpenNode>,
    pub(super) access: Access,
    /// Whether writes go to the end, as fcntl(2) last set it.
    pub(super) append: AtomicBool,
    /// The process that opened it; `None` if it is not visible.
    pub(super) opener: Option<u32>,
    /// The user who opened it, whose budget its bytes count in.
    pub(super) user: u32,
}
