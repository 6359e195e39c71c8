//! The part of a node that depends on its kind, and its stored bytes.

use bincode::de::Decoder;
use bincode::enc::Encoder;
use bincode::error::{DecodeError, EncodeError};
use bincode::{Decode, Encode};

use crate::crypto::SetSum;
use crate::store::{NameTag, NodeId};

/// The part of a node that depends on its kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeBody {
    /// A regular file.
    File(FileBody),
    /// A directory.
    Directory(DirectoryBody),
    /// A symbolic link, with its target.
    Symlink(Vec<u8>),
    /// A device, with its number; a pipe or a socket, with 0.
    Special(u32),
}

/// The content of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct FileBody {
    /// Current version; 0 before the first is published.
    pub version: u64,
    /// The version that last replaced the content as a whole. Readers of this or a later version
    /// follow to the current one.
    pub replaced: u64,
    /// Its length in bytes.
    pub size: u64,
}

/// The entries of a directory, as count and sum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryBody {
    /// The parent directory; the root's is the root itself.
    pub parent: NodeId,
    /// The tag under which the parent files its name.
    pub tag: NameTag,
    /// Number of entries, under either key.
    pub entries: u64,
    /// Number of directories among them.
    pub subdirectories: u32,
    /// Sum over all entry records, each hashed with the key of its epoch.
    sum: [u8; 32],
    /// Key epoch of new entries.
    pub epoch: u32,
    /// The entries that are still under the previous key, while entries are being moved.
    pub remainder: Option<Remainder>,
}

/// The entries of a directory under its previous key. Their number only falls.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Remainder {
    /// Their key epoch.
    pub epoch: u32,
    /// Their number.
    pub entries: u64,
    /// Sum over their records.
    sum: [u8; 32],
}

impl Remainder {
    /// Whether no entry is left, and the sum is that of none.
    pub(in crate::vault) fn is_nothing(&self) -> bool {
        self.entries == 0 && self.sum == [0; 32]
    }
}

fn add(sum: &mut [u8; 32], element: &[u8; 32]) {
    let mut more = SetSum(*sum);
    more.add(element);
    *sum = more.0;
}

fn remove(sum: &mut [u8; 32], element: &[u8; 32]) {
    let mut less = SetSum(*sum);
    less.remove(element);
    *sum = less.0;
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
            remainder: None,
        }
    }

    /// The same directory, with no entries counted.
    pub(in crate::vault) fn uncounted(&self) -> Self {
        let remainder = self.remainder.as_ref().map(|remainder| Remainder {
            epoch: remainder.epoch,
            entries: 0,
            sum: [0; 32],
        });
        Self {
            epoch: self.epoch,
            remainder,
            ..Self::new(self.parent, self.tag)
        }
    }

    /// Whether a count of the stored records gives the same entries, whatever they name.
    pub(in crate::vault) fn agrees_with(&self, found: &Self) -> bool {
        (self.entries, self.sum, &self.remainder) == (found.entries, found.sum, &found.remainder)
    }

    /// The sum over all entry records.
    pub fn sum(&self) -> SetSum {
        SetSum(self.sum)
    }

    /// Adds an entry of this epoch.
    pub(in crate::vault) fn put(&mut self, epoch: u32, element: &[u8; 32], is_directory: bool) {
        self.entries += 1;
        self.subdirectories += u32::from(is_directory);
        add(&mut self.sum, element);
        if let Some(remainder) = self.remainder.as_mut().filter(|r| r.epoch == epoch) {
            remainder.entries += 1;
            add(&mut remainder.sum, element);
        }
    }

    /// Removes an entry of this epoch.
    pub(in crate::vault) fn take(&mut self, epoch: u32, element: &[u8; 32], is_directory: bool) {
        self.entries = self.entries.saturating_sub(1);
        self.subdirectories = self.subdirectories.saturating_sub(u32::from(is_directory));
        remove(&mut self.sum, element);
        if let Some(remainder) = self.remainder.as_mut().filter(|r| r.epoch == epoch) {
            remainder.entries = remainder.entries.saturating_sub(1);
            remove(&mut remainder.sum, element);
        }
    }

    /// Adds the count of another thread for the same directory, which began with no entries
    /// counted.
    pub(in crate::vault) fn add(&mut self, part: &Self) {
        self.entries = self.entries.saturating_add(part.entries);
        self.subdirectories = self.subdirectories.saturating_add(part.subdirectories);
        add(&mut self.sum, &part.sum);
        if let (Some(remainder), Some(part)) = (&mut self.remainder, &part.remainder) {
            remainder.entries = remainder.entries.saturating_add(part.entries);
            add(&mut remainder.sum, &part.sum);
        }
    }

    /// Begins a new epoch: new entries are filed under another key.
    pub(super) fn begin_epoch(&mut self) {
        self.remainder = Some(Remainder {
            epoch: self.epoch,
            entries: self.entries,
            sum: self.sum,
        });
        self.epoch = self.epoch.wrapping_add(1);
    }
}

/// Numbers of the forms in records. A directory whose entries are being moved has a form of its
/// own, so that the others keep their bytes.
const FILE: u32 = 0;
const DIRECTORY: u32 = 1;
const SYMLINK: u32 = 2;
const SPECIAL: u32 = 3;
const DIRECTORY_UNDER_WAY: u32 = 4;

impl Encode for NodeBody {
    fn encode<E: Encoder>(&self, to: &mut E) -> Result<(), EncodeError> {
        match self {
            NodeBody::File(file) => (FILE, file).encode(to),
            NodeBody::Directory(directory) => {
                let number = match directory.remainder {
                    None => DIRECTORY,
                    Some(_) => DIRECTORY_UNDER_WAY,
                };
                (number, directory.parent, directory.tag).encode(to)?;
                (directory.entries, directory.subdirectories).encode(to)?;
                (directory.sum, directory.epoch).encode(to)?;
                match &directory.remainder {
                    None => Ok(()),
                    Some(remainder) => remainder.encode(to),
                }
            }
            NodeBody::Symlink(target) => (SYMLINK, target).encode(to),
            NodeBody::Special(device) => (SPECIAL, device).encode(to),
        }
    }
}

impl<Context> Decode<Context> for NodeBody {
    fn decode<D: Decoder<Context = Context>>(from: &mut D) -> Result<Self, DecodeError> {
        Ok(match u32::decode(from)? {
            FILE => NodeBody::File(FileBody::decode(from)?),
            number @ (DIRECTORY | DIRECTORY_UNDER_WAY) => NodeBody::Directory(DirectoryBody {
                parent: NodeId::decode(from)?,
                tag: NameTag::decode(from)?,
                entries: u64::decode(from)?,
                subdirectories: u32::decode(from)?,
                sum: <[u8; 32]>::decode(from)?,
                epoch: u32::decode(from)?,
                remainder: match number {
                    DIRECTORY => None,
                    _ => Some(Remainder::decode(from)?),
                },
            }),
            SYMLINK => NodeBody::Symlink(Vec::decode(from)?),
            SPECIAL => NodeBody::Special(u32::decode(from)?),
            _ => return Err(DecodeError::Other("no body has this number")),
        })
    }
}

bincode::impl_borrow_decode!(NodeBody);
