//! Large buffers that were let go, wiped and still locked, for the next that needs one: to map, lock
//! and fault in the pages of a new one takes longer than to decrypt what comes into it.

use super::pages::Mapping;

/// Bytes of all that are kept: little of the 8 MiB that an ordinary user may lock.
const MOST: usize = 1 << 20;
/// Bytes of the largest one kept: what a request reads or writes fits.
const LARGEST: usize = 256 * 1024;

pub(super) struct Spares {
    /// Those let go last are at the end.
    kept: Vec<Mapping>,
}

impl Spares {
    pub(super) const fn new() -> Self {
        Self { kept: Vec::new() }
    }

    /// The smallest of at least `wanted` bytes, unless most of it would lie idle.
    pub(super) fn take(&mut self, wanted: usize) -> Option<Mapping> {
        let fits = |spare: &Mapping| spare.capacity >= wanted && spare.capacity / 2 <= wanted;
        let kept = self.kept.iter().enumerate().rev();
        let (at, _) = kept
            .filter(|(_, spare)| fits(spare))
            .min_by_key(|(_, spare)| spare.capacity)?;
        Some(self.kept.remove(at))
    }

    /// Keeps one; returns what there is no room for, to be unmapped.
    pub(super) fn keep(&mut self, spare: Mapping) -> Vec<Mapping> {
        if spare.capacity > LARGEST {
            return vec![spare];
        }
        self.kept.push(spare);
        let mut bytes: usize = self.kept.iter().map(|spare| spare.capacity).sum();
        let mut gone = 0;
        while bytes > MOST {
            bytes -= self.kept[gone].capacity;
            gone += 1;
        }
        self.kept.drain(..gone).collect()
    }

    /// All of them, to be unmapped.
    pub(super) fn clear(&mut self) -> Vec<Mapping> {
        std::mem::take(&mut self.kept)
    }
}

#[cfg(test)]
mod tests {
    use std::ptr::NonNull;

    use super::*;

    fn mapping(capacity: usize) -> Mapping {
        Mapping {
            start: NonNull::dangling(),
            capacity,
            locked: true,
        }
    }

    #[test]
    fn what_is_kept_is_bounded_and_found_by_its_size() {
        let mut spares = Spares::new();
        let mut kept = 0;
        for _ in 0..100 {
            for capacity in [40 << 10, 64 << 10, 132 << 10, LARGEST + 1] {
                kept += capacity;
                let gone = spares.keep(mapping(capacity));
                kept -= gone.iter().map(|gone| gone.capacity).sum::<usize>();
                assert!(kept <= MOST);
            }
        }
        assert!(kept > MOST - LARGEST);
        for (wanted, found) in [
            (64 << 10, Some(64 << 10)),
            (33 << 10, Some(40 << 10)),
            (128 << 10, Some(132 << 10)),
            (133 << 10, None),
            (19 << 10, None),
        ] {
            let spare = spares.take(wanted).map(|spare| spare.capacity);
            assert_eq!(spare, found, "{wanted}");
        }
        assert!(!spares.clear().is_empty() && spares.clear().is_empty());
    }
}
