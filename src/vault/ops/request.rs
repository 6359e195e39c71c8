//! Requests to a file tree, and the facts that they need.

use crate::store::NodeId;

use super::super::node::{Kind, Timestamp};

/// A node to create.
#[derive(Clone, Debug)]
pub struct NewNode {
    /// Its kind.
    pub kind: Kind,
    /// Permission bits, set-id bits and sticky bit.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group, unless the directory's group is inherited.
    pub gid: u32,
    /// Device number of a device.
    pub device: u32,
    /// Target of a symbolic link.
    pub target: Vec<u8>,
}

/// The treatment of a taken name by a rename.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameMode {
    /// Replace it.
    Replace,
    /// Return an error.
    NoReplace,
    /// Exchange the two.
    Exchange,
}

/// Attributes to change; `None` leaves them.
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

/// The way in which a content replaces the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Publication {
    /// As a whole: readers of the earlier content keep it.
    Replacement,
    /// By edits: readers follow to the new content.
    InPlace,
}

/// Facts about open handles at this moment, for a job.
pub trait OpenFiles {
    /// Whether the node has an open handle. If not, it gets none until the transaction ends.
    fn is_open_or_dying(&self, node: NodeId) -> bool;
}

/// No open handles, for commands on a vault that is not mounted.
#[derive(Clone, Copy, Debug)]
pub struct NothingOpen;

impl OpenFiles for NothingOpen {
    fn is_open_or_dying(&self, _node: NodeId) -> bool {
        false
    }
}
