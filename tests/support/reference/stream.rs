//! What a directory shows that is read piece by piece.

use std::collections::{BTreeSet, HashMap};

/// The number of names in each state of a directory that is read piece by piece.
#[derive(Clone, Debug, Default)]
pub struct Stream {
    pub position: u64,
    pub seen: HashMap<Vec<u8>, u32>,
    /// There all the time.
    pub stable: BTreeSet<Vec<u8>>,
    /// There at some time.
    pub ever: BTreeSet<Vec<u8>>,
}

impl Stream {
    /// These names are there now.
    pub fn note<'n>(&mut self, names: impl Iterator<Item = &'n Vec<u8>>) {
        let now: BTreeSet<_> = names.cloned().collect();
        match self.ever.is_empty() && self.position == 0 && self.seen.is_empty() {
            true => self.stable = now.clone(),
            false => self.stable.retain(|name| now.contains(name)),
        }
        self.ever.extend(now);
    }

    /// It was read to its end.
    pub fn expect_complete(&self) {
        assert!(
            self.seen.values().all(|count| *count == 1),
            "once each: {self:?}"
        );
        for name in self
            .stable
            .iter()
            .map(|name| &name[..])
            .chain([&b"."[..], b".."])
        {
            assert!(
                self.seen.contains_key(name),
                "{name:?} was left out: {self:?}"
            );
        }
        for name in self
            .seen
            .keys()
            .filter(|name| name[..] != *b"." && name[..] != *b"..")
        {
            assert!(
                self.ever.contains(name),
                "{name:?} never was there: {self:?}"
            );
        }
    }
}
