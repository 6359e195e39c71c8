//! What a record is remembered by, and how old one is beside another.

use std::cmp::Ordering;

/// What a record is remembered by. Of a node and a version: its revision, in 28 bits, and the generation
/// of its key, in 12, of which no change lowers either and every change raises one; 23 bits of a keyed
/// hash; and in which round of counting it was seen last. Of an entry, which does not say how old it is,
/// 63 bits of the hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::vault) struct Mark(u64);

/// The bit of the round.
pub(super) const SEEN: u64 = 1;
const HASH: u64 = (1 << 23) - 1;
pub(super) const REVISION_BITS: u32 = 28;
const GENERATION_BITS: u32 = 12;

/// How old one record is beside another in the same place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Age {
    Same,
    Newer,
    Older,
    /// Newer and older at once, as no record ever is.
    Neither,
}

/// How a number that only rises, of which so many bits are known, compares with what it was. It is never
/// half of all its values ahead.
fn compare_wrapped(now: u64, before: u64, bits: u32) -> Ordering {
    let ahead = now.wrapping_sub(before) & ((1 << bits) - 1);
    match ahead {
        0 => Ordering::Equal,
        ahead if ahead < 1 << (bits - 1) => Ordering::Greater,
        _ => Ordering::Less,
    }
}

impl Mark {
    /// Of a node or a version with this hash.
    pub(super) fn aged(revision: u64, generation: u64, hash: u64) -> Self {
        let low = |number: u64, bits: u32| number & ((1 << bits) - 1);
        let (revision, generation) = (
            low(revision, REVISION_BITS),
            low(generation, GENERATION_BITS),
        );
        Self(revision << (24 + GENERATION_BITS) | generation << 24 | (hash & HASH) << 1)
    }

    /// How old it is beside another mark of the same node or version.
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

    /// Of an entry with this hash.
    pub(super) fn of_entry(hash: u64) -> Self {
        Self(hash << 1)
    }

    /// As it was kept in a table.
    pub(super) fn kept(bits: u64) -> Self {
        Self(bits)
    }

    /// To be kept, as seen in this round.
    pub(super) fn seen_in(self, round: u64) -> u64 {
        self.0 & !SEEN | round & SEEN
    }

    /// Whether both are of the same record.
    pub(super) fn is(self, other: Self) -> bool {
        self.0 | SEEN == other.0 | SEEN
    }
}
