//! Places of records, and doubts about records.

use crate::store::{NameTag, NodeId, RecordId, StoreError, StoreErrorKind};

use super::super::keys::KeyedId;

/// The place of a record that has a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::vault) enum Place {
    Node(NodeId),
    Version(NodeId, u64),
    Entry(NodeId, NameTag),
}

impl Place {
    /// The place of the record with this id; `None` if such records have no mark.
    pub(super) fn of(id: RecordId) -> Option<Self> {
        match id {
            RecordId::Node(node) => Some(Self::Node(node)),
            RecordId::Version(node, version) => Some(Self::Version(node, version)),
            RecordId::Entry(directory, tag) => Some(Self::Entry(directory, tag)),
            RecordId::Header
            | RecordId::Keyring
            | RecordId::State
            | RecordId::Orphan(_)
            | RecordId::Event(_) => None,
        }
    }
}

impl From<KeyedId> for Place {
    fn from(key: KeyedId) -> Self {
        match key {
            KeyedId::Node(node) => Place::Node(node),
            KeyedId::Version(node, version) => Place::Version(node, version),
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
pub(super) fn key_of(place: &Place) -> Result<KeyedId, (NodeId, NameTag)> {
    match *place {
        Place::Node(node) => Ok(KeyedId::Node(node)),
        Place::Version(node, version) => Ok(KeyedId::Version(node, version)),
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
