//! What only a repair does in a transaction: taking out records that cannot be opened, by their
//! numbers, and setting the sums to what is there.

use crate::crypto::SecretBytes;
use crate::store::{KeyedRecord, NameTag, NodeId};

use super::super::VaultError;
use super::super::content;
use super::super::keys::for_each_key;
use super::super::node::{Attributes, Body, DirectoryBody, FileBody, Kind, Node, ROOT};
use super::{Op, Slot, Tx};

impl Tx<'_> {
    /// Counts all that is there, and goes on from that. Whether it was what the state said.
    pub(in crate::vault) fn recount(&mut self) -> Result<bool, VaultError> {
        let mut found = self.state.uncounted();
        let elements = self.system.elements();
        for_each_key(&mut *self.records, |key, record| {
            found.count(&elements.of(key, record), true);
        })?;
        let agrees = self.state.agrees_with(&found);
        self.state = found;
        Ok(agrees)
    }

    /// No number up to `id` is given out any more.
    pub(in crate::vault) fn has_seen(&mut self, id: NodeId) {
        self.state.next_node = self.state.next_node.max(id + 1);
    }

    /// Takes out a node's record, and nothing else of it.
    pub(in crate::vault) fn discard_node(&mut self, id: NodeId) {
        self.ops.push(Op::DiscardNode(id));
    }

    /// Takes out an entry's record; what the directory says of it is made anew by the caller.
    pub(in crate::vault) fn discard_entry(&mut self, directory: NodeId, tag: NameTag) {
        self.ops.push(Op::DeleteEntry { directory, tag });
    }

    /// Takes out a name that does not open, or names nothing.
    pub(in crate::vault) fn set_directory(
        &mut self,
        id: NodeId,
        body: DirectoryBody,
    ) -> Result<(), VaultError> {
        *self.change(id)?.directory_mut()? = body;
        Ok(())
    }

    /// An empty root directory under a new key, in the place of one that is lost.
    pub(in crate::vault) fn found_root(&mut self) -> Result<(), VaultError> {
        let now = self.now;
        let attributes = Attributes::of_new(
            0o755,
            (0, 0),
            now,
            Body::Directory(DirectoryBody::new(ROOT, [0; 32])),
        );
        let root = Node::create(self.keyring, ROOT, Kind::Directory, attributes)?;
        self.remember(ROOT);
        self.nodes.insert(ROOT, Slot::made(root));
        Ok(())
    }

    /// Has a version be sealed anew, with another content in the place of the one that is stored.
    pub(in crate::vault) fn replace_content(
        &mut self,
        node: NodeId,
        version: u64,
        old: KeyedRecord,
        content: &SecretBytes,
    ) -> Result<(), VaultError> {
        let (new, chunks) = content::seal(self.keyring, node, version, &[content])?;
        self.ops.push(Op::ReplaceVersion {
            node,
            version,
            old,
            new,
            chunks,
        });
        Ok(())
    }

    /// What the node says of its content.
    pub(in crate::vault) fn set_file(
        &mut self,
        node: NodeId,
        version: u64,
        size: u64,
    ) -> Result<(), VaultError> {
        self.change(node)?.attributes.body = Body::File(FileBody {
            version,
            replaced: version,
            size,
        });
        Ok(())
    }
}
