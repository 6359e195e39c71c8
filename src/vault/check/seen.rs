//! Facts about a node that a check compares with other records.

use crate::store::{NameTag, NodeId};

use super::super::node::{Kind, Node, NodeBody, ROOT};

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

    /// What does not fit together in these facts of node `id`: nothing, if its record does not open.
    pub(super) fn problems(&self, id: NodeId) -> Vec<String> {
        let Some(kind) = self.kind else {
            return Vec::new();
        };
        let mut problems = Vec::new();
        // The root has a link, and no name.
        let (names, most) = match id {
            ROOT => (self.links.saturating_sub(1), 0),
            _ => (self.links, 1),
        };
        if names != self.found {
            let found = self.found;
            problems.push(format!("should have {names} names and has {found}"));
        }
        if kind == Kind::Directory && names > most {
            problems.push(format!(
                "is a directory, and says that it has {names} names"
            ));
        }
        // Of several places, which was found last is chance.
        let is_named = id != ROOT && names == 1 && self.found < 2;
        if kind == Kind::Directory && is_named && self.said_at != self.found_at {
            problems.push("is a directory in another place than it says".into());
        }
        if self.version > 0 && !self.version_found {
            let version = self.version;
            problems.push(format!("has lost version {version}, its content"));
        }
        if self.version == 0 && self.size > 0 {
            let size = self.size;
            problems.push(format!("has no content, and says that it has {size} bytes"));
        }
        let left_overs = self.older_versions || self.begun || (self.links == 0 && id != ROOT);
        if left_overs && !self.is_orphan {
            problems.push("has left-overs that nobody is going to reap".into());
        }
        problems
    }
}
