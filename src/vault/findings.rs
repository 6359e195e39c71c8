//! Recording findings in the key-management history.

use crate::keyring::{Event, EventKind};

use super::VaultError;
use super::commit::transact::Transactions;
use super::counting::Counter;
use super::integrity::Guard;
use super::node::Timestamp;

/// An event recorded this many seconds after it happened is marked as late.
const LATE: i64 = 10;

/// Records new findings in the history. A vault opened for reading cannot; a condemned vault can
/// once a count shows that it is right again.
///
/// # Errors
/// When the history cannot be written; the next call tries again.
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
