//! What only a repair does in a transaction: taking out records that cannot be opened, by their
//! numbers, and putting others in their places.

use crate::crypto::SecretBytes;
use crate::store::{NameTag, NodeId, Record};

use super::super::VaultError;
use super::super::content;
use super::super::node::{Attributes, DirectoryBody, FileBody, Kind, Node, NodeBody, ROOT};
use super::Tx;
use super::op::Op;

/// Removes a node's record, and nothing else of the node.
pub(in crate::vault) fn discard_node(tx: &mut Tx<'_>, id: NodeId) {
    tx.push(Op::DiscardNode(id));
}

/// Removes an entry's record. The caller recomputes the directory's count and sum.
pub(in crate::vault) fn discard_entry(tx: &mut Tx<'_>, directory: NodeId, tag: NameTag) {
    tx.push(Op::DeleteEntry { directory, tag });
}

/// Sets a directory's count and sum.
pub(in crate::vault) fn set_directory(
    tx: &mut Tx<'_>,
    id: NodeId,
    body: DirectoryBody,
) -> Result<(), VaultError> {
    *tx.change(id)?.directory_mut()? = body;
    Ok(())
}

/// Replaces a lost root directory by an empty one under a new key.
pub(in crate::vault) fn replace_root(tx: &mut Tx<'_>) -> Result<(), VaultError> {
    let now = tx.now;
    let attributes = Attributes::of_new(
        0o755,
        (0, 0),
        now,
        NodeBody::Directory(DirectoryBody::new(ROOT, [0; 32])),
    );
    let root = Node::create(tx.keyring, ROOT, Kind::Directory, attributes)?;
    tx.insert_node(root);
    Ok(())
}

/// Replaces a version by the same number with another content, sealed again.
pub(in crate::vault) fn replace_content(
    tx: &mut Tx<'_>,
    node: NodeId,
    version: u64,
    old: Record,
    content: &SecretBytes,
) -> Result<(), VaultError> {
    let sealed = content::seal(tx.keyring, node, version, &[content])?;
    tx.replace_version(node, version, old, sealed);
    Ok(())
}

/// Sets the version and size in a file's node.
pub(in crate::vault) fn set_file(
    tx: &mut Tx<'_>,
    node: NodeId,
    version: u64,
    size: u64,
) -> Result<(), VaultError> {
    tx.change(node)?.attributes.body = NodeBody::File(FileBody {
        version,
        replaced: version,
        size,
    });
    Ok(())
}
