//! A name in a directory, and how it becomes a sealed record and back.

use std::sync::Arc;

use bincode::{Decode, Encode};

use crate::codec;
use crate::crypto::OpenFailure;
use crate::crypto::schedule::{Context, VaultId};
use crate::store::{NameTag, NodeId};

use super::VaultError;
use super::node::{Kind, NameKeys, Node};

/// Longest name in bytes.
pub const MAX_NAME: usize = 255;

/// What a directory says of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where the directory files the name.
    pub tag: NameTag,
    /// The node that it names.
    pub node: NodeId,
    /// What that node is.
    pub kind: Kind,
    /// The name.
    pub name: Vec<u8>,
}

#[derive(Encode, Decode)]
struct Stored {
    epoch: u32,
    sealed: Vec<u8>,
}

/// Of one size for all names.
#[derive(Encode, Decode)]
struct Plain {
    node: NodeId,
    kind: u8,
    length: u8,
    name: [u8; MAX_NAME],
}

/// A directory's keys.
pub(super) struct DirectoryKeys {
    directory: NodeId,
    vault: VaultId,
    epoch: u32,
    keys: Arc<NameKeys>,
}

impl DirectoryKeys {
    pub(super) fn of(vault: VaultId, directory: &Node) -> Result<Self, VaultError> {
        Ok(Self {
            directory: directory.id,
            vault,
            epoch: directory.directory()?.epoch,
            keys: directory.key.of_names(),
        })
    }

    /// Where `name` is filed.
    ///
    /// # Errors
    /// When it is no name: empty, too long, `.` or `..`, or with a slash or NUL in it.
    pub(super) fn tag(&self, name: &[u8]) -> Result<NameTag, VaultError> {
        if name.len() > MAX_NAME {
            return Err(VaultError::NameTooLong);
        }
        if matches!(name, b"" | b"." | b"..") || name.iter().any(|b| matches!(b, b'/' | 0)) {
            return Err(VaultError::Invalid);
        }
        Ok(self.keys.tag.tag(name))
    }

    /// What an entry's record adds to the directory's sum.
    pub(super) fn element(&self, tag: &NameTag, record: &[u8]) -> [u8; 32] {
        self.keys.set.entry(tag, record)
    }

    pub(super) fn seal(&self, entry: &Entry) -> Result<Vec<u8>, VaultError> {
        let mut name = [0; MAX_NAME];
        let length = u8::try_from(entry.name.len()).map_err(|_| VaultError::NameTooLong)?;
        name.get_mut(..entry.name.len())
            .ok_or(VaultError::NameTooLong)?
            .copy_from_slice(&entry.name);
        let plain = Plain {
            node: entry.node,
            kind: entry.kind as u8,
            length,
            name,
        };
        let plain = zeroize::Zeroizing::new(codec::encode(&plain));
        let context = Context::Entry {
            directory: self.directory,
            tag: &entry.tag,
            epoch: self.epoch,
        };
        let sealed = self.keys.entry.seal(self.vault, context, &plain)?;
        Ok(codec::encode(&Stored {
            epoch: self.epoch,
            sealed,
        }))
    }

    /// Opens a record that is filed under `tag`.
    pub(super) fn open(&self, tag: &NameTag, record: &[u8]) -> Result<Entry, VaultError> {
        let bad = |why| {
            VaultError::tampered(
                format_args!("an entry of directory {}", self.directory),
                why,
            )
        };
        let stored: Stored =
            codec::decode(record, "entry").map_err(|_| bad("is not encoded as one"))?;
        if stored.epoch != self.epoch {
            return Err(bad("has an unknown key epoch"));
        }
        let context = Context::Entry {
            directory: self.directory,
            tag,
            epoch: self.epoch,
        };
        let plain = self
            .keys
            .entry
            .open(self.vault, context, &stored.sealed)
            .map_err(|e| match e {
                OpenFailure::Open(_) => bad("does not authenticate"),
                OpenFailure::Memory(error) => error.into(),
            })?;
        let plain: Plain =
            codec::decode(&plain, "entry").map_err(|_| bad("has an unknown content"))?;
        let kind = Kind::from_number(plain.kind).ok_or_else(|| bad("has an unknown kind"))?;
        let name = plain.name[..usize::from(plain.length)].to_vec();
        if self.tag(&name).map_err(|_| bad("holds no name"))? != *tag {
            return Err(bad("is filed under another name"));
        }
        Ok(Entry {
            tag: *tag,
            node: plain.node,
            kind,
            name,
        })
    }
}
