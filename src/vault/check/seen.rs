//! Facts about a node that a check compares with other records.

use crate::store::{NameTag, NodeId};

use super::super::node::{Kind, Node, NodeBody};

/// Facts about a node that must match other records.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) kind: Option<Kind>,
    pub(super) links: u32,
    /// Number of names found; and the place where a directory was found.
    pub(super) found: u32,
    pub(super) found_at: Option<(NodeId, NameTag)>,
    pub(super) said_at: Option<(NodeId, NameTag)>,
    pub(super) version: u64,
    pub(super) size: u64,
    pub(super) version_found: bool,
    pub(super) older_versions: bool,
    /// A version after the current one was begun, and is incomplete.
    pub(super) begun: bool,
    pub(super) chunks: u64,
    pub(super) is_orphan: bool,
}

impl Seen {
    /// The facts that the record of a node states.
    pub(super) fn of(node: &Node) -> Self {
        let mut seen = Self {
            kind: Some(node.kind),
            links: node.attributes.links,
            ..Self::default()
        };
        match &node.attributes.body {
            NodeBody::File(file) => (seen.version, seen.size) = (file.version, file.size),
            NodeBody::Directory(directory) => {
                seen.said_at = Some((directory.parent, directory.tag))
            }
            NodeBody::Symlink(_) | NodeBody::Special(_) => {}
        }
        seen
    }
}
