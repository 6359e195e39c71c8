//! A name in a directory, and its sealed record.

use std::sync::Arc;

use bincode::{Decode, Encode};

use crate::codec;
use crate::crypto::schedule::{Context, VaultId};
use crate::store::{NameTag, NodeId, Read, ReadRecords as _};

use super::VaultError;
use super::current::Place;
use super::node::{DirectoryBody, Kind, NameKeys, Node};

/// Longest name in bytes.
pub const MAX_NAME: usize = 255;

/// A directory's entry for a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The tag under which the directory files the name.
    pub tag: NameTag,
    /// The node that it names.
    pub node: NodeId,
    /// The kind of that node.
    pub kind: Kind,
    /// The name.
    pub name: Vec<u8>,
}

#[derive(Encode, Decode)]
struct Stored {
    epoch: u32,
    sealed: Vec<u8>,
}

/// The plain entry, of the same size for all names.
#[derive(Encode, Decode)]
struct Plain {
    node: NodeId,
    kind: u8,
    length: u8,
    name: [u8; MAX_NAME],
}

/// A directory's keys: those of its entries, and while entries are being moved to new keys, also
/// those of the epoch before.
pub(super) struct DirectoryKeys {
    directory: NodeId,
    vault: VaultId,
    epoch: u32,
    keys: Arc<NameKeys>,
    previous: Option<(u32, Arc<NameKeys>)>,
}

fn must_be_a_name(name: &[u8]) -> Result<(), VaultError> {
    if name.len() > MAX_NAME {
        return Err(VaultError::NameTooLong);
    }
    if matches!(name, b"" | b"." | b"..") || name.iter().any(|b| matches!(b, b'/' | 0)) {
        return Err(VaultError::Invalid);
    }
    Ok(())
}

/// The epoch that a record claims.
pub(super) fn epoch_of(record: &[u8]) -> Option<u32> {
    let (epoch, _) = codec::decode_prefix(record, "entry").ok()?;
    Some(epoch)
}

impl DirectoryKeys {
    pub(super) fn of(vault: VaultId, directory: &Node) -> Result<Self, VaultError> {
        let body = directory.directory()?;
        let previous = directory.previous.as_ref().zip(body.remainder.as_ref());
        Ok(Self {
            directory: directory.id,
            vault,
            epoch: body.epoch,
            keys: directory.key.of_names(),
            previous: previous.map(|(previous, left)| (left.epoch, previous.key.of_names())),
        })
    }

    /// The directory of these keys.
    pub(super) fn directory(&self) -> NodeId {
        self.directory
    }

    /// The keys of an epoch, if there are any.
    fn of_epoch(&self, epoch: u32) -> Option<&NameKeys> {
        let previous = self.previous.iter().find(|(of, _)| *of == epoch);
        match epoch == self.epoch {
            true => Some(&self.keys),
            false => previous.map(|(_, keys)| &**keys),
        }
    }

    /// Whether a record is under the previous key.
    pub(super) fn is_previous(&self, record: &[u8]) -> bool {
        let previous = self.previous.as_ref().map(|(epoch, _)| *epoch);
        previous.is_some() && previous == epoch_of(record)
    }

    /// Finds a name under either key; returns the entry and its record.
    pub(super) fn find(
        &self,
        records: &mut (impl Read + ?Sized),
        name: &[u8],
    ) -> Result<Option<(Entry, Vec<u8>)>, VaultError> {
        self.find_filed(records, self.tag(name)?, name)
    }

    /// The same for a name whose [`tag`](Self::tag) is known.
    pub(super) fn find_filed(
        &self,
        records: &mut (impl Read + ?Sized),
        mut tag: NameTag,
        name: &[u8],
    ) -> Result<Option<(Entry, Vec<u8>)>, VaultError> {
        let mut found = records.entry(self.directory, &tag)?;
        if let (None, Some((_, keys))) = (&found, &self.previous) {
            tag = keys.tag.tag(name);
            found = records.entry(self.directory, &tag)?;
        }
        match found {
            Some(record) => Ok(Some((self.open(&tag, &record)?, record))),
            None => Ok(None),
        }
    }

    /// Adds a record to a directory's count and sum.
    pub(super) fn count(
        &self,
        into: &mut DirectoryBody,
        tag: &NameTag,
        record: &[u8],
        is_directory: bool,
    ) {
        let epoch = epoch_of(record).unwrap_or(self.epoch);
        into.put(epoch, &self.element(tag, record), is_directory);
    }

    /// Removes a record from them.
    pub(super) fn discount(
        &self,
        from: &mut DirectoryBody,
        tag: &NameTag,
        record: &[u8],
        is_directory: bool,
    ) {
        let epoch = epoch_of(record).unwrap_or(self.epoch);
        from.take(epoch, &self.element(tag, record), is_directory);
    }

    /// The tag of `name`.
    ///
    /// # Errors
    /// When the name is invalid: empty, too long, `.` or `..`, or with a slash or NUL in it.
    pub(super) fn tag(&self, name: &[u8]) -> Result<NameTag, VaultError> {
        must_be_a_name(name)?;
        Ok(self.keys.tag.tag(name))
    }

    /// The hash that an entry's record adds to the directory's sum.
    pub(super) fn element(&self, tag: &NameTag, record: &[u8]) -> [u8; 32] {
        let keys = epoch_of(record).and_then(|epoch| self.of_epoch(epoch));
        keys.unwrap_or(&self.keys).set.entry(tag, record)
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
        let id = Place::Entry(self.directory, *tag);
        let bad = |why| VaultError::tampered(id, why);
        let stored: Stored =
            codec::decode(record, "entry").map_err(|_| bad("is not encoded as one"))?;
        let keys = self.of_epoch(stored.epoch);
        let keys = keys.ok_or_else(|| bad("has an unknown key epoch"))?;
        let context = Context::Entry {
            directory: self.directory,
            tag,
            epoch: stored.epoch,
        };
        let plain = keys
            .entry
            .open(self.vault, context, &stored.sealed)
            .map_err(|failure| VaultError::unopened(id, failure))?;
        let plain: Plain =
            codec::decode(&plain, "entry").map_err(|_| bad("has an unknown content"))?;
        let kind = Kind::from_number(plain.kind).ok_or_else(|| bad("has an unknown kind"))?;
        let name = plain.name[..usize::from(plain.length)].to_vec();
        must_be_a_name(&name).map_err(|_| bad("holds no name"))?;
        if keys.tag.tag(&name) != *tag {
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
