//! A node, and its sealed record.

mod attributes;
mod body;

use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use bincode::{Decode, Encode};

use crate::codec;
use crate::crypto::padding::padded_attributes;
use crate::crypto::schedule::{
    AttributesKey, Context, EntryKey, MetadataKey, NameTagKey, Role, SetKey, VaultId,
};
use crate::crypto::{Nonces, SecretBytes, SecretKey};
use crate::keyring::{Keyring, WRAPPED_LEN};
use crate::store::{NodeId, Record};

use super::VaultError;
use super::keys::KeyedId;
pub use attributes::{Attributes, Kind, Timestamp};
pub use body::{DirectoryBody, FileBody, NodeBody, Remainder};

/// The vault's own node, which is not a file.
pub const SYSTEM: NodeId = 0;
/// The root directory.
pub const ROOT: NodeId = 1;

/// The keys of a directory's names.
pub(super) struct NameKeys {
    pub(super) entry: EntryKey,
    pub(super) tag: NameTagKey,
    pub(super) set: SetKey,
}

/// A metadata key, and the keys for names derived from it, once they are needed.
#[derive(Clone)]
pub(super) struct NodeKey {
    key: MetadataKey,
    of_names: OnceLock<Arc<NameKeys>>,
}

impl NodeKey {
    fn new(key: SecretKey) -> Self {
        Self {
            key: MetadataKey(key),
            of_names: OnceLock::new(),
        }
    }

    pub(super) fn of_names(&self) -> Arc<NameKeys> {
        let derive = || {
            Arc::new(NameKeys {
                entry: EntryKey::derive(self),
                tag: NameTagKey::derive(self),
                set: SetKey::derive(self),
            })
        };
        Arc::clone(self.of_names.get_or_init(derive))
    }
}

impl Deref for NodeKey {
    type Target = MetadataKey;

    fn deref(&self) -> &MetadataKey {
        &self.key
    }
}

/// A node that was opened and verified.
#[derive(Clone)]
pub struct Node {
    /// Its id.
    pub id: NodeId,
    /// Its kind.
    pub kind: Kind,
    /// Grows with every change.
    pub revision: u64,
    /// Generation of the master key that wraps its metadata key.
    pub generation: u64,
    /// Its attributes.
    pub attributes: Attributes,
    /// The key of its metadata.
    pub(super) key: NodeKey,
    wrapped: Vec<u8>,
    /// The previous key, in a directory whose entries are being moved to a new key, and in the
    /// system node while its sums are recomputed.
    pub(super) previous: Option<PreviousKey>,
}

/// The previous key: some entries of the directory are still under it, or the sums of the system
/// node.
///
/// The record has both keys, each wrapped by the master key of its own generation, and is filed
/// under the older generation. So the query for records under an old master key finds the node
/// until nothing needs that key any more, whichever process began; until then that master key is
/// not removed. The new key is never wrapped by an old master key, so an attacker who has the old
/// one cannot open new records.
#[derive(Clone)]
pub(super) struct PreviousKey {
    generation: u64,
    pub(super) key: NodeKey,
    wrapped: Vec<u8>,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Node({}, {:?}, revision {})",
            self.id, self.kind, self.revision
        )
    }
}

/// The stored value of the record.
#[derive(Encode, Decode)]
struct Stored {
    kind: u8,
    revision: u64,
    wrapped: [u8; WRAPPED_LEN],
    sealed: Vec<u8>,
}

/// The new key, which follows in the record of a node with two keys. The attributes are sealed with
/// it.
#[derive(Encode, Decode)]
struct NewKey {
    generation: u64,
    wrapped: [u8; WRAPPED_LEN],
}

fn fixed(wrapped: &[u8]) -> Result<[u8; WRAPPED_LEN], VaultError> {
    let length = |_| VaultError::Integrity("a wrapped key has a wrong length".into());
    wrapped.try_into().map_err(length)
}

/// The beginning of the value.
#[derive(Decode)]
struct Head {
    _kind: u8,
    _revision: u64,
    wrapped: [u8; WRAPPED_LEN],
}

impl Node {
    /// The node after its last name was removed.
    pub fn without_name(&self) -> Self {
        let mut node = self.clone();
        node.attributes.links = 0;
        node
    }

    /// Bytes of the node's extended attributes.
    pub fn xattr_bytes(&self) -> usize {
        let xattrs = self.attributes.xattrs.iter();
        xattrs.map(|(name, value)| name.len() + value.len()).sum()
    }

    /// The node without its extended attributes.
    pub fn without_xattrs(&self) -> Self {
        let xattrs = Vec::new();
        let attributes = Attributes {
            xattrs,
            body: self.attributes.body.clone(),
            ..self.attributes
        };
        Self {
            attributes,
            key: self.key.clone(),
            wrapped: self.wrapped.clone(),
            previous: self.previous.clone(),
            ..*self
        }
    }

    /// A new node with a key of its own.
    pub(super) fn create(
        keyring: &Keyring,
        id: NodeId,
        kind: Kind,
        attributes: Attributes,
    ) -> Result<Self, VaultError> {
        let key = SecretKey::generate()?;
        let (generation, wrapped) = keyring.wrap(id, Role::Metadata, &key)?;
        Ok(Self {
            id,
            kind,
            revision: 0,
            generation,
            attributes,
            key: NodeKey::new(key),
            wrapped,
            previous: None,
        })
    }

    /// Opens a stored node.
    pub(super) fn open(keyring: &Keyring, id: NodeId, record: &Record) -> Result<Self, VaultError> {
        let bad = |why| VaultError::tampered(KeyedId::Node(id), why);
        let not_one = |_| bad("is not encoded as a node");
        let (stored, used) =
            codec::decode_prefix::<Stored>(&record.value, "node").map_err(not_one)?;
        let kind = Kind::from_number(stored.kind).ok_or_else(|| bad("has an unknown kind"))?;
        let unwrap = |generation, wrapped: &[u8; WRAPPED_LEN]| {
            let key = keyring.unwrap(generation, id, Role::Metadata, wrapped)?;
            Ok::<_, VaultError>((generation, NodeKey::new(key), wrapped.to_vec()))
        };
        let first = unwrap(record.generation, &stored.wrapped)?;
        let ((generation, key, wrapped), previous) = match &record.value[used..] {
            [] => (first, None),
            more => {
                let new: NewKey = codec::decode(more, "node").map_err(not_one)?;
                (unwrap(new.generation, &new.wrapped)?, Some(first))
            }
        };
        let previous = previous.map(|(generation, key, wrapped)| PreviousKey {
            generation,
            key,
            wrapped,
        });
        let context = Context::Attributes {
            node: id,
            kind: stored.kind,
            revision: stored.revision,
        };
        let plain = AttributesKey::derive(&key)
            .open(keyring.vault(), context, &stored.sealed)
            .map_err(|failure| VaultError::unopened(KeyedId::Node(id), failure))?;
        let attributes = decode_attributes(&plain).ok_or_else(|| bad("has unknown attributes"))?;
        let (fits, two_keys) = match &attributes.body {
            NodeBody::File(_) => (kind == Kind::File, false),
            NodeBody::Directory(directory) => {
                (kind == Kind::Directory, directory.remainder.is_some())
            }
            NodeBody::Symlink(_) => (kind == Kind::Symlink, false),
            NodeBody::Special(_) => {
                let others = [Kind::File, Kind::Directory, Kind::Symlink];
                // The state says whether the system node has two keys.
                let has_two = kind == Kind::System && previous.is_some();
                (!others.contains(&kind), has_two)
            }
        };
        if !fits || two_keys != previous.is_some() {
            return Err(bad("has attributes of another kind"));
        }
        Ok(Self {
            id,
            kind,
            revision: stored.revision,
            generation,
            attributes,
            key,
            wrapped,
            previous,
        })
    }

    /// Whether a record claims to be a directory. Opening it verifies that.
    pub(super) fn says_directory(record: &Record) -> bool {
        record.value.first() == Some(&(Kind::Directory as u8))
    }

    /// The revision that a record claims. Opening it verifies that.
    pub(super) fn revision_in(value: &[u8]) -> u64 {
        let bytes = value.get(1..9).and_then(|b| b.try_into().ok());
        bytes.map_or(0, u64::from_le_bytes)
    }

    /// Raises the revision and seals the node; returns its record.
    pub(super) fn seal(&mut self, vault: VaultId) -> Result<Record, VaultError> {
        self.revision += 1;
        let plain = encode_attributes(&self.attributes)?;
        let context = Context::Attributes {
            node: self.id,
            kind: self.kind as u8,
            revision: self.revision,
        };
        let sealed = AttributesKey::derive(&self.key).seal(vault, context, &plain)?;
        let generation = self.stored_under();
        let (wrapped, new) = match &self.previous {
            None => (&self.wrapped, None),
            Some(previous) => (&previous.wrapped, Some(&self.wrapped)),
        };
        let stored = Stored {
            kind: self.kind as u8,
            revision: self.revision,
            wrapped: fixed(wrapped)?,
            sealed,
        };
        let mut value = codec::encode(&stored);
        if let Some(new) = new {
            value.extend(codec::encode(&NewKey {
                generation: self.generation,
                wrapped: fixed(new)?,
            }));
        }
        Ok(Record { generation, value })
    }

    /// The generation under which its record is filed.
    pub(super) fn stored_under(&self) -> u64 {
        let previous = self.previous.as_ref();
        previous.map_or(self.generation, |previous| previous.generation)
    }

    /// Whether all of it is under the master key of this generation.
    pub(super) fn is_under(&self, generation: u64) -> bool {
        self.generation == generation && self.previous.is_none()
    }

    /// Wraps the metadata key again if it is under another generation than the active one, or
    /// replaces it while a rotation replaces data keys. Other steps replace the keys of directories
    /// and of the system node, together with the records under them.
    pub(super) fn rewrap(&mut self, keyring: &Keyring) -> Result<(), VaultError> {
        if self.generation == keyring.active() {
            return Ok(());
        }
        match (keyring.renews_data_keys(), self.kind) {
            (true, Kind::Directory) | (_, Kind::System) => Ok(()),
            (true, _) => self.renew_key(keyring),
            (false, _) => {
                let (mut nonces, role) = (Nonces::draw(1)?, Role::Metadata);
                (self.generation, self.wrapped) =
                    keyring.wrap_anew(&mut nonces, self.id, role, &self.key.0)?;
                Ok(())
            }
        }
    }

    /// Checks that a node's metadata key unwraps, and nothing else.
    pub(super) fn must_unwrap(
        keyring: &Keyring,
        id: NodeId,
        record: &Record,
    ) -> Result<(), VaultError> {
        let bad = |why| VaultError::tampered(KeyedId::Node(id), why);
        let (stored, _): (Head, _) = codec::decode_prefix(&record.value, "node")
            .map_err(|_| bad("is not encoded as a node"))?;
        keyring.unwrap(record.generation, id, Role::Metadata, &stored.wrapped)?;
        Ok(())
    }

    /// A record with its metadata key wrapped by the active master key; nothing else in it changes.
    /// A record that does not authenticate stays as it is, for the operator to restore.
    pub(super) fn rewrapped(
        keyring: &Keyring,
        nonces: &mut Nonces,
        id: NodeId,
        record: &Record,
    ) -> Result<Record, VaultError> {
        let bad = |why| VaultError::tampered(KeyedId::Node(id), why);
        let mut stored: Stored =
            codec::decode(&record.value, "node").map_err(|_| bad("is not encoded as a node"))?;
        let role = Role::Metadata;
        let key = MetadataKey(keyring.unwrap(record.generation, id, role, &stored.wrapped)?);
        let context = Context::Attributes {
            node: id,
            kind: stored.kind,
            revision: stored.revision,
        };
        AttributesKey::derive(&key)
            .open(keyring.vault(), context, &stored.sealed)
            .map_err(|failure| VaultError::unopened(KeyedId::Node(id), failure))?;
        let (generation, wrapped) = keyring.wrap_anew(nonces, id, role, &key.0)?;
        stored.wrapped = wrapped[..]
            .try_into()
            .map_err(|_| bad("was wrapped to a wrong length"))?;
        Ok(Record {
            generation,
            value: codec::encode(&stored),
        })
    }

    /// Replaces the metadata key. The caller replaces the records under it.
    pub(super) fn renew_key(&mut self, keyring: &Keyring) -> Result<(), VaultError> {
        let key = SecretKey::generate()?;
        (self.generation, self.wrapped) = keyring.wrap(self.id, Role::Metadata, &key)?;
        self.key = NodeKey::new(key);
        Ok(())
    }

    /// Adds a new metadata key beside the present one.
    pub(super) fn add_key(&mut self, keyring: &Keyring) -> Result<(), VaultError> {
        let previous = PreviousKey {
            generation: self.generation,
            key: self.key.clone(),
            wrapped: self.wrapped.clone(),
        };
        self.renew_key(keyring)?;
        self.previous = Some(previous);
        Ok(())
    }

    /// Adds a new key to a directory, beside the key of its entries so far.
    pub(super) fn begin_epoch(&mut self, keyring: &Keyring) -> Result<(), VaultError> {
        self.add_key(keyring)?;
        self.directory_mut()?.begin_epoch();
        Ok(())
    }

    /// Drops a directory's previous key, under which no entry is left.
    pub(super) fn end_epoch(&mut self) -> Result<(), VaultError> {
        self.previous = None;
        self.directory_mut()?.remainder = None;
        Ok(())
    }

    /// The file's body.
    ///
    /// # Errors
    /// When the node is not a regular file.
    pub fn file(&self) -> Result<&FileBody, VaultError> {
        match &self.attributes.body {
            NodeBody::File(file) => Ok(file),
            NodeBody::Directory(_) => Err(VaultError::IsADirectory),
            NodeBody::Symlink(_) | NodeBody::Special(_) => Err(VaultError::Invalid),
        }
    }

    /// The directory's body.
    ///
    /// # Errors
    /// When the node is not a directory.
    pub fn directory(&self) -> Result<&DirectoryBody, VaultError> {
        match &self.attributes.body {
            NodeBody::Directory(directory) => Ok(directory),
            NodeBody::File(_) | NodeBody::Symlink(_) | NodeBody::Special(_) => {
                Err(VaultError::NotADirectory)
            }
        }
    }

    pub(super) fn directory_mut(&mut self) -> Result<&mut DirectoryBody, VaultError> {
        match &mut self.attributes.body {
            NodeBody::Directory(directory) => Ok(directory),
            NodeBody::File(_) | NodeBody::Symlink(_) | NodeBody::Special(_) => {
                Err(VaultError::NotADirectory)
            }
        }
    }

    /// The number of links that `stat` shows.
    pub fn visible_links(&self) -> u32 {
        match &self.attributes.body {
            NodeBody::Directory(_) if self.attributes.links == 0 => 0,
            NodeBody::Directory(directory) => directory.subdirectories.saturating_add(2),
            NodeBody::File(_) | NodeBody::Symlink(_) | NodeBody::Special(_) => {
                self.attributes.links
            }
        }
    }
}

fn encode_attributes(attributes: &Attributes) -> Result<SecretBytes, VaultError> {
    let encoded = zeroize::Zeroizing::new(codec::encode(attributes));
    let mut plain = SecretBytes::zeroed(padded_attributes(encoded.len()))?;
    plain[..encoded.len()].copy_from_slice(&encoded);
    Ok(plain)
}

fn decode_attributes(plain: &[u8]) -> Option<Attributes> {
    let (attributes, used) = codec::decode_prefix(plain, "attributes").ok()?;
    let padding = plain.get(used..)?;
    (padding.iter().all(|byte| *byte == 0) && padded_attributes(used) == plain.len())
        .then_some(attributes)
}
