//! What a node is, and how its attributes become a sealed record and back.

use std::ops::Deref;
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use bincode::{Decode, Encode};

use crate::codec;
use crate::crypto::padding::padded_attributes;
use crate::crypto::schedule::{
    AttributesKey, Context, EntryKey, MetadataKey, NameTagKey, Role, SetKey, VaultId,
};
use crate::crypto::{OpenFailure, SecretBytes, SecretKey, SetSum};
use crate::keyring::{Keyring, WRAPPED_LEN};
use crate::store::{KeyedRecord, NameTag, NodeId};

use super::VaultError;

/// The vault's own node, which carries no file.
pub const SYSTEM: NodeId = 0;
/// The root directory.
pub const ROOT: NodeId = 1;

/// A point in time with nanoseconds, also before 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct Timestamp {
    /// Seconds since 1970.
    pub seconds: i64,
    /// 0 to 999,999,999, always forward.
    pub nanoseconds: u32,
}

impl Timestamp {
    /// The time now.
    pub fn now() -> Self {
        SystemTime::now().into()
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        let seconds = |s: u64| i64::try_from(s).unwrap_or(i64::MAX);
        match time.duration_since(UNIX_EPOCH) {
            Ok(after) => Self {
                seconds: seconds(after.as_secs()),
                nanoseconds: after.subsec_nanos(),
            },
            Err(before) => {
                let before = before.duration();
                match before.subsec_nanos() {
                    0 => Self {
                        seconds: -seconds(before.as_secs()),
                        nanoseconds: 0,
                    },
                    n => Self {
                        seconds: -seconds(before.as_secs()) - 1,
                        nanoseconds: 1_000_000_000 - n,
                    },
                }
            }
        }
    }
}

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A regular file.
    File = 1,
    /// A directory.
    Directory = 2,
    /// A symbolic link.
    Symlink = 3,
    /// A named pipe.
    Fifo = 4,
    /// A Unix socket.
    Socket = 5,
    /// A character device.
    CharDevice = 6,
    /// A block device.
    BlockDevice = 7,
    /// The vault's own node.
    System = 8,
}

impl Kind {
    /// The kind that `number` stands for in a record.
    pub fn from_number(number: u8) -> Option<Self> {
        [
            Kind::File,
            Kind::Directory,
            Kind::Symlink,
            Kind::Fifo,
            Kind::Socket,
            Kind::CharDevice,
            Kind::BlockDevice,
            Kind::System,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == number)
    }
}

/// What only some kinds have.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Body {
    /// Of a regular file.
    File(FileBody),
    /// Of a directory.
    Directory(DirectoryBody),
    /// Of a symbolic link: its target.
    Symlink(Vec<u8>),
    /// Of a device: its number; of a pipe or socket: 0.
    Special(u32),
}

/// Which content a file has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct FileBody {
    /// Current version; 0 when nothing was published yet.
    pub version: u64,
    /// The version that last replaced the content as a whole: readers that hold this one or a
    /// later one follow to the current.
    pub replaced: u64,
    /// Its length in bytes.
    pub size: u64,
}

/// How a directory is held together.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct DirectoryBody {
    /// The directory above; the root is its own.
    pub parent: NodeId,
    /// Where the directory above files its name.
    pub tag: NameTag,
    /// Number of entries.
    pub entries: u64,
    /// Number of directories among them.
    pub subdirectories: u32,
    /// Sum over all entry records.
    sum: [u8; 32],
    /// Key epoch of new entries.
    pub epoch: u32,
}

impl DirectoryBody {
    /// An empty directory.
    pub fn new(parent: NodeId, tag: NameTag) -> Self {
        Self {
            parent,
            tag,
            entries: 0,
            subdirectories: 0,
            sum: [0; 32],
            epoch: 1,
        }
    }

    /// The sum over all entry records.
    pub fn sum(&self) -> SetSum {
        SetSum(self.sum)
    }

    pub(super) fn put(&mut self, element: &[u8; 32], is_directory: bool) {
        self.entries += 1;
        self.subdirectories += u32::from(is_directory);
        let mut sum = self.sum();
        sum.add(element);
        self.sum = sum.0;
    }

    /// The directory as it is before its entries are filed under another key.
    pub(super) fn begin_epoch(&mut self) {
        self.epoch = self.epoch.wrapping_add(1);
        (self.entries, self.subdirectories, self.sum) = (0, 0, [0; 32]);
    }

    /// Takes over what does not fit: between what the directory said and what was found of it.
    pub(super) fn carry(&mut self, said: &Self, found: &Self) {
        let entries = self.entries.saturating_add(said.entries);
        self.entries = entries.saturating_sub(found.entries);
        let mut sum = self.sum();
        sum.add(&said.sum);
        sum.remove(&found.sum);
        self.sum = sum.0;
    }

    pub(super) fn take(&mut self, element: &[u8; 32], is_directory: bool) {
        self.entries = self.entries.saturating_sub(1);
        self.subdirectories = self.subdirectories.saturating_sub(u32::from(is_directory));
        let mut sum = self.sum();
        sum.remove(element);
        self.sum = sum.0;
    }
}

/// Everything about a node but its name and content.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Attributes {
    /// Permission bits, set-id bits and sticky bit (07777).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of entries that name it; for a directory 1 while it is in the tree.
    pub links: u32,
    /// Last access, as far as it was set explicitly.
    pub accessed: Timestamp,
    /// Last change of the content.
    pub modified: Timestamp,
    /// Last change of anything.
    pub changed: Timestamp,
    /// When it was made.
    pub created: Timestamp,
    /// Extended attributes, ordered by name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The rest.
    pub body: Body,
}

/// What a directory's names stand under.
pub(super) struct NameKeys {
    pub(super) entry: EntryKey,
    pub(super) tag: NameTagKey,
    pub(super) set: SetKey,
}

/// A metadata key, and once they were needed the keys for names that are derived from it.
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

impl Attributes {
    /// Of a node that is made now and has one name.
    pub(super) fn of_new(mode: u32, (uid, gid): (u32, u32), now: Timestamp, body: Body) -> Self {
        Self {
            mode,
            uid,
            gid,
            links: 1,
            accessed: now,
            modified: now,
            changed: now,
            created: now,
            xattrs: Vec::new(),
            body,
        }
    }
}

/// A node, opened and verified.
#[derive(Clone)]
pub struct Node {
    /// Its id.
    pub id: NodeId,
    /// What it is.
    pub kind: Kind,
    /// Raised by every change.
    pub revision: u64,
    /// Generation of the master key that wraps its metadata key.
    pub generation: u64,
    /// Its attributes.
    pub attributes: Attributes,
    /// The key of its metadata.
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

/// The record's value as stored.
#[derive(Encode, Decode)]
struct Stored {
    kind: u8,
    revision: u64,
    wrapped: [u8; WRAPPED_LEN],
    sealed: Vec<u8>,
}

impl Node {
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
        })
    }

    /// Opens a stored node.
    pub(super) fn open(
        keyring: &Keyring,
        id: NodeId,
        record: &KeyedRecord,
    ) -> Result<Self, VaultError> {
        let bad = |why| VaultError::tampered(format_args!("node {id}"), why);
        let stored: Stored =
            codec::decode(&record.value, "node").map_err(|_| bad("is not encoded as a node"))?;
        let kind = Kind::from_number(stored.kind).ok_or_else(|| bad("has an unknown kind"))?;
        let key = keyring.unwrap(record.generation, id, Role::Metadata, &stored.wrapped)?;
        let key = NodeKey::new(key);
        let context = Context::Attributes {
            node: id,
            kind: stored.kind,
            revision: stored.revision,
        };
        let plain = AttributesKey::derive(&key)
            .open(keyring.vault(), context, &stored.sealed)
            .map_err(|error| match error {
                OpenFailure::Open(_) => bad("does not authenticate"),
                OpenFailure::Memory(error) => error.into(),
            })?;
        let attributes = decode_attributes(&plain).ok_or_else(|| bad("has unknown attributes"))?;
        let fits = match attributes.body {
            Body::File(_) => kind == Kind::File,
            Body::Directory(_) => kind == Kind::Directory,
            Body::Symlink(_) => kind == Kind::Symlink,
            Body::Special(_) => !matches!(kind, Kind::File | Kind::Directory | Kind::Symlink),
        };
        if !fits {
            return Err(bad("has attributes of another kind"));
        }
        let wrapped = stored.wrapped.to_vec();
        Ok(Self {
            id,
            kind,
            revision: stored.revision,
            generation: record.generation,
            attributes,
            key,
            wrapped,
        })
    }

    /// Whether a record claims to be a directory's. Opening it verifies that.
    pub(super) fn says_directory(record: &KeyedRecord) -> bool {
        record.value.first() == Some(&(Kind::Directory as u8))
    }

    /// The next revision of the node as a record.
    pub(super) fn seal(&mut self, vault: VaultId) -> Result<KeyedRecord, VaultError> {
        self.revision += 1;
        let plain = encode_attributes(&self.attributes)?;
        let context = Context::Attributes {
            node: self.id,
            kind: self.kind as u8,
            revision: self.revision,
        };
        let sealed = AttributesKey::derive(&self.key).seal(vault, context, &plain)?;
        let wrapped = self.wrapped[..]
            .try_into()
            .map_err(|_| VaultError::Integrity("a wrapped key has a wrong length".into()))?;
        let stored = Stored {
            kind: self.kind as u8,
            revision: self.revision,
            wrapped,
            sealed,
        };
        Ok(KeyedRecord {
            generation: self.generation,
            value: codec::encode(&stored),
        })
    }

    /// Wraps the metadata key anew if another generation than the active one wraps it, or replaces
    /// it while data keys are replaced. What else stands under the keys of directories and of the
    /// system node is replaced together with them, and not here.
    pub(super) fn rewrap(&mut self, keyring: &Keyring) -> Result<(), VaultError> {
        if self.generation == keyring.active() {
            return Ok(());
        }
        match (keyring.renews_data_keys(), self.kind) {
            (true, Kind::Directory | Kind::System) => Ok(()),
            (true, _) => self.renew_key(keyring),
            (false, _) => {
                (self.generation, self.wrapped) =
                    keyring.wrap(self.id, Role::Metadata, &self.key.0)?;
                Ok(())
            }
        }
    }

    /// Replaces the metadata key. The caller replaces what stands under it.
    pub(super) fn renew_key(&mut self, keyring: &Keyring) -> Result<(), VaultError> {
        let key = SecretKey::generate()?;
        (self.generation, self.wrapped) = keyring.wrap(self.id, Role::Metadata, &key)?;
        self.key = NodeKey::new(key);
        Ok(())
    }

    /// The file's body.
    ///
    /// # Errors
    /// When it is no regular file.
    pub fn file(&self) -> Result<&FileBody, VaultError> {
        match &self.attributes.body {
            Body::File(file) => Ok(file),
            Body::Directory(_) => Err(VaultError::IsADirectory),
            Body::Symlink(_) | Body::Special(_) => Err(VaultError::Invalid),
        }
    }

    /// The directory's body.
    ///
    /// # Errors
    /// When it is no directory.
    pub fn directory(&self) -> Result<&DirectoryBody, VaultError> {
        match &self.attributes.body {
            Body::Directory(directory) => Ok(directory),
            Body::File(_) | Body::Symlink(_) | Body::Special(_) => Err(VaultError::NotADirectory),
        }
    }

    pub(super) fn directory_mut(&mut self) -> Result<&mut DirectoryBody, VaultError> {
        match &mut self.attributes.body {
            Body::Directory(directory) => Ok(directory),
            Body::File(_) | Body::Symlink(_) | Body::Special(_) => Err(VaultError::NotADirectory),
        }
    }

    /// The number of links that `stat` shows.
    pub fn visible_links(&self) -> u32 {
        match &self.attributes.body {
            Body::Directory(_) if self.attributes.links == 0 => 0,
            Body::Directory(directory) => directory.subdirectories.saturating_add(2),
            Body::File(_) | Body::Symlink(_) | Body::Special(_) => self.attributes.links,
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times_before_1970_keep_their_nanoseconds() {
        let time = Timestamp::from(UNIX_EPOCH - Duration::new(1, 250_000_000));
        assert_eq!(
            time,
            Timestamp {
                seconds: -2,
                nanoseconds: 750_000_000
            }
        );
        let time = Timestamp::from(UNIX_EPOCH - Duration::new(3, 0));
        assert_eq!(
            time,
            Timestamp {
                seconds: -3,
                nanoseconds: 0
            }
        );
    }
}
