//! All open files, and all nodes that the kernel knows.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::store::NodeId;
use crate::sync::{Mutex, MutexGuard, Rank, RwLock};
use crate::vault::{Kind, OpenFiles, ROOT};

use super::handle_state::HandleState;
use super::handles::{Handle, OpenNode};
use super::{Access, Attr, Errno, FileHandle};

/// Several answers with different versions are on their way, and the kernel may not have the node
/// yet, so it could not be made to forget any of them.
const SEVERAL: u64 = u64::MAX;

/// A node that the kernel has looked up and not forgotten. A program may be about to open it, or
/// use it without an open, such as its working directory.
#[derive(Default)]
struct Known {
    lookups: u64,
    /// The version of a file whose attributes the kernel may have stored, or [`SEVERAL`].
    remembered: u64,
    /// It has lost its last name, and is deleted when the kernel forgets it.
    kept: bool,
}

/// The attributes that the kernel got, by node.
type Seen = HashMap<NodeId, Attr>;

#[derive(Default)]
struct Nodes {
    open: HashMap<NodeId, Arc<OpenNode>>,
    /// Nodes that a transaction under way deletes, which cannot be opened any more.
    dying: HashSet<NodeId>,
    known: HashMap<NodeId, Known>,
    /// For each node that the kernel knows, the attributes that it got first, or at the last
    /// comparison with the vault. Only beside a writer.
    seen: Option<Seen>,
}

impl Nodes {
    fn keep_if_known(&mut self, id: NodeId) -> bool {
        let known = self.known.get_mut(&id);
        known.map(|known| known.kept = true).is_some()
    }
}

/// The open files and known nodes.
pub(super) struct Table {
    nodes: Mutex<Nodes>,
    handles: RwLock<HashMap<FileHandle, Arc<Handle>>>,
    next: AtomicU64,
    /// The kernel got to know new directories.
    new_directories: AtomicBool,
}

impl Table {
    /// An empty table. `beside_writer`: another process changes nodes.
    pub(super) fn of(beside_writer: bool) -> Self {
        let nodes = Nodes {
            seen: beside_writer.then(Seen::new),
            ..Nodes::default()
        };
        Self {
            nodes: Mutex::new(Rank::OpenNodes, nodes),
            handles: RwLock::new(Rank::OpenHandles, HashMap::new()),
            next: AtomicU64::default(),
            new_directories: AtomicBool::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Nodes> {
        self.nodes.lock()
    }

    /// Registers a handle. Its node cannot be deleted until the handle is closed.
    pub(super) fn open(
        &self,
        node: NodeId,
        access: Access,
        opener: Option<u32>,
        user: u32,
    ) -> Result<(FileHandle, Arc<Handle>), Errno> {
        let fh = 1 + self.next.fetch_add(1, Ordering::Relaxed);
        let mut nodes = self.lock();
        if nodes.dying.contains(&node) {
            return Err(Errno(libc::ENOENT));
        }
        let open = nodes
            .open
            .entry(node)
            .or_insert_with(|| Arc::new(OpenNode::new(node)));
        let state = HandleState::new(access, opener, user);
        open.lock().handles.insert(fh, state);
        let handle = Arc::new(Handle {
            node: Arc::clone(open),
            access,
            append: AtomicBool::new(access.append),
            opener,
            user,
        });
        drop(nodes);
        self.handles.write().insert(fh, Arc::clone(&handle));
        Ok((fh, handle))
    }

    /// The last handle number; later handles have higher ones.
    pub(super) fn last(&self) -> FileHandle {
        self.next.load(Ordering::Relaxed)
    }

    pub(super) fn get(&self, fh: FileHandle) -> Result<Arc<Handle>, Errno> {
        let handles = self.handles.read();
        handles.get(&fh).cloned().ok_or(Errno(libc::EBADF))
    }

    /// Removes a handle. Its state stays with the node, which must not be forgotten before the
    /// handle's data is queued for publication.
    pub(super) fn take(&self, fh: FileHandle) -> Option<Arc<Handle>> {
        self.handles.write().remove(&fh)
    }

    /// Removes an unused handle.
    pub(super) fn discard(&self, fh: FileHandle) {
        if let Some(handle) = self.take(fh) {
            handle.node.lock().handles.remove(&fh);
        }
    }

    /// The node's shared state, if it has handles or publications.
    pub(super) fn node(&self, id: NodeId) -> Option<Arc<OpenNode>> {
        self.lock().open.get(&id).cloned()
    }

    /// Forgets a node without handles and publications; returns whether versions were kept for its
    /// handles. `None` if it is still in use.
    pub(super) fn forget_if_idle(&self, id: NodeId) -> Option<bool> {
        let mut nodes = self.lock();
        let kept = {
            let state = nodes.open.get(&id)?.lock();
            if !state.handles.is_empty() || state.publishing > 0 {
                return None;
            }
            state.has_kept()
        };
        nodes.open.remove(&id);
        Some(kept)
    }

    pub(super) fn all_nodes(&self) -> Vec<Arc<OpenNode>> {
        self.lock().open.values().cloned().collect()
    }

    /// Notes that the kernel is about to get a node. Nobody can remove its name before the kernel
    /// has the answer, because both a look-up and a removal hold the lock of the directory.
    /// Otherwise (names that a listing has read ahead, nodes by number), the kernel asks again if
    /// the node turns out to be gone.
    pub(super) fn remember(&self, attr: &Attr) {
        let mut nodes = self.lock();
        if let Some(seen) = &mut nodes.seen {
            // A watcher may have seen those attributes.
            if let Entry::Vacant(unseen) = seen.entry(attr.ino) {
                unseen.insert(*attr);
                if attr.kind == Kind::Directory {
                    self.new_directories.store(true, Ordering::Relaxed);
                }
            }
        }
        let known = nodes.known.entry(attr.ino).or_insert_with(|| Known {
            remembered: attr.version,
            ..Known::default()
        });
        known.lookups += 1;
        if known.remembered != attr.version {
            known.remembered = SEVERAL;
        }
    }

    /// Keeps a node without a name until the kernel forgets it; returns whether the kernel knows
    /// it.
    pub(super) fn keep_if_known(&self, id: NodeId) -> bool {
        self.lock().keep_if_known(id)
    }

    /// The version of a node whose attributes the kernel may have stored; `None` if it does not
    /// know the node.
    pub(super) fn remembered_version(&self, id: NodeId) -> Option<u64> {
        self.lock().known.get(&id).map(|known| known.remembered)
    }

    /// Notes another version whose attributes the kernel may store, unless the note has changed
    /// meanwhile.
    pub(super) fn replace_remembered(&self, id: NodeId, before: u64, version: u64) {
        let mut nodes = self.lock();
        let known = nodes.known.get_mut(&id);
        if let Some(known) = known.filter(|known| known.remembered == before) {
            known.remembered = version;
        }
    }

    /// Subtracts `lookups` from the kernel's; returns whether the node waited for the last one to
    /// be deleted.
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

    /// The attributes of all nodes that the kernel knows beside a writer, as last seen.
    pub(super) fn all_seen(&self) -> Vec<Attr> {
        let nodes = self.lock();
        nodes
            .seen
            .iter()
            .flat_map(|seen| seen.values())
            .copied()
            .collect()
    }

    /// Whether the kernel got to know a new directory since the last call.
    pub(super) fn has_new_directories(&self) -> bool {
        self.new_directories.swap(false, Ordering::Relaxed)
    }

    /// Notes the attributes of a node at a comparison with the vault.
    pub(super) fn see(&self, attr: &Attr) {
        let mut nodes = self.lock();
        if let Some(seen) = nodes.seen.as_mut().and_then(|seen| seen.get_mut(&attr.ino)) {
            *seen = *attr;
        }
    }

    /// Number of open handles.
    pub(super) fn len(&self) -> usize {
        self.handles.read().len()
    }

    /// Notes that the transaction that deleted nodes is over.
    fn revive(&self, ids: &[NodeId]) {
        let mut nodes = self.lock();
        for id in ids {
            nodes.dying.remove(id);
        }
    }
}

/// The table for a deleting job: nodes that are not open become unopenable.
pub(super) struct Reaper {
    pub(super) table: Arc<Table>,
    doomed: Mutex<Vec<NodeId>>,
}

impl Reaper {
    pub(super) fn new(table: Arc<Table>) -> Self {
        Self {
            table,
            doomed: Mutex::new(Rank::DyingNodes, Vec::new()),
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
        self.doomed.lock().push(node);
        false
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        self.table.revive(self.doomed.get_mut());
    }
}
