//! Large buffers that were let go, wiped and still locked, for the next that needs one: to map, lock
//! and fault in the pages of a new one takes longer than to decrypt what comes into it.

use super::memory::Piece;

/// Bytes of all that are kept: little of the 8 MiB that an ordinary user may lock.
const MOST: usize = 1 << 20;
/// Bytes of the largest one kept: what a request reads or writes fits.
const LARGEST: usize = 256 * 1024;

/// A mapping of zero bytes.
pub(super) struct Spare {
    pub(super) start: Piece,
    pub(super) capacity: usize,
}

pub(super) struct Spares {
    /// Those let go last are at the end.
    kept: Vec<Spare>,
}

impl Spares {
    pub(super) const fn new() -> Self {
        Self { kept: Vec::new() }
    }

    /// The smallest of at least `wanted` bytes, unless most of it would lie idle.
    pub(super) fn take(&mut self, wanted: usize) -> Option<Spare> {
        let fits = |spare: &Spare| spare.capacity >= wanted && spare.capacity / 2 <= wanted;
        let kept = self.kept.iter().enumerate().rev();
        let (at, _) = kept
            .filter(|(_, spare)| fits(spare))
            .min_by_key(|(_, spare)| spare.capacity)?;
        Some(self.kept.remove(at))
    }

    /// Keeps one; returns what there is no room for, to be unmapped.
    pub(super) fn keep(&mut self, spare: Spare) -> Vec<Spare> {
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
    pub(super) fn clear(&mut self) -> Vec<Spare> {
        std::mem::take(&mut self.kept)
    }
}
