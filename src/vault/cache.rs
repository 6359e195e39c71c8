//! Caches of records read from the store: open nodes, and names and contents as stored.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::store::{NameTag, NodeId, Record};
use crate::sync::{Rank, RwLock};

use super::node::Node;

/// Limit on cached nodes: about 8 MB, and never more than four times that.
const CAPACITY: usize = 12 * 1024;
/// Nodes with more bytes of extended attributes are not cached: the limit by number would not bound
/// their memory.
const MAX_XATTRS: usize = 2 * 1024;

/// Limit on cached directory entries: about 1 MB.
const ENTRIES: usize = 2 * 1024;

/// Limit on cached sealed contents, in bytes.
const SEALED_CAPACITY: usize = 6 << 20;
/// Longer first chunks are not cached: the look-up is only a small part of the time to read them.
const MAX_SEALED: usize = 8 << 10;

fn is_small(node: &Node) -> bool {
    node.xattr_bytes() <= MAX_XATTRS
}

/// An entry by directory and tag, with its stored record; `None` if it is gone.
pub(super) type ChangedEntry = ((NodeId, NameTag), Option<Vec<u8>>);

/// The changes of a transaction.
#[derive(Default)]
pub(super) struct Changes {
    /// `None` if the node is gone, or its present state is unknown.
    pub(super) nodes: Vec<(NodeId, Option<Arc<Node>>)>,
    /// `None` if the entry is gone.
    pub(super) entries: Vec<ChangedEntry>,
}

impl Changes {
    /// Changes that make the cache forget nodes.
    pub(super) fn forgotten(nodes: impl IntoIterator<Item = NodeId>) -> Self {
        Self {
            nodes: nodes.into_iter().map(|id| (id, None)).collect(),
            entries: Vec::new(),
        }
    }
}

/// A directory's stored record under a tag; `None` if it has none.
type KeptEntry = Option<Arc<[u8]>>;

/// Bounded maps of nodes and of entries, as of the last commit.
pub(super) struct RecordCache {
    nodes: RwLock<HashMap<NodeId, Arc<Node>>>,
    entries: RwLock<HashMap<(NodeId, NameTag), KeptEntry>>,
    /// Grows with every commit: records read before may be stale.
    epoch: AtomicU64,
}

impl Default for RecordCache {
    fn default() -> Self {
        Self {
            nodes: RwLock::new(Rank::CachedNodes, HashMap::new()),
            entries: RwLock::new(Rank::CachedEntries, HashMap::new()),
            epoch: AtomicU64::new(0),
        }
    }
}

impl RecordCache {
    pub(super) fn get(&self, id: NodeId) -> Option<Arc<Node>> {
        self.nodes.read().get(&id).cloned()
    }

    /// The epoch, which callers take before they read a record for [`offer`](Self::offer).
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Caches a node that was read, unless there was a commit since `epoch`.
    pub(super) fn offer(&self, epoch: u64, node: &Arc<Node>) {
        let mut nodes = self.nodes.write();
        if self.epoch() == epoch && is_small(node) {
            make_room(&mut nodes, CAPACITY);
            nodes.insert(node.id, Arc::clone(node));
        }
    }

    /// The cached entry of a directory under a tag; the outer `None` means that it is not cached.
    pub(super) fn entry(&self, directory: NodeId, tag: &NameTag) -> Option<KeptEntry> {
        self.entries.read().get(&(directory, *tag)).cloned()
    }

    /// As [`offer`](Self::offer), for an entry.
    pub(super) fn offer_entry(&self, epoch: u64, directory: NodeId, tag: NameTag, record: &[u8]) {
        let mut entries = self.entries.write();
        if self.epoch() == epoch {
            make_room(&mut entries, ENTRIES);
            entries.insert((directory, tag), Some(record.into()));
        }
    }

    /// Applies the changes of a transaction.
    pub(super) fn commit(&self, changed: Changes) {
        let mut nodes = self.nodes.write();
        let mut entries = self.entries.write();
        self.epoch.fetch_add(1, Ordering::AcqRel);
        for (id, node) in changed.nodes {
            match node {
                Some(node) if is_small(&node) => {
                    make_room(&mut nodes, CAPACITY);
                    nodes.insert(id, node);
                }
                Some(_) | None => {
                    nodes.remove(&id);
                }
            }
        }
        for (key, record) in changed.entries {
            match record {
                Some(record) => {
                    make_room(&mut entries, ENTRIES);
                    entries.insert(key, Some(record.into()));
                }
                // Note a removed entry only if it was cached.
                None => {
                    if let Some(known) = entries.get_mut(&key) {
                        *known = None;
                    }
                }
            }
        }
    }

    /// Forgets everything, because another process has written.
    pub(super) fn clear(&self) {
        let mut nodes = self.nodes.write();
        let mut entries = self.entries.write();
        self.epoch.fetch_add(1, Ordering::AcqRel);
        nodes.clear();
        entries.clear();
    }
}

/// Drops an eighth of a full map, whichever the hash puts first.
fn make_room<K: Copy + Eq + std::hash::Hash, V>(kept: &mut HashMap<K, V>, capacity: usize) {
    if kept.len() >= capacity {
        drop_an_eighth(kept);
    }
}

fn drop_an_eighth<K: Copy + Eq + std::hash::Hash, V>(kept: &mut HashMap<K, V>) {
    let victims: Vec<_> = kept.keys().take(kept.len() / 8 + 1).copied().collect();
    for key in victims {
        kept.remove(&key);
    }
}

/// A small version as stored: its record and its first chunk.
pub(super) struct SealedVersion {
    pub(super) record: Record,
    pub(super) first: Option<Vec<u8>>,
}

impl SealedVersion {
    fn len(&self) -> usize {
        // The map's own memory is about that of a small record.
        256 + self.record.value.len() + self.first.as_ref().map_or(0, Vec::len)
    }
}

#[derive(Default)]
struct SealedVersions {
    kept: HashMap<(NodeId, u64), Arc<SealedVersion>>,
    bytes: usize,
}

/// Versions as stored: ciphertext, which is opened for each reader. A version never changes, except
/// for the wrap of its key, so callers name the generation that they want.
pub(super) struct SealedCache(RwLock<SealedVersions>);

impl Default for SealedCache {
    fn default() -> Self {
        Self(RwLock::new(Rank::CachedContents, SealedVersions::default()))
    }
}

impl SealedCache {
    /// A version whose key is wrapped under `generation`.
    pub(super) fn get(
        &self,
        version: (NodeId, u64),
        generation: u64,
    ) -> Option<Arc<SealedVersion>> {
        let versions = self.0.read();
        let sealed = versions.kept.get(&version)?;
        (sealed.record.generation == generation).then(|| Arc::clone(sealed))
    }

    /// Whether a version is cached, under any generation.
    pub(super) fn holds(&self, version: (NodeId, u64)) -> bool {
        let versions = self.0.read();
        versions.kept.contains_key(&version)
    }

    /// Forgets everything.
    pub(super) fn clear(&self) {
        *self.0.write() = SealedVersions::default();
    }

    pub(super) fn offer(&self, version: (NodeId, u64), sealed: SealedVersion) {
        if sealed.first.as_ref().map_or(0, Vec::len) > MAX_SEALED {
            return;
        }
        let mut versions = self.0.write();
        if versions.bytes >= SEALED_CAPACITY {
            drop_an_eighth(&mut versions.kept);
            versions.bytes = versions.kept.values().map(|sealed| sealed.len()).sum();
        }
        versions.bytes += sealed.len();
        if let Some(older) = versions.kept.insert(version, Arc::new(sealed)) {
            versions.bytes = versions.bytes.saturating_sub(older.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAG: NameTag = [7; 32];

    fn changed(tag: NameTag, record: Option<&[u8]>) -> Changes {
        Changes {
            nodes: Vec::new(),
            entries: vec![((1, tag), record.map(<[u8]>::to_vec))],
        }
    }

    #[test]
    fn an_entry_is_known_as_it_was_last_committed() {
        let cache = RecordCache::default();
        cache.commit(changed(TAG, None));
        assert_eq!(cache.entry(1, &TAG), None, "nobody has asked for it");
        cache.offer_entry(cache.epoch(), 1, TAG, b"read");
        assert_eq!(cache.entry(1, &TAG), Some(Some(b"read".as_slice().into())));
        assert_eq!(cache.entry(2, &TAG), None);
        cache.commit(changed(TAG, Some(b"new")));
        assert_eq!(cache.entry(1, &TAG), Some(Some(b"new".as_slice().into())));
        cache.commit(changed(TAG, None));
        assert_eq!(cache.entry(1, &TAG), Some(None));
        cache.clear();
        assert_eq!(cache.entry(1, &TAG), None);
    }

    #[test]
    fn an_entry_that_was_read_before_a_commit_is_not_taken_after_it() {
        let cache = RecordCache::default();
        let epoch = cache.epoch();
        cache.commit(changed([8; 32], Some(b"another")));
        cache.offer_entry(epoch, 1, TAG, b"old");
        assert_eq!(cache.entry(1, &TAG), None);
        let epoch = cache.epoch();
        cache.clear();
        cache.offer_entry(epoch, 1, TAG, b"old");
        assert_eq!(cache.entry(1, &TAG), None);
    }

    #[test]
    fn no_more_entries_are_kept_than_there_is_room_for() {
        let cache = RecordCache::default();
        for i in 0..3 * ENTRIES as u64 {
            let mut tag = TAG;
            tag[..8].copy_from_slice(&i.to_le_bytes());
            match i % 2 {
                0 => cache.offer_entry(cache.epoch(), 1, tag, b"read"),
                _ => cache.commit(changed(tag, Some(b"stored"))),
            }
            assert!(cache.entry(1, &tag).is_some());
        }
        assert!(cache.entries.read().len() <= ENTRIES);
    }
}
