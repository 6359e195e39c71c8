//! Moves a directory's names from one key to another, a few in each transaction, however many there
//! are.

use std::ops::ControlFlow;
use std::time::Instant;

use crate::store::Durability;

use super::super::commit::transact::Transactions;
use super::super::keys::KeyedId;
use super::super::tx::Tx;
use super::super::tx::directory::{self, Migrated};
use super::super::{Failure, VaultError};
use super::damage::Damage;
use super::search::slice;

/// Finishes a directory that was begun. `damage` names it if it keeps its previous key.
pub(super) fn move_names(
    transactions: &Transactions,
    key: KeyedId,
    begun: Migrated,
    damage: &mut Damage,
    go_on: &dyn Fn() -> ControlFlow<()>,
) -> Result<ControlFlow<()>, VaultError> {
    let mut migrated = begun;
    loop {
        let (after, trouble, node) = match (migrated, key) {
            (Migrated::Stuck(error), _) => {
                tracing::error!("names of {key} cannot be moved: {error}");
                damage.leave(key, error);
                return Ok(ControlFlow::Continue(()));
            }
            (Migrated::LeftBehind, _) => {
                let what = format!("entries of {key}");
                let error = VaultError::tampered(&what, "are not what was stored");
                damage.note(&what, error);
                return Ok(ControlFlow::Continue(()));
            }
            (Migrated::GoOn(after, trouble), KeyedId::Node(node)) => (after, trouble, node),
            (Migrated::Done | Migrated::GoOn(..), _) => return Ok(ControlFlow::Continue(())),
        };
        if go_on().is_break() {
            return Ok(ControlFlow::Break(()));
        }
        let (mut moved, despite) = (Migrated::Done, damage.despite);
        let mut job = |tx: &mut Tx<'_>| {
            die_at!("names-within");
            let from = (Some(&after), trouble.clone());
            moved = directory::move_names(tx, node, from, despite, Instant::now() + slice())?;
            Ok(())
        };
        die_at!("names-before");
        let outcomes = transactions.transact(Durability::Soon, &mut [&mut job])?;
        die_at!("names-after");
        for outcome in outcomes {
            match outcome {
                Err(error) if error.failure() == Failure::Integrity => {
                    moved = Migrated::Stuck(error);
                }
                Err(error) => {
                    damage.passing.get_or_insert(error);
                    moved = Migrated::Done;
                }
                Ok(()) => {}
            }
        }
        migrated = moved;
    }
}
