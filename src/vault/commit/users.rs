//! Whether several users have waited for the disk recently.

use std::time::{Duration, Instant};

use super::ticket::Whose;

/// A user who has not waited for the disk for this long does not count.
const ABOUT: Duration = Duration::from_secs(2);

/// The users who have waited for the disk recently.
#[derive(Default)]
pub(super) struct Users {
    last: Whose,
    /// When the user last changed.
    changed: Option<Instant>,
}

impl Users {
    pub(super) fn note(&mut self, whose: Whose, now: Instant) {
        if std::mem::replace(&mut self.last, whose) != whose {
            self.changed = Some(now);
        }
    }

    pub(super) fn are_several(&self, now: Instant) -> bool {
        let changed = self.changed;
        changed.is_some_and(|changed| now.saturating_duration_since(changed) < ABOUT)
    }
}
