//! Replaces the system node's key, under which the state and all sums of the vault are. The node
//! has both keys while all records are counted again, under both, beside writers. The same count
//! verifies the rotation.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::keyring::{Rotation, RotationKind};

use super::super::VaultError;
use super::super::commit::transact::Transactions;
use super::super::node::Node;
use super::super::renewing::Step;
use super::super::state::State;

/// Renews the system node's key, as the module describes.
pub(super) struct Renewal {
    transactions: Arc<Transactions>,
    /// The generation under which this process last replaced the system node's key.
    renewed: AtomicU64,
}

impl Renewal {
    pub(super) fn new(transactions: Arc<Transactions>) -> Self {
        Self {
            transactions,
            renewed: AtomicU64::new(0),
        }
    }

    /// Adds a new key to the system node beside the present one, unless this rotation has already
    /// done so. From now on the state is sealed under the new key.
    pub(super) fn begin(&self, change: &Rotation) -> Result<(), VaultError> {
        self.transactions
            .change_system(|renewing, node| match node.previous {
                Some(_) if renewing.state.renewed_upto().is_some() => renewing.begin_again(),
                Some(_) => Ok(Step::None(())),
                None if self.is_renewed(change, &node) => Ok(Step::None(())),
                None => renewing.begin(node),
            })
    }

    /// Continues with sums under the new key, over the records that `counted` found and the writes
    /// since, and drops the previous key. False if those writes are unknown: then all records must
    /// be counted again. With `despite`, records that did not match still do not match.
    pub(super) fn end(
        &self,
        change: &Rotation,
        counted: &State,
        despite: bool,
    ) -> Result<bool, VaultError> {
        let done = self
            .transactions
            .change_system(|renewing, node| match node.previous {
                None => Ok(Step::None(true)),
                Some(_) => renewing.end(node, counted, despite),
            })?;
        if done {
            self.renewed.store(change.to, Ordering::Relaxed);
        }
        Ok(done)
    }

    /// Whether this rotation has replaced the system node's key. A wrap under the new master key
    /// does not show that, since earlier programs only re-wrapped the key in a `rotate`. A process
    /// that did not see the replacement replaces it.
    fn is_renewed(&self, change: &Rotation, node: &Node) -> bool {
        let seen = self.renewed.load(Ordering::Relaxed) == change.to;
        node.is_under(change.to) && (seen || change.kind == RotationKind::Reencrypt)
    }
}
