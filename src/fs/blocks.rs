//! The bytes of a draft, in blocks. Who reads or publishes a draft shares its blocks; a write copies
//! those that it touches if they are shared, and never the whole content.
//!
//! All of it counts in `max-memory`, for one user: each block for itself, as long as somebody has it,
//! and what is zero and in no block for the draft.

#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;

use crate::crypto::SecretBytes;
use crate::crypto::memory::{self, MemoryError};
use crate::vault::CHUNK;

use super::budget::{Account, Refused, Reservation};
use super::{Errno, ReadDone};

/// Bytes of a block: of chunks that are sealed as they lie there, and about what one request has.
pub(super) const BLOCK: usize = 2 * CHUNK;

/// As many blocks are wiped where they are let go; more would keep others waiting for too long.
const FEW: usize = 16;

static ZEROS: [u8; BLOCK] = [0; BLOCK];

#[derive(Debug)]
pub(super) struct Block {
    /// At most as many as it covers; what follows is zero.
    bytes: SecretBytes,
    reservation: Reservation,
}

/// `None` where all is zero.
pub(super) type Slot = Option<Arc<Block>>;

/// What a draft holds at one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Image {
    slots: Vec<Slot>,
    length: u64,
}

/// What a draft holds.
#[derive(Debug)]
pub(super) struct Blocks {
    image: Image,
    account: Account,
    /// For what is in no block.
    rest: Reservation,
}

/// A part of a draft, to be read.
#[derive(Debug)]
pub(super) enum Window {
    /// It lies in one place.
    Within(Arc<Block>, Range<usize>),
    /// It lies in several blocks, from some way into the first, or is zero.
    Across {
        slots: Vec<Slot>,
        skip: usize,
        length: usize,
    },
}

impl Image {
    /// Number of its bytes.
    pub(super) fn len(&self) -> u64 {
        self.length
    }

    /// All of it, in the order in which it stands.
    pub(super) fn parts(&self) -> Vec<&[u8]> {
        let mut parts = Vec::with_capacity(self.slots.len() + 1);
        for (index, slot) in self.slots.iter().enumerate() {
            let held = slot.as_ref().map_or(&[][..], |block| &block.bytes[..]);
            parts.push(held);
            parts.push(&ZEROS[..self.covered(index).saturating_sub(held.len())]);
        }
        parts
    }

    /// The part that a read at `offset` gets.
    pub(super) fn window(&self, offset: u64, size: u32) -> Window {
        let start = offset.min(self.length);
        let end = start.saturating_add(size.into()).min(self.length);
        let (index, skip) = place(start);
        let length = (end - start) as usize;
        match self.slots.get(index) {
            Some(Some(block)) if skip + length <= block.bytes.len() => {
                Window::Within(Arc::clone(block), skip..skip + length)
            }
            _ => {
                let touched = index..count(end).max(index);
                Window::Across {
                    slots: self.slots.get(touched).unwrap_or_default().to_vec(),
                    skip,
                    length,
                }
            }
        }
    }

    /// How many bytes of the content the block at `index` stands for.
    fn covered(&self, index: usize) -> usize {
        let start = index as u64 * BLOCK as u64;
        self.length.saturating_sub(start).min(BLOCK as u64) as usize
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let_go(std::mem::take(&mut self.slots));
    }
}

impl Window {
    /// Hands the bytes to `done`.
    pub(super) fn give(&self, done: ReadDone) {
        match self {
            Self::Within(block, range) => done(Ok(&block.bytes[range.clone()])),
            Self::Across {
                slots,
                skip,
                length,
            } => match gathered(slots, *skip, *length) {
                Ok(bytes) => done(Ok(&bytes)),
                Err(error) => done(Err(error.into())),
            },
        }
    }
}

fn gathered(slots: &[Slot], skip: usize, length: usize) -> Result<SecretBytes, MemoryError> {
    let mut bytes = SecretBytes::zeroed(length)?;
    let mut filled = 0;
    for (index, slot) in slots.iter().enumerate() {
        let from = if index == 0 { skip } else { 0 };
        let covered = (BLOCK - from).min(length - filled);
        let held = slot.as_ref().and_then(|block| block.bytes.get(from..));
        let held = held.unwrap_or_default();
        let held = &held[..held.len().min(covered)];
        bytes[filled..filled + held.len()].copy_from_slice(held);
        filled += covered;
    }
    Ok(bytes)
}

impl Blocks {
    /// Holds `content`, which has at most as many bytes as a block.
    pub(super) fn of(content: SecretBytes, account: &Account) -> Result<Self, Errno> {
        let mut blocks = Self::zeroed(content.len() as u64, account)?;
        if let Some(slot) = blocks.image.slots.first_mut() {
            let mut reservation = account.nothing();
            blocks.rest.pass_on(content.len() as u64, &mut reservation);
            *slot = Some(Arc::new(Block {
                bytes: content,
                reservation,
            }));
        }
        Ok(blocks)
    }

    /// Holds `length` bytes, which `fill` fills a block at a time: it is told where each begins.
    pub(super) fn filled(
        length: u64,
        account: &Account,
        mut fill: impl FnMut(u64, &mut [u8]) -> Result<(), Errno>,
    ) -> Result<Self, Errno> {
        let mut blocks = Self::zeroed(length, account)?;
        for index in 0..blocks.image.slots.len() {
            let covered = blocks.image.covered(index);
            let block = blocks.own(index, covered, true)?;
            fill(index as u64 * BLOCK as u64, &mut block.bytes)?;
        }
        Ok(blocks)
    }

    /// Holds `length` zero bytes.
    pub(super) fn zeroed(length: u64, account: &Account) -> Result<Self, Errno> {
        let mut blocks = Self {
            image: Image::default(),
            account: account.clone(),
            rest: account.nothing(),
        };
        blocks.resize(length)?;
        Ok(blocks)
    }

    pub(super) fn len(&self) -> u64 {
        self.image.length
    }

    pub(super) fn image(&self) -> &Image {
        &self.image
    }

    /// Writes `data` at `offset`; a gap before it is zero. When that fails, nothing has changed.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let before = self.len();
        let end = offset
            .checked_add(data.len() as u64)
            .ok_or(Errno(libc::EFBIG))?;
        if end > before {
            self.resize(end)?;
        }
        let prepared = self.prepare(offset, end);
        if let Err(error) = prepared {
            if end > before {
                // What was added is in no block that anybody shares: this needs no memory.
                self.resize(before)?;
            }
            return Err(error);
        }
        let mut data = data;
        let (first, mut at) = place(offset);
        for slot in &mut self.image.slots[first..] {
            let (now, later) = data.split_at(data.len().min(BLOCK - at));
            let block = slot.as_mut().and_then(Arc::get_mut);
            let block = block.ok_or(Errno(libc::ENOMEM))?;
            block.bytes[at..at + now.len()].copy_from_slice(now);
            (data, at) = (later, 0);
            if data.is_empty() {
                break;
            }
        }
        Ok(())
    }

    /// Zeroes what there is from `offset` to `end`. When that fails, nothing has changed.
    pub(super) fn zero(&mut self, offset: u64, end: u64) -> Result<(), Errno> {
        let end = end.min(self.len());
        let held: Vec<_> = (place(offset).0..count(end))
            .filter_map(|index| {
                let start = index as u64 * BLOCK as u64;
                let held = self.image.slots[index].as_ref()?.bytes.len();
                let from = offset.saturating_sub(start).min(held as u64) as usize;
                let to = (end - start).min(held as u64) as usize;
                (from < to).then_some((index, from..to))
            })
            .collect();
        for (index, _) in &held {
            self.own(*index, 0, false)?;
        }
        for (index, range) in held {
            self.own(index, 0, false)?.bytes[range].fill(0);
        }
        Ok(())
    }

    /// Cuts or extends it to `size` bytes. When that fails, nothing has changed.
    pub(super) fn resize(&mut self, size: u64) -> Result<(), Errno> {
        let before = self.len();
        let wanted = usize::try_from(size.div_ceil(BLOCK as u64));
        let kept = wanted.map_err(|_| Errno(libc::EFBIG))?;
        if size >= before {
            let grown = self.rest.grow(size - before, size);
            grown.map_err(Refused::no_space)?;
            self.image.slots.resize(kept, None);
            self.image.length = size;
            return Ok(());
        }
        let mut held = 0;
        if let Some(last) = kept.checked_sub(1) {
            let end = (size - last as u64 * BLOCK as u64) as usize;
            held += self.cut(last, end)?;
        }
        let gone = self.image.slots.split_off(kept);
        held += gone
            .iter()
            .flatten()
            .map(|b| b.bytes.len() as u64)
            .sum::<u64>();
        // Of what is gone, this is what was in no block.
        let empty = (before - size).saturating_sub(held);
        self.rest.shrink(self.rest.bytes().saturating_sub(empty));
        self.image.length = size;
        let_go(gone);
        Ok(())
    }

    /// Has the block at `index` hold no more than `end` bytes; tells how many fewer that are.
    fn cut(&mut self, index: usize, end: usize) -> Result<u64, Errno> {
        let Some(slot) = &mut self.image.slots[index] else {
            return Ok(0);
        };
        let held = slot.bytes.len();
        if held <= end {
            return Ok(0);
        }
        if let Some(block) = Arc::get_mut(slot) {
            block.bytes.resize(end)?;
            block.reservation.shrink(end as u64);
        } else {
            let left = index as u64 * BLOCK as u64 + end as u64;
            let reservation = self.account.reserve(end as u64, left);
            *slot = Arc::new(Block {
                reservation: reservation.map_err(Refused::no_space)?,
                bytes: SecretBytes::copy_of(&slot.bytes[..end])?,
            });
        }
        Ok((held - end) as u64)
    }

    /// Sees that what lies between is in blocks of this draft alone.
    fn prepare(&mut self, offset: u64, end: u64) -> Result<(), Errno> {
        let (first, last) = (place(offset).0, count(end));
        for index in first..last {
            let start = index as u64 * BLOCK as u64;
            let length = (end - start).min(BLOCK as u64) as usize;
            // If another block failed afterwards, its old content would be needed.
            let overwritten = first + 1 == last && offset <= start;
            self.own(index, length, overwritten)?;
        }
        Ok(())
    }

    /// A block of this draft alone, of at least `length` bytes; `overwritten` tells that nobody
    /// needs those that it has so far, if they are no more than that.
    fn own(&mut self, index: usize, length: usize, overwritten: bool) -> Result<&mut Block, Errno> {
        let slot = &mut self.image.slots[index];
        let held = slot.as_ref().map_or(0, |block| block.bytes.len());
        let overwritten = overwritten && length >= held;
        let length = length.max(held);
        if slot.as_mut().and_then(Arc::get_mut).is_none() {
            // What this has, others keep. What is added is reserved already.
            let reservation = self.account.reserve(held as u64, self.image.length);
            let mut reservation = reservation.map_err(Refused::no_space)?;
            let mut bytes = roomy(index, length, 0)?;
            if let Some(shared) = slot.as_ref().filter(|_| !overwritten) {
                bytes[..held].copy_from_slice(&shared.bytes);
            }
            self.rest.pass_on((length - held) as u64, &mut reservation);
            *slot = Some(Arc::new(Block { bytes, reservation }));
        }
        let block = slot.as_mut().and_then(Arc::get_mut);
        let block = block.ok_or(Errno(libc::ENOMEM))?;
        let held = block.bytes.len();
        if length > held {
            if length <= block.bytes.capacity() {
                block.bytes.resize(length)?;
            } else {
                let mut larger = roomy(index, length, block.bytes.capacity())?;
                larger[..held].copy_from_slice(&block.bytes);
                block.bytes = larger;
            }
            self.rest
                .pass_on((length - held) as u64, &mut block.reservation);
        }
        Ok(block)
    }
}

/// A buffer for `length` bytes of the block at `index`, which had room for `before`. Small contents
/// take little; a long series of appends does not move each time.
fn roomy(index: usize, length: usize, before: usize) -> Result<SecretBytes, MemoryError> {
    let room = match index {
        0 => length.max((before + before / 2).min(BLOCK)),
        _ => {
            must_leave_spare()?;
            BLOCK
        }
    };
    SecretBytes::with_room(length, room).or_else(|_| SecretBytes::zeroed(length))
}

/// What is left for the rest of the program where a process may have only so much memory: a draft that
/// took the last of it could not be published, and nobody else's either.
const SPARE: usize = 4 << 20;

fn must_leave_spare() -> Result<(), MemoryError> {
    match memory::is_room_for(SPARE) {
        true => Ok(()),
        false => Err(MemoryError { wanted: SPARE }),
    }
}

/// The block that an offset is in, and where in it.
fn place(offset: u64) -> (usize, usize) {
    let block = BLOCK as u64;
    let index = usize::try_from(offset / block).unwrap_or(usize::MAX);
    (index, (offset % block) as usize)
}

/// The number of blocks up to an end.
fn count(end: u64) -> usize {
    usize::try_from(end.div_ceil(BLOCK as u64)).unwrap_or(usize::MAX)
}

/// Has blocks wiped that nobody else has, elsewhere if they are many.
fn let_go(mut slots: Vec<Slot>) {
    let mut own = 0;
    for block in slots.iter_mut().flatten().filter_map(Arc::get_mut) {
        // What is wiped in a moment is free for the next draft.
        block.reservation.shrink(0);
        own += 1;
    }
    if own <= FEW {
        return;
    }
    let wipe = std::thread::Builder::new().name("wipe".into());
    // Without a thread, it is done here.
    let _ = wipe.spawn(move || drop(slots));
}
