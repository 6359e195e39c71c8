//! Reads nodes, names and contents, each from one snapshot, opened and verified.

use std::sync::Arc;

use crate::crypto::{SecretBytes, SetSum};
use crate::keyring::Keyring;
use crate::store::{NameTag, NodeId, Read, ReadRecords as _};

use super::cache::SealedVersion;
use super::content::Version;
use super::entry::{DirectoryKeys, Entry};
use super::integrity::Guard;
use super::node::{FileBody, Node};
use super::records::{Failed, Records};
use super::{Failure, VaultError};

/// A look-up also fetches contents up to this many bytes.
const AHEAD: u64 = 4 << 10;

/// The content of a file, as far as it was read.
#[derive(Debug)]
pub enum Content {
    /// No version was ever published.
    Unpublished,
    /// The whole content.
    Whole {
        /// The version's number.
        version: u64,
        /// Its bytes.
        bytes: SecretBytes,
    },
    /// The content must be read chunk by chunk.
    Pieces(Version),
}

/// Part of a directory, in the order of its tags.
#[derive(Debug)]
pub struct Listing {
    /// The entries.
    pub entries: Vec<Entry>,
    /// The place after the last entry.
    pub after: Option<NameTag>,
    /// Whether the directory ends here.
    pub complete: bool,
    /// Sum over the records of these entries.
    pub sum: SetSum,
    /// The directory at the time of this listing.
    pub directory: Arc<Node>,
}

/// The change of a node since an earlier look.
#[derive(Debug)]
pub enum Since {
    /// Its revision is the same.
    Same,
    /// Its revision differs. The node comes without its extended attributes: callers ask about many
    /// nodes at once, and the attributes of a few hundred would be megabytes.
    Changed(Arc<Node>),
    /// There is none.
    Gone,
}

/// Reads an open vault, as the module describes.
pub(super) struct Reader {
    records: Arc<Records>,
    guard: Arc<Guard>,
}

impl Reader {
    pub(super) fn new(records: &Arc<Records>, guard: &Arc<Guard>) -> Self {
        Self {
            records: Arc::clone(records),
            guard: Arc::clone(guard),
        }
    }

    /// A node.
    ///
    /// # Errors
    /// `NotFound` when it does not exist.
    pub(super) fn node(&self, id: NodeId) -> Result<Arc<Node>, VaultError> {
        self.guard.must_serve()?;
        self.records.refresh()?;
        if let Some(node) = self.records.cache().get(id) {
            return Ok(node);
        }
        let epoch = self.records.cache().epoch();
        self.records
            .read(|records| self.node_in(records, id, epoch))
    }

    /// A node inside a read transaction, from the cache if possible. `epoch` is the cache's epoch
    /// before the transaction, whose snapshot may lack later commits.
    fn node_in(
        &self,
        records: &mut dyn Read,
        id: NodeId,
        epoch: u64,
    ) -> Result<Arc<Node>, VaultError> {
        if let Some(node) = self.records.cache().get(id) {
            return Ok(node);
        }
        let node = self.read_node(records, id)?;
        self.records.cache().offer(epoch, &node);
        Ok(node)
    }

    /// A node in the transaction's snapshot.
    fn read_node(&self, records: &mut dyn Read, id: NodeId) -> Result<Arc<Node>, VaultError> {
        let record = records.node(id)?.ok_or(VaultError::NotFound)?;
        Ok(Arc::new(Node::open(&self.records.keyring(), id, &record)?))
    }

    /// The node that `name` names in `directory`.
    ///
    /// # Errors
    /// `NotFound` when there is no such name.
    pub(super) fn lookup(&self, directory: NodeId, name: &[u8]) -> Result<Arc<Node>, VaultError> {
        // The directory's key may be replaced between the two reads, here or by the writer beside
        // this process.
        let may_move = self.records.is_read_only() || self.records.keyring().renews_data_keys();
        let parent = self.node(directory)?;
        self.guard.must_serve()?;
        let keys = DirectoryKeys::of(self.records.keyring().vault(), &parent)?;
        let tag = keys.tag(name)?;
        if !may_move && let Some(found) = self.lookup_kept(&parent, &keys, &tag) {
            return found;
        }
        let epoch = self.records.cache().epoch();
        let found = self.records.try_read(|records| {
            let node = self.lookup_in(records, &keys, tag, name, epoch)?;
            self.fetch_small(records, &node);
            Ok(node)
        });
        let may_be_moved = |error: &VaultError| {
            (may_move || self.records.keyring().renews_data_keys())
                && (matches!(error, VaultError::NotFound) || error.failure() == Failure::Integrity)
        };
        let first = match found {
            Err(failed) if may_be_moved(&failed.error) => failed,
            found => return found.map_err(|failed| self.records.note(failed)),
        };
        // Use the key in the snapshot.
        let found = self.records.try_read(|records| {
            let parent = self.read_node(records, directory)?;
            let keys = DirectoryKeys::of(self.records.keyring().vault(), &parent)?;
            self.lookup_in(records, &keys, keys.tag(name)?, name, epoch)
        });
        // Both have met the same record, which is one finding.
        if !found.as_ref().is_err_and(Failed::is_finding) {
            self.records.note(first);
        }
        found.map_err(|failed| self.records.note(failed))
    }

    /// As [`lookup`](Self::lookup), with the content of the node, from one snapshot. `whole` gets
    /// the node, and returns up to how many bytes the content is read as a whole.
    ///
    /// # Errors
    /// As `lookup`, and for the content as [`content_within`](Self::content_within).
    pub(super) fn lookup_with_content(
        &self,
        directory: NodeId,
        name: &[u8],
        whole: &mut dyn FnMut(&FileBody) -> u64,
    ) -> Result<(Arc<Node>, Result<Content, VaultError>), VaultError> {
        self.records.refresh()?;
        let epoch = self.records.cache().epoch();
        self.records.read(|records| {
            let parent = self.read_node(records, directory)?;
            let keys = DirectoryKeys::of(self.records.keyring().vault(), &parent)?;
            let tag = keys.tag(name)?;
            let found = self.lookup_in(records, &keys, tag, name, epoch)?;
            // The node that was found may come from the cache.
            let node = self.read_node(records, found.id)?;
            let content = self.content_of(records, &node, &mut *whole);
            Ok((node, self.guard.noted(content)))
        })
    }

    /// The node of a name, if the caches have everything.
    fn lookup_kept(
        &self,
        parent: &Arc<Node>,
        keys: &DirectoryKeys,
        tag: &NameTag,
    ) -> Option<Result<Arc<Node>, VaultError>> {
        let Some(record) = self.records.cache().entry(parent.id, tag)? else {
            // If the directory has changed, the name may be filed elsewhere by now.
            let now = self.records.cache().get(parent.id)?;
            let is_same = Arc::ptr_eq(&now, parent) && parent.previous.is_none();
            return is_same.then_some(Err(VaultError::NotFound));
        };
        // Reading from the store reports a defect.
        let entry = keys.open(tag, &record).ok()?;
        let node = self.records.cache().get(entry.node)?;
        (node.kind == entry.kind).then_some(Ok(node))
    }

    /// Fetches the content of a small secret, in the transaction of its look-up, since the program
    /// is about to read it. A later read reports a defect of the content.
    fn fetch_small(&self, records: &mut dyn Read, node: &Node) {
        let Ok(file) = node.file() else { return };
        let version = (node.id, file.version);
        // Do not cache records that another process may change.
        if self.records.is_read_only()
            || file.version == 0
            || file.size > AHEAD
            || self.records.sealed().holds(version)
        {
            return;
        }
        if let Ok(Some((record, first))) = records.version_and_first_chunk(node.id, file.version) {
            self.records
                .sealed()
                .offer(version, SealedVersion { record, first });
        }
    }

    fn lookup_in(
        &self,
        records: &mut dyn Read,
        keys: &DirectoryKeys,
        tag: NameTag,
        name: &[u8],
        epoch: u64,
    ) -> Result<Arc<Node>, VaultError> {
        let found = keys.find_filed(&mut *records, tag, name)?;
        let (entry, record) = found.ok_or(VaultError::NotFound)?;
        let directory = keys.directory();
        if !self.records.is_read_only() {
            self.records
                .cache()
                .offer_entry(epoch, directory, entry.tag, &record);
        }
        self.node_of(records, directory, &entry, epoch)
    }

    fn node_of(
        &self,
        records: &mut dyn Read,
        directory: NodeId,
        entry: &Entry,
        epoch: u64,
    ) -> Result<Arc<Node>, VaultError> {
        let bad =
            |why| VaultError::tampered(format_args!("an entry of directory {directory}"), why);
        let node = match self.node_in(records, entry.node, epoch) {
            Err(VaultError::NotFound) => return Err(bad("names a node that is missing")),
            other => other?,
        };
        if node.kind != entry.kind {
            return Err(bad("names a node of another kind"));
        }
        Ok(node)
    }

    /// At most `limit` entries of a directory, after `after`. Callers that will ask for their nodes
    /// pass `with_nodes`, which reads them in one transaction instead of many.
    ///
    /// # Errors
    /// When the node is not a directory, or an entry does not authenticate.
    pub(super) fn list(
        &self,
        directory: NodeId,
        after: Option<&NameTag>,
        limit: usize,
        with_nodes: bool,
    ) -> Result<Listing, VaultError> {
        self.records.refresh()?;
        let epoch = self.records.cache().epoch();
        self.records.read(|records| {
            let node = self.read_node(records, directory)?;
            let keys = DirectoryKeys::of(self.records.keyring().vault(), &node)?;
            let rows = records.entries(directory, after, limit)?;
            let mut sum = SetSum::default();
            let complete = rows.len() < limit;
            let last = rows.last().map(|row| row.tag);
            let mut entries = Vec::with_capacity(rows.len());
            for row in rows {
                sum.add(&keys.element(&row.tag, &row.value));
                match keys.open(&row.tag, &row.value) {
                    Ok(entry) => entries.push(entry),
                    Err(error) if self.records.is_salvage() => {
                        tracing::error!("passed over: {error}")
                    }
                    Err(error) => return Err(error),
                }
            }
            // A later read reports a defect of the node.
            let _ = entries
                .iter()
                .filter(|_| with_nodes)
                .try_for_each(|entry| self.node_in(records, entry.node, epoch).map(drop));
            Ok(Listing {
                entries,
                after: last.or(after.copied()),
                complete,
                sum,
                directory: node,
            })
        })
    }

    /// A file's current content and its node. The content is whole if it has at most the bytes that
    /// `whole` returns. `whole` gets the node before any content is read, perhaps more than once,
    /// and must not wait.
    ///
    /// # Errors
    /// When the node is not a file, or does not authenticate.
    pub(super) fn content_within(
        &self,
        id: NodeId,
        whole: &mut dyn FnMut(&FileBody) -> u64,
    ) -> Result<(Arc<Node>, Content), VaultError> {
        self.records.refresh()?;
        let epoch = self.records.cache().epoch();
        self.records.read(|records| {
            // Only the writer's cache is as new as the snapshot.
            let node = match self.records.is_read_only() {
                true => self.read_node(records, id)?,
                false => self.node_in(records, id, epoch)?,
            };
            let content = self.content_of(records, &node, &mut *whole)?;
            Ok((node, content))
        })
    }

    fn content_of(
        &self,
        records: &mut dyn Read,
        node: &Node,
        whole: &mut dyn FnMut(&FileBody) -> u64,
    ) -> Result<Content, VaultError> {
        let (id, file) = (node.id, *node.file()?);
        if file.version == 0 {
            return Ok(Content::Unpublished);
        }
        let content = self.version_in(records, id, file.version, whole(&file))?;
        let length = match &content {
            Content::Whole { bytes, .. } => bytes.len() as u64,
            Content::Pieces(version) => version.length(),
            Content::Unpublished => 0,
        };
        if length != file.size {
            let record = format_args!("version {} of node {id}", file.version);
            return Err(VaultError::tampered(
                record,
                "has another length than the node says",
            ));
        }
        Ok(content)
    }

    /// One version of a file's content.
    ///
    /// # Errors
    /// When it is missing or does not authenticate.
    pub(super) fn version(
        &self,
        id: NodeId,
        number: u64,
        whole: u64,
    ) -> Result<Content, VaultError> {
        self.guard.must_serve()?;
        let keyring = self.records.keyring();
        if let Some(sealed) = self.records.sealed().get((id, number), keyring.active())
            && let Ok(Some(bytes)) = open_kept(&keyring, (id, number), &sealed, whole)
        {
            return Ok(Content::Whole {
                version: number,
                bytes,
            });
        }
        self.records
            .read(|records| self.version_in(records, id, number, whole))
    }

    fn version_in(
        &self,
        records: &mut dyn Read,
        id: NodeId,
        number: u64,
        whole: u64,
    ) -> Result<Content, VaultError> {
        let (record, first) = records
            .version_and_first_chunk(id, number)?
            .ok_or_else(|| {
                VaultError::tampered(format_args!("version {number} of node {id}"), "is missing")
            })?;
        let version = Version::open(&self.records.keyring(), id, number, &record)?;
        if version.length() > whole {
            return Ok(Content::Pieces(version));
        }
        let bytes = version.whole(records, first.as_deref())?;
        if !self.records.is_read_only() && version.chunks() <= 1 {
            let sealed = SealedVersion { record, first };
            self.records.sealed().offer((id, number), sealed);
        }
        Ok(Content::Whole {
            version: number,
            bytes,
        })
    }

    /// The changes of nodes since these revisions, in one transaction. Nodes that still have their
    /// revision are not opened.
    ///
    /// # Errors
    /// When the store fails, or a node does not authenticate.
    pub(super) fn since(&self, nodes: &[(NodeId, Option<u64>)]) -> Result<Vec<Since>, VaultError> {
        self.records.read(|records| {
            let nodes = nodes.iter();
            nodes
                .map(|(id, revision)| match records.node(*id)? {
                    None => Ok(Since::Gone),
                    Some(record) if Some(Node::revision_in(&record.value)) == *revision => {
                        Ok(Since::Same)
                    }
                    Some(record) => {
                        let node = Node::open(&self.records.keyring(), *id, &record)?;
                        Ok(Since::Changed(Arc::new(node.without_xattrs())))
                    }
                })
                .collect()
        })
    }
}

/// The whole content of a cached version; `None` if it must be read chunk by chunk.
fn open_kept(
    keyring: &Keyring,
    (node, number): (NodeId, u64),
    sealed: &SealedVersion,
    whole: u64,
) -> Result<Option<SecretBytes>, VaultError> {
    let version = Version::open(keyring, node, number, &sealed.record)?;
    match version.chunks() <= 1 && version.length() <= whole {
        true => version.only(sealed.first.as_deref()).map(Some),
        false => Ok(None),
    }
}
