//! Replacing the system node's key. The state and all sums over the vault stand under it: it has both
//! keys while all records are counted once more, under both, beside those who write. The count is that
//! by which a rotation is verified.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::keyring::{Change, ChangeKind};

use super::super::VaultError;
use super::super::commit::transact::Transactions;
use super::super::node::Node;
use super::super::renewing::Step;
use super::super::state::State;

/// See the module.
pub(super) struct Renewal {
    transactions: Arc<Transactions>,
    /// The generation under which this process has replaced the system node's key last.
    renewed: AtomicU64,
}

impl Renewal {
    pub(super) fn new(transactions: Arc<Transactions>) -> Self {
        Self {
            transactions,
            renewed: AtomicU64::new(0),
        }
    }

    /// Gives the system node another key, beside the one that it has, unless it was given one in the
    /// course of this change. The state is sealed with that from now on.
    pub(super) fn begin(&self, change: &Change) -> Result<(), VaultError> {
        self.transactions
            .change_system(|renewing, node| match node.previous {
                Some(_) if renewing.state.renewed_upto().is_some() => renewing.begin_again(),
                Some(_) => Ok(Step::None(())),
                None if self.is_renewed(change, &node) => Ok(Step::None(())),
                None => renewing.begin(node),
            })
    }

    /// Goes on with sums under the new key, over what `counted` has found and what was written since,
    /// and drops the key before. False when that is not known: then all has to be counted again. With
    /// `despite`, what did not fit goes on not to fit.
    pub(super) fn end(
        &self,
        change: &Change,
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

    /// Whether the system node's key is one of this change. That its key is wrapped by the new master
    /// key does not tell: there were programs whose `rotate` wrapped it anew, and no more. Who did not
    /// see it being replaced replaces it.
    fn is_renewed(&self, change: &Change, node: &Node) -> bool {
        let seen = self.renewed.load(Ordering::Relaxed) == change.to;
        node.is_under(change.to) && (seen || change.kind == ChangeKind::Reencrypt)
    }
}
