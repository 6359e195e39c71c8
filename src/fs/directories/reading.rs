//! How far an open directory was read.
//!
//! Entries are shown in the order of their name tags. While a directory's key is replaced, its entries
//! move, one after the other, to where the new key files them: from what is still to be read to what
//! was read, or the other way round. So a directory in which entries moved while it was read is read a
//! second time, when they stand where they stay, and what was shown already is left out: of each name
//! that was shown a hash is kept.

use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};

use crate::crypto::SetSum;
use crate::store::NameTag;

use super::super::directory_entry::DirectoryEntry;

/// `.` and `..` come first.
pub(super) const FIRST_NAME: u64 = 2;
/// Set in every other pass.
const PASS: u64 = 1 << 62;

/// The position after the entry filed under `tag`: 62 bits of a keyed hash, and never one of the
/// first positions; above them which pass it is of.
fn position_of(tag: &NameTag, pass: usize) -> u64 {
    let (first, _) = tag.split_at(8);
    let number = first
        .iter()
        .fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
    (number >> 2).max(FIRST_NAME + 1) | if pass % 2 == 1 { PASS } else { 0 }
}

/// The last tag at a position.
fn tag_at(position: u64) -> NameTag {
    let mut tag = [0xff; 32];
    tag[..8].copy_from_slice(&(position << 2 | 3).to_be_bytes());
    tag
}

/// How a directory was found by a batch: its key epoch, and whether it has entries of the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) epoch: u32,
    pub(super) is_moving: bool,
}

/// One pass through the directory.
#[derive(Clone, Debug, Default)]
struct Pass {
    /// How many names were shown before it.
    shown: usize,
    /// By its first batch.
    begun: Option<Found>,
    /// The epoch that the pass before ended in.
    before: Option<u32>,
    /// It began somewhere that nothing was shown of: what has been shown is not known.
    is_part: bool,
}

/// An open directory.
#[derive(Debug)]
pub(super) struct Reading {
    /// Entries opened and not yet passed on.
    pub(super) ahead: VecDeque<DirectoryEntry>,
    /// The position that `ahead` begins at.
    position: u64,
    /// Where the store goes on after `ahead`.
    pub(super) after: Option<NameTag>,
    /// How the last batch of the pass found the directory: nothing comes after `ahead` in it.
    pub(super) ended: Option<Found>,
    /// The directory was removed: nothing is in it.
    pub(super) is_gone: bool,
    /// For comparing what a pass has read with what the directory should hold: sum, count, and the
    /// revision in which it began. `None` once somebody has sought.
    pub(super) whole: Option<(SetSum, u64, u64)>,
    /// The passes so far; never none.
    passes: Vec<Pass>,
    /// What was shown since reading began: position and hash of the name.
    shown: Vec<(u64, u64)>,
    /// The hashes among `shown`, once entries were seen to move.
    left_out: Option<HashSet<u64>>,
    hashing: RandomState,
}

impl Default for Reading {
    fn default() -> Self {
        Self {
            ahead: VecDeque::new(),
            position: 0,
            after: None,
            ended: None,
            is_gone: false,
            whole: None,
            passes: vec![Pass::default()],
            shown: Vec::new(),
            left_out: None,
            hashing: RandomState::new(),
        }
    }
}

impl Reading {
    /// Goes on from a position: at the beginning, where it is, or somewhere else.
    pub(super) fn seek(&mut self, position: u64) {
        if position == FIRST_NAME {
            *self = Self {
                position,
                whole: Some((SetSum::default(), 0, 0)),
                ..Self::default()
            };
        } else if position != self.position {
            self.ahead.clear();
            (self.ended, self.whole) = (None, None);
            self.after = Some(tag_at(position));
            self.position = position;
            let odd = usize::from(position & PASS != 0);
            // The last one that it can be of.
            let mut pass = self.passes.len() - 1;
            pass -= pass.min((pass + odd) % 2);
            if let Some(later) = self.passes.get(pass + 1) {
                self.show_again(later.shown);
            }
            self.passes.truncate(pass + 1);
            let of_pass = self.passes.last().map_or(0, |pass| pass.shown);
            let kept = self.shown[of_pass..].partition_point(|(shown, _)| *shown <= position);
            self.show_again(of_pass + kept);
            let is_known = self.shown[of_pass..]
                .last()
                .is_some_and(|(p, _)| *p == position);
            if let Some(pass) = self.passes.last_mut().filter(|_| !is_known) {
                pass.is_part = true;
            }
        }
    }

    /// Takes what was shown after the first so many for not shown. The kernel goes back some way
    /// whenever a program's buffer is full, so this costs no more than that.
    fn show_again(&mut self, first: usize) {
        let again = self.shown.drain(first.min(self.shown.len())..);
        if let Some(left_out) = &mut self.left_out {
            for (_, hash) in again {
                left_out.remove(&hash);
            }
        }
    }

    fn leave_out(&mut self) {
        if self.left_out.is_none() {
            self.left_out = Some(self.shown.iter().map(|(_, hash)| *hash).collect());
        }
    }

    /// Has `take` see an entry, unless it was shown; tells whether it was taken or left out.
    pub(super) fn show(
        &mut self,
        entry: &DirectoryEntry,
        take: &mut impl FnMut(&DirectoryEntry) -> bool,
    ) -> bool {
        let hash = self.hashing.hash_one(&entry.name);
        let is_known = |shown: &HashSet<u64>| shown.contains(&hash);
        if self.left_out.as_ref().is_some_and(is_known) {
            return true;
        }
        if take(entry) {
            return false;
        }
        self.position = entry.position;
        self.shown.push((entry.position, hash));
        if let Some(left_out) = &mut self.left_out {
            left_out.insert(hash);
        }
        true
    }

    /// The position of an entry of this pass.
    pub(super) fn position_of(&self, tag: &NameTag) -> u64 {
        position_of(tag, self.passes.len() - 1)
    }

    /// Learns how a batch found the directory.
    pub(super) fn note(&mut self, found: Found) {
        let begun = self.passes.last_mut().and_then(|pass| {
            let begun = pass.begun.get_or_insert(found);
            (begun.epoch == found.epoch && !found.is_moving).then_some(())
        });
        if begun.is_none() {
            self.leave_out();
        }
    }

    /// Whether all was shown, once nothing is ahead. Begins another pass if this one has come to its
    /// end and was not enough.
    pub(super) fn is_complete(&mut self) -> bool {
        let Some(found) = self.ended else {
            return self.is_gone;
        };
        let stood_still = self.passes.last().is_some_and(|pass| {
            let in_one_epoch = pass.begun.is_some_and(|begun| begun.epoch == found.epoch);
            let moving = pass.begun.is_some_and(|begun| begun.is_moving);
            // What moved while the pass before was under way stands where it stays.
            pass.is_part || in_one_epoch && (!moving || pass.before == Some(found.epoch))
        });
        if !stood_still {
            self.passes.push(Pass {
                shown: self.shown.len(),
                before: Some(found.epoch),
                ..Pass::default()
            });
            (self.after, self.ended) = (None, None);
            self.whole = Some((SetSum::default(), 0, 0));
        }
        stood_still || self.is_gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_and_tags_have_the_same_order() {
        let mut tag = [0u8; 32];
        for first in [0u64, 1, 2, 5, 6, 7, 12, 1 << 40, u64::MAX - 1, u64::MAX] {
            tag[..8].copy_from_slice(&first.to_be_bytes());
            for pass in 0..4 {
                let position = position_of(&tag, pass);
                assert!(position > FIRST_NAME && position <= i64::MAX as u64);
                assert!(
                    tag_at(position) >= tag,
                    "going on after an entry must not repeat it"
                );
            }
        }
    }
}
