//! What a repair knows of a node.

use crate::store::{NameTag, NodeId};

use super::super::node::Kind;

/// A node that opens, and what was found of it.
pub(super) struct Seen {
    pub(super) kind: Kind,
    pub(super) links: u32,
    pub(super) found: u32,
    /// Of a directory: where it says it is, and where it was found.
    pub(super) said_at: Option<(NodeId, NameTag)>,
    pub(super) found_at: Option<(NodeId, NameTag)>,
    pub(super) version: u64,
    pub(super) size: u64,
    /// Its content is as it says.
    pub(super) whole: bool,
    /// It has versions besides that one.
    pub(super) left_overs: bool,
    pub(super) is_orphan: bool,
}
