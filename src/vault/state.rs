//! The vault-wide state record: a sealed commitment to the set of all node and version records,
//! made anew by every write transaction, so that replaying, inserting or deleting part of a vault
//! shows.

use bincode::{Decode, Encode};

use crate::codec;
use crate::crypto::padding::padded_attributes;
use crate::crypto::schedule::{Context, SetKey, StateKey, VaultId};
use crate::crypto::{OpenFailure, SecretBytes, SetSum};
use crate::store::{KeyedRecord, NodeId};

use super::node::Node;
use super::{Key, VaultError};

/// What the state record says.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct State {
    /// Number of write transactions so far.
    pub commit: u64,
    /// Sequence of the keyring that belongs to it.
    pub keyring: u64,
    /// The next node id to be given out.
    pub next_node: NodeId,
    /// Number of node records.
    pub nodes: u64,
    /// Number of version records.
    pub versions: u64,
    sum: [u8; 32],
}

impl State {
    /// The state of a vault with nothing in it.
    pub(super) fn empty(next_node: NodeId) -> Self {
        Self {
            commit: 0,
            keyring: 1,
            next_node,
            nodes: 0,
            versions: 0,
            sum: [0; 32],
        }
    }

    /// The same commits and numbers, with nothing counted.
    pub(super) fn uncounted(&self) -> Self {
        Self {
            nodes: 0,
            versions: 0,
            sum: [0; 32],
            ..self.clone()
        }
    }

    fn change(&mut self, change: impl FnOnce(&mut SetSum)) {
        let mut sum = SetSum(self.sum);
        change(&mut sum);
        self.sum = sum.0;
    }

    /// Takes up or drops a record.
    pub(super) fn count(&mut self, element: &Element, present: bool) {
        let counter = if element.is_version {
            &mut self.versions
        } else {
            &mut self.nodes
        };
        *counter = if present {
            counter.saturating_add(1)
        } else {
            counter.saturating_sub(1)
        };
        self.change(|sum| {
            if present {
                sum.add(&element.hash)
            } else {
                sum.remove(&element.hash)
            }
        });
    }

    /// Takes over what does not fit: between what was said and what was found.
    pub(super) fn carry(&mut self, said: &State, found: &State) {
        let over = |to: u64, said: u64, found: u64| to.saturating_add(said).saturating_sub(found);
        self.nodes = over(self.nodes, said.nodes, found.nodes);
        self.versions = over(self.versions, said.versions, found.versions);
        self.change(|sum| {
            sum.add(&said.sum);
            sum.remove(&found.sum);
        });
    }

    /// Compares with a recount.
    ///
    /// # Errors
    /// `Integrity` when that came to something else.
    pub(super) fn must_agree_with(&self, recount: &State) -> Result<(), VaultError> {
        if self.agrees_with(recount) {
            return Ok(());
        }
        Err(VaultError::Integrity(format!(
            "nodes or versions were replayed, inserted or deleted: the vault's state record \
             counts {} nodes and {} versions, found are {} and {}, and their sums differ; \
             `secretfs check` names what does not fit, `secretfs check --repair` moves it aside",
            self.nodes, self.versions, recount.nodes, recount.versions,
        )))
    }

    /// Whether a recount came to the same.
    pub(super) fn agrees_with(&self, recount: &State) -> bool {
        self.nodes == recount.nodes && self.versions == recount.versions && self.sum == recount.sum
    }
}

/// A record's part in the sum.
pub(super) struct Element {
    hash: [u8; 32],
    is_version: bool,
}

/// The system node's keys.
pub(super) struct SystemKeys {
    /// Generation of the record that they are from.
    pub(super) generation: u64,
    state: StateKey,
    set: SetKey,
}

impl SystemKeys {
    pub(super) fn of(system: &Node) -> Self {
        Self {
            generation: system.generation,
            state: StateKey::derive(&system.key),
            set: SetKey::derive(&system.key),
        }
    }

    /// A record's part in the sum.
    pub(super) fn element(&self, key: Key, record: &KeyedRecord) -> Element {
        match key {
            Key::Node(id) => self.node(id, record),
            Key::Version(node, version) => self.version(node, version, record),
        }
    }

    pub(super) fn node(&self, id: NodeId, record: &KeyedRecord) -> Element {
        let hash = self.set.node(id, record.generation, &record.value);
        Element {
            hash,
            is_version: false,
        }
    }

    pub(super) fn version(&self, node: NodeId, version: u64, record: &KeyedRecord) -> Element {
        let hash = self
            .set
            .version(node, version, record.generation, &record.value);
        Element {
            hash,
            is_version: true,
        }
    }

    pub(super) fn seal(&self, vault: VaultId, state: &State) -> Result<Vec<u8>, VaultError> {
        let encoded = codec::encode(state);
        let mut plain = SecretBytes::zeroed(padded_attributes(encoded.len()))?;
        plain[..encoded.len()].copy_from_slice(&encoded);
        Ok(self.state.seal(vault, Context::State, &plain)?)
    }

    pub(super) fn open(&self, vault: VaultId, sealed: &[u8]) -> Result<State, VaultError> {
        let bad = |why| VaultError::tampered("the state record", why);
        let plain =
            self.state
                .open(vault, Context::State, sealed)
                .map_err(|error| match error {
                    OpenFailure::Open(_) => bad("does not authenticate"),
                    OpenFailure::Memory(error) => error.into(),
                })?;
        let (state, _) =
            codec::decode_prefix(&plain, "state").map_err(|_| bad("is not encoded as one"))?;
        Ok(state)
    }
}
