//! The decoders of stored bytes, one for each kind of record, exposed for fuzzing and for tests
//! with forged bytes.

use crate::crypto::SecretBytes;
use crate::keyring::Keyring;
use crate::store::{NameTag, NodeId, Record};

use super::entry::DirectoryKeys;
use super::state::SystemKeys;
use super::{Entry, Node, State, VaultError, Version};

/// Opens the record of node `id`.
///
/// # Errors
/// When it is not the record of this node.
pub fn node(keyring: &Keyring, id: NodeId, record: &Record) -> Result<Node, VaultError> {
    Node::open(keyring, id, record)
}

/// Opens the record that `directory` files under `tag`.
///
/// # Errors
/// When it is not the record there, or `directory` is not a directory.
pub fn entry(
    keyring: &Keyring,
    directory: &Node,
    tag: &NameTag,
    record: &[u8],
) -> Result<Entry, VaultError> {
    DirectoryKeys::of(keyring.vault(), directory)?.open(tag, record)
}

/// Opens the record of a version.
///
/// # Errors
/// When it is not the record of this version of this node.
pub fn version(
    keyring: &Keyring,
    node: NodeId,
    number: u64,
    record: &Record,
) -> Result<Version, VaultError> {
    Version::open(keyring, node, number, record)
}

/// Opens one chunk of a version, with its padding.
///
/// # Errors
/// When it is not that chunk.
pub fn chunk(version: &Version, index: u32, sealed: &[u8]) -> Result<SecretBytes, VaultError> {
    let mut plain = SecretBytes::zeroed(version.plain_len(index))?;
    version.open_chunk(index, sealed, &mut plain)?;
    Ok(plain)
}

/// Opens the state record with the keys of the vault's own node.
///
/// # Errors
/// When it does not authenticate.
pub fn state(keyring: &Keyring, system: &Node, sealed: &[u8]) -> Result<State, VaultError> {
    SystemKeys::of(system).open(keyring.vault(), sealed)
}
