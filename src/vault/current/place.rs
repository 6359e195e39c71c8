//! Places of records, and doubts about records.

use crate::store::{NameTag, NodeId, StoreError, StoreErrorKind};

use super::super::keys::RecordId;

/// A record's place in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::vault) enum Place {
    Node(NodeId),
    Version(NodeId, u64),
    Entry(NodeId, NameTag),
}

impl From<RecordId> for Place {
    fn from(key: RecordId) -> Self {
        match key {
            RecordId::Node(node) => Place::Node(node),
            RecordId::Version(node, version) => Place::Version(node, version),
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::Node(node) => write!(f, "node {node}"),
            Place::Version(node, version) => write!(f, "version {version} of node {node}"),
            Place::Entry(directory, _) => write!(f, "an entry of directory {directory}"),
        }
    }
}

/// The key of a node or a version; the error is the directory and tag of an entry.
pub(super) fn key_of(place: &Place) -> Result<RecordId, (NodeId, NameTag)> {
    match *place {
        Place::Node(node) => Ok(RecordId::Node(node)),
        Place::Version(node, version) => Ok(RecordId::Version(node, version)),
        Place::Entry(directory, tag) => Err((directory, tag)),
    }
}

/// A record is not as it should be, as far as one transaction can tell.
#[derive(Clone, Debug)]
pub(in crate::vault) struct Doubt {
    place: Place,
    why: &'static str,
}

impl Doubt {
    pub(super) fn new(place: &Place, why: &'static str) -> Self {
        Self { place: *place, why }
    }
}

impl std::fmt::Display for Doubt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.place, self.why)
    }
}

impl From<&Doubt> for StoreError {
    fn from(doubt: &Doubt) -> Self {
        StoreError::new(StoreErrorKind::Corrupt, doubt)
    }
}
