//! Marks of records, and the comparison of their age.

use std::cmp::Ordering;

/// The mark of a record. For a node or a version: 28 bits of its revision, 12 of the generation of
/// its key, 23 of a keyed hash, and one for the round of counting that saw it last. No change
/// lowers revision or generation, and every change raises one of them. For an entry, which has no
/// age: 63 bits of the hash, and the round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::vault) struct Mark(u64);

/// The bit of the round.
pub(super) const SEEN: u64 = 1;
const HASH: u64 = (1 << 23) - 1;
pub(super) const REVISION_BITS: u32 = 28;
const GENERATION_BITS: u32 = 12;

/// The age of a record compared with another in the same place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Age {
    Same,
    Newer,
    Older,
    /// Newer and older at once, which never happens to a true record.
    Neither,
}

/// Compares two values of a rising number of which the lowest `bits` are known. The number never
/// rises by half of that range between the two.
fn compare_wrapped(now: u64, before: u64, bits: u32) -> Ordering {
    let ahead = now.wrapping_sub(before) & ((1 << bits) - 1);
    match ahead {
        0 => Ordering::Equal,
        ahead if ahead < 1 << (bits - 1) => Ordering::Greater,
        _ => Ordering::Less,
    }
}

impl Mark {
    /// The mark of a node or a version with this hash.
    pub(super) fn aged(revision: u64, generation: u64, hash: u64) -> Self {
        let low = |number: u64, bits: u32| number & ((1 << bits) - 1);
        let (revision, generation) = (
            low(revision, REVISION_BITS),
            low(generation, GENERATION_BITS),
        );
        Self(revision << (24 + GENERATION_BITS) | generation << 24 | (hash & HASH) << 1)
    }

    /// Its age compared with another mark of the same node or version.
    pub(super) fn age_beside(self, other: Self) -> Age {
        use Ordering::{Equal, Greater, Less};
        let revision = |mark: Self| mark.0 >> (24 + GENERATION_BITS);
        let generation = |mark: Self| mark.0 >> 24;
        let revisions = compare_wrapped(revision(self), revision(other), REVISION_BITS);
        let generations = compare_wrapped(generation(self), generation(other), GENERATION_BITS);
        match (revisions, generations) {
            (Equal, Equal) => Age::Same,
            (Greater | Equal, Greater | Equal) => Age::Newer,
            (Less | Equal, Less | Equal) => Age::Older,
            (Greater, Less) | (Less, Greater) => Age::Neither,
        }
    }

    /// The mark of an entry with this hash.
    pub(super) fn of_entry(hash: u64) -> Self {
        Self(hash << 1)
    }

    /// The mark from its bits in a table.
    pub(super) fn kept(bits: u64) -> Self {
        Self(bits)
    }

    /// The bits for a table, as seen in this round.
    pub(super) fn seen_in(self, round: u64) -> u64 {
        self.0 & !SEEN | round & SEEN
    }

    /// Whether both marks are of the same record.
    pub(super) fn is(self, other: Self) -> bool {
        self.0 | SEEN == other.0 | SEEN
    }
}
