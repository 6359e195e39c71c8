//! A directory entry in the form of readdir.

use crate::vault::Kind;

/// A directory entry in the form of readdir.
#[derive(Clone, Debug)]
pub struct DirectoryEntry {
    /// The node's number.
    pub ino: u64,
    /// The node's kind.
    pub kind: Kind,
    /// The name.
    pub name: Vec<u8>,
    /// The position after it.
    pub position: u64,
}
