//! Who waits for the disk these days.

use std::time::{Duration, Instant};

use super::ticket::Whose;

/// A user who has not waited for the disk for so long is not about.
const ABOUT: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Default)]
pub(super) struct Users {
    last: Whose,
    /// When another than the one before came last.
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
