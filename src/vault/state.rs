//! The vault-wide state record: a sealed commitment to the set of all node and version records.
//! Every write transaction replaces it, so replaying, inserting or deleting part of a vault shows.

use bincode::de::Decoder;
use bincode::enc::Encoder;
use bincode::error::{DecodeError, EncodeError};
use bincode::{Decode, Encode};

use crate::codec;
use crate::crypto::padding::padded_attributes;
use crate::crypto::schedule::{Context, RecordDigest, RecordHash, SetKey, StateKey, VaultId};
use crate::crypto::{SecretBytes, SetSum};
use crate::store::{NodeId, Record};

use super::VaultError;
use super::keys::KeyedId;
use super::node::Node;

/// The contents of the state record.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct State {
    /// Number of write transactions so far.
    pub commit: u64,
    /// Sequence of the keyring that belongs to this state.
    pub keyring: u64,
    /// The next free node id.
    pub next_node: NodeId,
    /// Number of node records.
    pub nodes: u64,
    /// Number of version records.
    pub versions: u64,
    sum: [u8; 32],
    /// The progress of recomputing the sum under a new key. `None` is encoded as one zero byte,
    /// like the padding after it.
    renewal: Option<Renewal>,
    counting: Counting,
}

/// Records added and removed under both keys since the recount of all records began. It is not
/// stored: after a crash the recount starts again.
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

/// A recount, record by record, to continue the sum under a new key. Every transaction keeps it
/// true for the records counted so far. Its stored form says that no record was counted yet;
/// earlier programs stored their progress.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
struct Renewal {
    /// The last record that was counted.
    upto: Option<KeyedId>,
    nodes: u64,
    versions: u64,
    /// Sum over these records under the old key; at the end it must equal the sum of the state.
    found: [u8; 32],
    /// Sum over these records under the new key.
    sum: [u8; 32],
}

impl Renewal {
    fn begun_at(upto: Option<KeyedId>) -> Self {
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
            KeyedId::Node(_) => &mut self.nodes,
            KeyedId::Version(..) => &mut self.versions,
        };
        // Among the changes since the recount began, more records may go than come.
        *number = match present {
            true => number.wrapping_add(1),
            false => number.wrapping_sub(1),
        };
        change_sum(&mut self.found, &element.hash, present);
        if let Some(hash) = &element.renewed {
            change_sum(&mut self.sum, hash, present);
        }
    }

    /// Adds the count of other records.
    fn add(&mut self, part: &Self) {
        self.nodes = self.nodes.wrapping_add(part.nodes);
        self.versions = self.versions.wrapping_add(part.versions);
        change_sum(&mut self.found, &part.found, true);
        change_sum(&mut self.sum, &part.sum, true);
    }
}

fn change_number(nodes: &mut u64, versions: &mut u64, key: KeyedId, present: bool) {
    let counter = match key {
        KeyedId::Node(_) => nodes,
        KeyedId::Version(..) => versions,
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
    /// The state of an empty vault.
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

    /// The same commit and ids, with no records counted.
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

    /// Adds or removes a record.
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

    /// Begins to recompute the sum.
    pub(super) fn begin_renewal(&mut self) {
        self.renewal = Some(Renewal::begun_at(None));
        self.counting = Counting::default();
    }

    /// Begins to count added and removed records under both keys.
    pub(super) fn begin_counting(&mut self) {
        self.counting = Counting(Some(Renewal::begun_at(None)));
    }

    /// The last record that was counted again.
    pub(super) fn renewed_upto(&self) -> Option<KeyedId> {
        self.renewal.as_ref().and_then(|renewal| renewal.upto)
    }

    /// Whether records are counted under both keys. A state that was read again does not.
    pub(super) fn is_counting(&self) -> bool {
        self.counting.0.is_some()
    }

    /// Continues with the sum under the new key: over the records that `counted` found, and the
    /// changes since, which must be known. With `despite`, records that did not match still do not
    /// match: the new sum must not approve records that an attacker has removed or put back.
    ///
    /// # Errors
    /// `Integrity` when the records do not match the sum.
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

    /// Adds the count of another thread that began with the same [`uncounted`](Self::uncounted)
    /// state.
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
    /// `Integrity` when the recount differs.
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

    /// Whether a recount gives the same result.
    pub(super) fn agrees_with(&self, recount: &State) -> bool {
        let counted = |state: &Self| (state.nodes, state.versions, state.sum);
        counted(self) == counted(recount) && self.renewal == recount.renewal
    }
}

/// A record's part in the sum.
pub(super) struct Element {
    key: KeyedId,
    hash: [u8; 32],
    /// The same under the new key, while the sum is recomputed.
    renewed: Option<[u8; 32]>,
}

/// Turns records into elements. Callers drop it soon, since it holds keys.
pub(super) struct Elements {
    hash: RecordHash,
    renewed: Option<RecordHash>,
}

impl Elements {
    pub(super) fn of(&self, key: KeyedId, record: &Record) -> Element {
        let record = RecordDigest::of(record.generation, &record.value);
        let hash = |hash: &RecordHash| match key {
            KeyedId::Node(id) => hash.node(id, &record),
            KeyedId::Version(node, version) => hash.version(node, version, &record),
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
    /// Their record, by generation and revision.
    pub(super) record: (u64, u64),
    /// Always from the newest key, since every transaction seals the state again.
    state: StateKey,
    set: SetKey,
    /// The key under which the sum is being recomputed.
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

    /// Whether the sum is being recomputed.
    pub(super) fn is_renewing(&self) -> bool {
        self.renewed.is_some()
    }

    /// Hashes many records for the sum.
    pub(super) fn elements(&self) -> Elements {
        Elements {
            hash: self.set.ready(),
            renewed: self.renewed.as_ref().map(SetKey::ready),
        }
    }

    /// A record's part in the sum.
    pub(super) fn element(&self, key: KeyedId, record: &Record) -> Element {
        self.elements().of(key, record)
    }

    pub(super) fn node(&self, id: NodeId, record: &Record) -> Element {
        self.element(KeyedId::Node(id), record)
    }

    pub(super) fn version(&self, node: NodeId, version: u64, record: &Record) -> Element {
        self.element(KeyedId::Version(node, version), record)
    }

    pub(super) fn seal(&self, vault: VaultId, state: &State) -> Result<Vec<u8>, VaultError> {
        let encoded = codec::encode(state);
        let mut plain = SecretBytes::zeroed(padded_attributes(encoded.len()))?;
        plain[..encoded.len()].copy_from_slice(&encoded);
        Ok(self.state.seal(vault, Context::State, &plain)?)
    }

    pub(super) fn open(&self, vault: VaultId, sealed: &[u8]) -> Result<State, VaultError> {
        let id = "the state record";
        let bad = |why| VaultError::tampered(id, why);
        let plain = self
            .state
            .open(vault, Context::State, sealed)
            .map_err(|failure| VaultError::unopened(id, failure))?;
        let (state, _): (State, _) =
            codec::decode_prefix(&plain, "state").map_err(|_| bad("is not encoded as one"))?;
        if state.renewal.is_some() != self.renewed.is_some() {
            return Err(bad("does not fit the system node"));
        }
        Ok(state)
    }
}
