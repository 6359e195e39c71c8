//! The vault-wide state record: a sealed commitment to the set of all node and version records,
//! made anew by every write transaction, so that replaying, inserting or deleting part of a vault
//! shows.

use bincode::de::Decoder;
use bincode::enc::Encoder;
use bincode::error::{DecodeError, EncodeError};
use bincode::{Decode, Encode};

use crate::codec;
use crate::crypto::padding::padded_attributes;
use crate::crypto::schedule::{Context, RecordDigest, RecordHash, SetKey, StateKey, VaultId};
use crate::crypto::{OpenFailure, SecretBytes, SetSum};
use crate::store::{KeyedRecord, NodeId};

use super::VaultError;
use super::keys::Key;
use super::node::Node;

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
    /// While the sum is made anew under another key: how far that has come. None takes one byte, zero,
    /// as the padding that follows it.
    renewal: Option<Renewal>,
    counting: Counting,
}

/// What was taken up and dropped under both keys since all records began to be counted once more. It
/// is not stored: who comes after a crash counts again, from the beginning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Counting(Option<Renewal>);

impl Encode for Counting {
    fn encode<E: Encoder>(&self, _encoder: &mut E) -> Result<(), EncodeError> {
        Ok(())
    }
}

impl<C> Decode<C> for Counting {
    fn decode<D: Decoder<Context = C>>(_decoder: &mut D) -> Result<Self, DecodeError> {
        Ok(Self::default())
    }
}

bincode::impl_borrow_decode!(Counting);

/// What was counted once more, record after record, to go on with under another key. Every
/// transaction keeps it true for the records up to where it has come. What is stored of it says that
/// none was counted yet; earlier programs stored how far they had come.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
struct Renewal {
    /// The last record that was counted.
    upto: Option<Key>,
    nodes: u64,
    versions: u64,
    /// Sum over these records as before: at the end it must have become that of the state.
    found: [u8; 32],
    /// Sum over them under the new key.
    sum: [u8; 32],
}

impl Renewal {
    fn begun_at(upto: Option<Key>) -> Self {
        Self {
            upto,
            nodes: 0,
            versions: 0,
            found: [0; 32],
            sum: [0; 32],
        }
    }

    fn count(&mut self, element: &Element, present: bool) {
        let number = match element.key {
            Key::Node(_) => &mut self.nodes,
            Key::Version(..) => &mut self.versions,
        };
        // Of what was changed since something, more may have gone than come.
        *number = match present {
            true => number.wrapping_add(1),
            false => number.wrapping_sub(1),
        };
        change_sum(&mut self.found, &element.hash, present);
        if let Some(hash) = &element.renewed {
            change_sum(&mut self.sum, hash, present);
        }
    }

    /// Takes up what was counted of other records.
    fn add(&mut self, part: &Self) {
        self.nodes = self.nodes.wrapping_add(part.nodes);
        self.versions = self.versions.wrapping_add(part.versions);
        change_sum(&mut self.found, &part.found, true);
        change_sum(&mut self.sum, &part.sum, true);
    }
}

fn change_number(nodes: &mut u64, versions: &mut u64, key: Key, present: bool) {
    let counter = match key {
        Key::Node(_) => nodes,
        Key::Version(..) => versions,
    };
    *counter = match present {
        true => counter.saturating_add(1),
        false => counter.saturating_sub(1),
    };
}

fn change_sum(sum: &mut [u8; 32], hash: &[u8; 32], present: bool) {
    let mut changed = SetSum(*sum);
    match present {
        true => changed.add(hash),
        false => changed.remove(hash),
    }
    *sum = changed.0;
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
            renewal: None,
            counting: Counting::default(),
        }
    }

    /// The same commits and numbers, with nothing counted.
    pub(super) fn uncounted(&self) -> Self {
        let renewal = self.renewal.as_ref();
        Self {
            nodes: 0,
            versions: 0,
            sum: [0; 32],
            renewal: renewal.map(|renewal| Renewal::begun_at(renewal.upto)),
            counting: Counting::default(),
            ..self.clone()
        }
    }

    /// Takes up or drops a record.
    pub(super) fn count(&mut self, element: &Element, present: bool) {
        change_number(&mut self.nodes, &mut self.versions, element.key, present);
        change_sum(&mut self.sum, &element.hash, present);
        if let Some(renewal) = &mut self.renewal
            && Some(element.key) <= renewal.upto
        {
            renewal.count(element, present);
        }
        if let Some(counting) = &mut self.counting.0 {
            counting.count(element, present);
        }
    }

    /// From now on the sum is made anew.
    pub(super) fn begin_renewal(&mut self) {
        self.renewal = Some(Renewal::begun_at(None));
        self.counting = Counting::default();
    }

    /// From now on what is taken up and dropped is counted under both keys.
    pub(super) fn begin_counting(&mut self) {
        self.counting = Counting(Some(Renewal::begun_at(None)));
    }

    /// Where that has come to.
    pub(super) fn renewed_upto(&self) -> Option<Key> {
        self.renewal.as_ref().and_then(|renewal| renewal.upto)
    }

    /// Whether it is. It is not any more when the state was read again.
    pub(super) fn is_counting(&self) -> bool {
        self.counting.0.is_some()
    }

    /// Goes on with the sum under the new key: over what `counted` has found, and what was changed
    /// since, which must be known. With `despite`, what did not fit goes on not to fit: the new sum
    /// must not make good what somebody has removed or put back.
    ///
    /// # Errors
    /// `Integrity` when there are other records than there should be.
    pub(super) fn end_renewal(&mut self, counted: &State, despite: bool) -> Result<(), VaultError> {
        let mut all = Renewal::begun_at(None);
        for part in [&counted.counting.0, &self.counting.0] {
            let lost = || VaultError::Integrity("the vault was not counted".into());
            all.add(part.as_ref().ok_or_else(lost)?);
        }
        let found = Self {
            nodes: all.nodes,
            versions: all.versions,
            sum: all.found,
            ..self.clone()
        };
        if !despite {
            self.must_agree_with(&found)?;
        }
        change_sum(&mut self.sum, &all.found, false);
        change_sum(&mut self.sum, &all.sum, true);
        (self.renewal, self.counting) = (None, Counting::default());
        Ok(())
    }

    /// Takes up what was counted elsewhere, beginning with the same that was uncounted.
    pub(super) fn add(&mut self, part: &State) {
        self.nodes = self.nodes.saturating_add(part.nodes);
        self.versions = self.versions.saturating_add(part.versions);
        change_sum(&mut self.sum, &part.sum, true);
        let parts = [
            (&mut self.renewal, &part.renewal),
            (&mut self.counting.0, &part.counting.0),
        ];
        for (all, part) in parts {
            if let (Some(all), Some(part)) = (all, part) {
                all.add(part);
            }
        }
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
        let counted = |state: &Self| (state.nodes, state.versions, state.sum);
        counted(self) == counted(recount) && self.renewal == recount.renewal
    }
}

/// A record's part in the sum.
pub(super) struct Element {
    key: Key,
    hash: [u8; 32],
    /// The same under the new key, while the sum is made anew.
    renewed: Option<[u8; 32]>,
}

/// Makes elements of records; not to be kept.
pub(super) struct Elements {
    hash: RecordHash,
    renewed: Option<RecordHash>,
}

impl Elements {
    pub(super) fn of(&self, key: Key, record: &KeyedRecord) -> Element {
        let record = RecordDigest::of(record.generation, &record.value);
        let hash = |hash: &RecordHash| match key {
            Key::Node(id) => hash.node(id, &record),
            Key::Version(node, version) => hash.version(node, version, &record),
        };
        Element {
            key,
            hash: hash(&self.hash),
            renewed: self.renewed.as_ref().map(hash),
        }
    }
}

/// The system node's keys.
pub(super) struct SystemKeys {
    /// The record that they are from, by generation and revision.
    pub(super) record: (u64, u64),
    /// Always of the newest key: the state is sealed anew by every transaction.
    state: StateKey,
    set: SetKey,
    /// What the sum is being made anew with.
    renewed: Option<SetKey>,
}

impl SystemKeys {
    pub(super) fn of(system: &Node) -> Self {
        let renewed = || SetKey::derive(&system.key);
        let (set, renewed) = match &system.previous {
            None => (renewed(), None),
            Some(previous) => (SetKey::derive(&previous.key), Some(renewed())),
        };
        Self {
            record: (system.stored_under(), system.revision),
            state: StateKey::derive(&system.key),
            set,
            renewed,
        }
    }

    /// Whether the sum is being made anew.
    pub(super) fn is_renewing(&self) -> bool {
        self.renewed.is_some()
    }

    /// What hashes many records for the sum.
    pub(super) fn elements(&self) -> Elements {
        Elements {
            hash: self.set.ready(),
            renewed: self.renewed.as_ref().map(SetKey::ready),
        }
    }

    /// A record's part in the sum.
    pub(super) fn element(&self, key: Key, record: &KeyedRecord) -> Element {
        self.elements().of(key, record)
    }

    pub(super) fn node(&self, id: NodeId, record: &KeyedRecord) -> Element {
        self.element(Key::Node(id), record)
    }

    pub(super) fn version(&self, node: NodeId, version: u64, record: &KeyedRecord) -> Element {
        self.element(Key::Version(node, version), record)
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
        let (state, _): (State, _) =
            codec::decode_prefix(&plain, "state").map_err(|_| bad("is not encoded as one"))?;
        if state.renewal.is_some() != self.renewed.is_some() {
            return Err(bad("does not fit the system node"));
        }
        Ok(state)
    }
}
