//! A limit on repeated log lines. Each line has a key: the first line of a key is logged at once,
//! then one line a minute, with the number of those left out. Keys beyond a limit count together.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

use crate::sync::{Mutex, Rank};

/// The time between two lines of one key.
pub(crate) const EVERY: Duration = Duration::from_secs(60);

/// The limiter, as the module describes.
pub(crate) struct LogLimiter<K> {
    /// Most keys that count separately.
    most: usize,
    /// `None` for the rest.
    keys: Mutex<HashMap<Option<K>, Logged>>,
}

/// The log lines of one key.
#[derive(Default)]
struct Logged {
    /// The last line in the log; `None` while there is none.
    at: Option<Instant>,
    /// Lines since then that were left out.
    left_out: u64,
}

impl Logged {
    fn is_due(&self, now: Instant) -> bool {
        let age = self.at.map(|at| now.saturating_duration_since(at));
        age.is_none_or(|age| age >= EVERY)
    }
}

/// A line to log now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Due {
    /// Lines before it that were left out.
    pub(crate) left_out: u64,
    /// The line stands for the rest.
    pub(crate) is_of_rest: bool,
}

impl<K: Eq + Hash> LogLimiter<K> {
    /// A limiter that counts `most` keys separately.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            keys: Mutex::new(Rank::LogLimiter, HashMap::new()),
        }
    }

    /// Notes a line of `key`; `None` when the caller must leave it out.
    pub(crate) fn note(&self, key: K, now: Instant) -> Option<Due> {
        let mut keys = self.keys.lock();
        let mut key = Some(key);
        if keys.len() >= self.most && !keys.contains_key(&key) {
            make_room(&mut keys, now);
            if keys.len() >= self.most {
                key = None;
            }
        }
        let is_of_rest = key.is_none();
        let due = |left_out| Due {
            left_out,
            is_of_rest,
        };
        let logged = keys.entry(key).or_default();
        if !logged.is_due(now) {
            logged.left_out += 1;
            return None;
        }
        logged.at = Some(now);
        Some(due(std::mem::take(&mut logged.left_out)))
    }

    /// Forgets all keys, and returns each with the number of its lines left out; `None` stands for
    /// the rest.
    pub(crate) fn take(&self) -> Vec<(Option<K>, u64)> {
        let keys = std::mem::take(&mut *self.keys.lock());
        let left_out = keys.into_iter().map(|(key, one)| (key, one.left_out));
        left_out.collect()
    }

    /// Number of keys.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.keys.lock().len()
    }
}

/// Forgets keys whose next line is due; the lines left out of them count for the rest.
fn make_room<K: Eq + Hash>(keys: &mut HashMap<Option<K>, Logged>, now: Instant) {
    let mut left_out = 0;
    keys.retain(|key, logged| {
        let stays = key.is_none() || !logged.is_due(now);
        left_out += if stays { 0 } else { logged.left_out };
        stays
    });
    if left_out > 0 {
        keys.entry(None).or_default().left_out += left_out;
    }
}
