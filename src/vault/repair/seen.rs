//! A repair's facts about a node.

use crate::store::{NameTag, NodeId};

use super::super::node::Kind;

/// A node that opens, and its records.
pub(super) struct Seen {
    pub(super) kind: Kind,
    pub(super) links: u32,
    pub(super) found: u32,
    /// For a directory: the place that its record states, and the place where it was found.
    pub(super) said_at: Option<(NodeId, NameTag)>,
    pub(super) found_at: Option<(NodeId, NameTag)>,
    pub(super) version: u64,
    pub(super) size: u64,
    /// Its content is complete.
    pub(super) whole: bool,
    /// It has other versions.
    pub(super) left_overs: bool,
    pub(super) is_orphan: bool,
}
