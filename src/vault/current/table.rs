//! A map from 64 bits to 64 bits that takes 17 to 20 bytes for each pair. It uses open addressing
//! with linear probing, and the key that is farther from its home comes first ("Robin Hood
//! hashing", Celis, Larson and Munro, FOCS 1985), so fifteen sixteenths of the places may be taken.
//!
//! Keys must be hashes: their highest bits give their home.

/// A pair. Key 0 marks a free place.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    key: u64,
    mark: u64,
}

#[derive(Debug, Default)]
pub(super) struct Table {
    slots: Box<[Slot]>,
    len: usize,
}

impl Table {
    /// A table with room for `count` pairs, and hardly for one more.
    pub(super) fn with_room(count: usize) -> Self {
        Self::with_places(match count {
            0 => 0,
            // With `count` pairs, eleven twelfths of the places are taken.
            count => count + count / 11 + 1,
        })
    }

    fn with_places(places: usize) -> Self {
        Self {
            slots: vec![Slot::default(); places].into_boxed_slice(),
            len: 0,
        }
    }

    /// Number of pairs.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Bytes of the table.
    pub(super) fn bytes(&self) -> usize {
        std::mem::size_of_val(&*self.slots)
    }

    pub(super) fn get(&self, key: u64) -> Option<u64> {
        self.find(key).map(|at| self.slots[at].mark)
    }

    /// Inserts a pair, or replaces the one with the same key.
    pub(super) fn set(&mut self, key: u64, mark: u64) {
        if let Some(at) = self.find(key) {
            self.slots[at].mark = mark;
            return;
        }
        if self.len + 1 > self.slots.len() - self.slots.len() / 16 {
            self.grow();
        }
        self.insert(Slot { key, mark });
    }

    /// Makes room for `count` pairs in all.
    pub(super) fn reserve(&mut self, count: usize) {
        let table = Self::with_room(count);
        if table.slots.len() > self.slots.len() {
            self.move_to(table);
        }
    }

    pub(super) fn remove(&mut self, key: u64) {
        let Some(mut at) = self.find(key) else { return };
        // Later pairs that are not at home move up.
        loop {
            let next = (at + 1) % self.slots.len();
            let slot = self.slots[next];
            if slot.key == 0 || self.distance(next, slot.key) == 0 {
                break;
            }
            self.slots[at] = slot;
            at = next;
        }
        self.slots[at] = Slot::default();
        self.len -= 1;
        if self.slots.len() > 16 && self.len < self.slots.len() / 2 {
            self.grow();
        }
    }

    /// Keeps the pairs for whose mark `keep` returns true.
    pub(super) fn retain(&mut self, keep: impl Fn(u64) -> bool) {
        let kept = |slot: &&Slot| slot.key != 0 && keep(slot.mark);
        let count = self.slots.iter().filter(kept).count();
        if count == self.len {
            return;
        }
        let mut table = Self::with_places(roomy(count));
        for slot in self.slots.iter().filter(kept) {
            table.insert(*slot);
        }
        *self = table;
    }

    /// Grows the table to the right size for its pairs and one more.
    fn grow(&mut self) {
        self.move_to(Self::with_places(roomy(self.len + 1)));
    }

    fn move_to(&mut self, mut table: Self) {
        for slot in self.slots.iter().filter(|slot| slot.key != 0) {
            table.insert(*slot);
        }
        *self = table;
    }

    fn home(&self, key: u64) -> usize {
        ((u128::from(key) * self.slots.len() as u128) >> 64) as usize
    }

    /// The distance of a key at `at` from its home.
    fn distance(&self, at: usize, key: u64) -> usize {
        let home = self.home(key);
        match at >= home {
            true => at - home,
            false => at + self.slots.len() - home,
        }
    }

    fn find(&self, key: u64) -> Option<usize> {
        let places = self.slots.len();
        let mut at = self.home(key);
        for distance in 0..places {
            let slot = self.slots[at];
            if slot.key == key {
                return Some(at);
            }
            // The key would be before this slot.
            if slot.key == 0 || self.distance(at, slot.key) < distance {
                return None;
            }
            at = (at + 1) % places;
        }
        None
    }

    /// Inserts a pair whose key is not in the table; there must be room.
    fn insert(&mut self, mut slot: Slot) {
        let mut at = self.home(slot.key);
        let mut distance = 0;
        while self.slots[at].key != 0 {
            let its = self.distance(at, self.slots[at].key);
            if its < distance {
                std::mem::swap(&mut slot, &mut self.slots[at]);
                distance = its;
            }
            at = (at + 1) % self.slots.len();
            distance += 1;
        }
        self.slots[at] = slot;
        self.len += 1;
    }
}

/// A number of places of which `count` pairs take five sixths.
fn roomy(count: usize) -> usize {
    count + count / 5 + 1
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    /// Keys with few homes, so that they collide.
    fn spread(key: u8) -> u64 {
        (u64::from(key % 8) << 61) | (u64::from(key) + 1)
    }

    proptest! {
        #[test]
        fn a_table_holds_what_a_map_holds(
            deeds in proptest::collection::vec((any::<u8>(), any::<u64>(), 0..4u8), 1..600),
        ) {
            let (mut table, mut map) = (Table::default(), HashMap::new());
            for (key, mark, deed) in deeds {
                let key = spread(key);
                match deed {
                    0 => {
                        table.remove(key);
                        map.remove(&key);
                    }
                    1 if mark % 64 == 0 => {
                        table.retain(|mark| mark % 2 == 0);
                        map.retain(|_, mark| *mark % 2 == 0);
                    }
                    _ => {
                        table.set(key, mark);
                        map.insert(key, mark);
                    }
                }
                prop_assert_eq!(table.len(), map.len());
            }
            for key in 0..=u8::MAX {
                prop_assert_eq!(table.get(spread(key)), map.get(&spread(key)).copied());
            }
        }
    }

    #[test]
    fn a_pair_never_takes_more_than_twenty_bytes() {
        let mut table = Table::default();
        let mut key = 1u64;
        for count in 1..50_000usize {
            key = key.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
            table.set(key, count as u64);
            assert!(count < 100 || table.bytes() <= 20 * table.len(), "{count}");
        }
        assert_eq!(table.len(), 49_999);
    }
}
