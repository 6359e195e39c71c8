//! What can be asked of a file tree, and what must be known for it.

use crate::store::NodeId;

use super::super::node::{Kind, Timestamp};

/// A node to be made.
#[derive(Clone, Debug)]
pub struct NewNode {
    /// What.
    pub kind: Kind,
    /// Permission bits, set-id bits and sticky bit.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group, unless the directory passes on its own.
    pub gid: u32,
    /// Device number of a device.
    pub device: u32,
    /// Target of a symbolic link.
    pub target: Vec<u8>,
}

/// How a rename treats a name that is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameMode {
    /// It is replaced.
    Replace,
    /// It is an error.
    NoReplace,
    /// The two are exchanged.
    Exchange,
}

/// Attributes to be changed; `None` leaves them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttributeChange {
    /// Permission bits, set-id bits and sticky bit.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Last access.
    pub accessed: Option<Timestamp>,
    /// Last change of the content.
    pub modified: Option<Timestamp>,
}

/// How a content takes the place of the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Publication {
    /// As a whole: readers of the one before keep it.
    Replacement,
    /// By edits: readers follow.
    InPlace,
}

/// What a job needs to know about open handles, as of now.
pub trait OpenFiles {
    /// Whether the node has an open handle. If not, it cannot get one any more until the
    /// transaction is over.
    fn is_open_or_dying(&self, node: NodeId) -> bool;
}

/// Nobody has anything open: commands on a vault that is not mounted.
#[derive(Clone, Copy, Debug)]
pub struct NothingOpen;

impl OpenFiles for NothingOpen {
    fn is_open_or_dying(&self, _node: NodeId) -> bool {
        false
    }
}
