//! Writing what was found to be wrong into the history.

use crate::keyring::{Event, EventKind};

use super::VaultError;
use super::commit::transact::Transactions;
use super::counting::Counter;
use super::integrity::Guard;
use super::node::Timestamp;

/// An event that is recorded this many seconds after what it tells of is marked as late.
const LATE: i64 = 10;

/// Writes into the history what was found since the last time. A vault opened for reading has
/// none to write to; one that is condemned has when it is as it should be again, by a count.
///
/// # Errors
/// When it cannot be written; it is tried again the next time.
pub(super) fn record(
    guard: &Guard,
    counter: &Counter,
    transactions: &Transactions,
) -> Result<(), VaultError> {
    if !guard.is_unrecorded() {
        return Ok(());
    }
    if guard.is_condemned() && !counter.is_right_again() {
        return Ok(());
    }
    let found = guard.take_unrecorded();
    let Some(first) = found.listed.first() else {
        return Ok(());
    };
    let now = Timestamp::now().seconds;
    let event = Event {
        at: first.at,
        late: now.saturating_sub(first.at) > LATE,
        kind: EventKind::TamperingFound {
            count: found.count,
            what: found.listed.iter().map(|one| one.what.clone()).collect(),
        },
    };
    let recorded = transactions
        .change_keyring_all_the_same(|keyring| Ok(Some(keyring.record_event(&event))), |_| Ok(()));
    if recorded.is_err() {
        guard.leave_unrecorded(&found);
    }
    recorded
}
