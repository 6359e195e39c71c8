//! A name in a directory, as readdir shows it.

use crate::vault::Kind;

/// A name in a directory, as readdir shows it.
#[derive(Clone, Debug)]
pub struct DirectoryEntry {
    /// The node.
    pub ino: u64,
    /// What it is.
    pub kind: Kind,
    /// The name.
    pub name: Vec<u8>,
    /// Where to go on after it.
    pub position: u64,
}
