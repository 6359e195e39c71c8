//! Refusals in the log. The first refusal of a user is logged at once, then one line a minute with
//! the number of those left out, so that a refused user cannot fill the log.

use std::time::Instant;

use crate::fs::LogLimiter;

/// Most users with a count of their own; the others share one.
const USERS: usize = 64;

/// Refusals of one kind.
pub(crate) struct Refusals(LogLimiter<u32>);

impl Default for Refusals {
    fn default() -> Self {
        Self(LogLimiter::new(USERS))
    }
}

impl Refusals {
    /// Logs a refusal, or only counts it.
    pub(crate) fn log(&self, user: u32, said: impl FnOnce() -> String) {
        match self.note(user, Instant::now()) {
            None => {}
            Some(0) => tracing::warn!("{}", said()),
            Some(left_out) => tracing::warn!("{}; {}", said(), before(left_out)),
        }
    }

    /// Counts a refusal. When it is due for the log, returns the number left out since the last
    /// line.
    fn note(&self, user: u32, now: Instant) -> Option<u64> {
        self.0.note(user, now).map(|due| due.left_out)
    }

    /// Logs the remaining counts at the end; `what` names what was refused.
    pub(crate) fn end(&self, what: &str) {
        for (user, left_out) in self.0.take() {
            let whose =
                user.map_or_else(|| "other users".to_owned(), |user| format!("user {user}"));
            if left_out > 0 {
                tracing::warn!("{what}: {whose}; {}", before(left_out));
            }
        }
    }
}

fn before(left_out: u64) -> String {
    format!("{left_out} more like that were not logged")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::fs::EVERY;

    #[test]
    fn the_first_of_a_user_is_logged_and_then_one_a_minute_with_the_number_of_those_left_out() {
        let refusals = Refusals::default();
        let begun = Instant::now();
        assert_eq!(refusals.note(7, begun), Some(0));
        for second in 0..60 {
            let now = begun + Duration::from_secs(second);
            assert_eq!(refusals.note(7, now), None);
        }
        // Another user's refusals are unaffected.
        assert_eq!(refusals.note(8, begun), Some(0));
        assert_eq!(refusals.note(7, begun + EVERY), Some(60));
        assert_eq!(refusals.note(7, begun + EVERY), None);
        assert_eq!(refusals.note(7, begun + 2 * EVERY), Some(1));
    }

    #[test]
    fn who_has_many_users_fills_neither_the_log_nor_the_memory() {
        let refusals = Refusals::default();
        let begun = Instant::now();
        let logged = |from: u32, now| {
            let users = from..from + 10_000;
            users.filter_map(|user| refusals.note(user, now)).count()
        };
        assert_eq!(logged(0, begun), USERS + 1);
        assert!(refusals.0.len() <= USERS + 1);
        // Earlier users make room, even those with refusals left out.
        assert_eq!(logged(0, begun), 0);
        assert!(logged(20_000, begun + EVERY) >= USERS - 1);
        assert!(refusals.0.len() <= USERS + 1);
    }
}
