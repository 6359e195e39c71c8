//! The position of a reader in an open directory.
//!
//! Entries are shown in the order of their name tags. While a rotation replaces a directory's key,
//! entries move one by one to their tags under the new key: from the unread part to the part
//! already read, or the reverse. So a directory whose entries moved during a read is read a second
//! time, once they have their final tags, without the names already shown. A hash of each shown
//! name is kept for that.

use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};

use crate::crypto::SetSum;
use crate::store::NameTag;

use super::super::directory_entry::DirectoryEntry;

/// `.` and `..` come first.
pub(super) const FIRST_NAME: u64 = 2;
/// Set in the positions of every other pass.
const PASS: u64 = 1 << 62;

/// The position after the entry filed under `tag`: 62 bits of a keyed hash, never one of the first
/// positions, and above them the parity of the pass.
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

/// The state of a directory in a batch: its key epoch, and whether it has entries of the previous
/// one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) epoch: u32,
    pub(super) is_moving: bool,
}

/// One pass through the directory.
#[derive(Clone, Debug, Default)]
struct Pass {
    /// Number of names shown before it.
    shown: usize,
    /// The state in its first batch.
    begun: Option<Found>,
    /// The epoch at the end of the pass before.
    before: Option<u32>,
    /// It began at a position that was never shown, so the names shown before are unknown.
    is_part: bool,
}

/// The state of reading an open directory.
#[derive(Debug)]
pub(super) struct Reading {
    /// Entries that are opened, but not passed on yet.
    pub(super) ahead: VecDeque<DirectoryEntry>,
    /// The position at the start of `ahead`.
    position: u64,
    /// The place in the store after `ahead`.
    pub(super) after: Option<NameTag>,
    /// The state in the last batch of the pass; set if nothing follows `ahead`.
    pub(super) ended: Option<Found>,
    /// The directory was removed, and is empty.
    pub(super) is_gone: bool,
    /// The sum and count of the entries that a pass has read, to compare with the directory's own,
    /// and the revision at its start. `None` after a seek.
    pub(super) whole: Option<(SetSum, u64, u64)>,
    /// The passes so far; never empty.
    passes: Vec<Pass>,
    /// The names shown so far, by position and hash.
    shown: Vec<(u64, u64)>,
    /// The hashes in `shown`, once entries have moved.
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
    /// Continues from a position: the beginning, the present one, or another.
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
            // The last pass that the position can belong to.
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

    /// Treats all names after the `first` ones as not shown. The kernel goes back a little whenever
    /// a program's buffer is full, so this takes time only for those.
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

    /// Passes an entry to `take`, unless it was shown already; returns whether to go on to the
    /// next.
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

    /// Notes the state of the directory in a batch.
    pub(super) fn note(&mut self, found: Found) {
        let begun = self.passes.last_mut().and_then(|pass| {
            let begun = pass.begun.get_or_insert(found);
            (begun.epoch == found.epoch && !found.is_moving).then_some(())
        });
        if begun.is_none() {
            self.leave_out();
        }
    }

    /// Whether all names were shown, once `ahead` is empty. Begins another pass if this one has
    /// ended and was not enough.
    pub(super) fn is_complete(&mut self) -> bool {
        let Some(found) = self.ended else {
            return self.is_gone;
        };
        let stood_still = self.passes.last().is_some_and(|pass| {
            let in_one_epoch = pass.begun.is_some_and(|begun| begun.epoch == found.epoch);
            let moving = pass.begun.is_some_and(|begun| begun.is_moving);
            // Entries that moved during the pass before have their final tags.
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
