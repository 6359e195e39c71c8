//! The bytes of a draft, in blocks. Readers and publications share its blocks; a write copies the
//! shared blocks that it touches, and never the whole content.
//!
//! Everything counts in `max-memory`, for one user: each block by itself, as long as it exists, and
//! the zero bytes outside blocks with the draft.

#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;

use crate::crypto::SecretBytes;
use crate::crypto::memory::{self, MemoryError};
use crate::vault::CHUNK;

use super::budget::{Account, Refused, Reservation};
use super::{Errno, ReadDone};

/// Bytes of a block: a multiple of the chunks that are sealed in place, and about the size of one
/// request.
pub(super) const BLOCK: usize = 2 * CHUNK;

/// Up to this many blocks are wiped by the thread that drops them; more would make others wait too
/// long.
const FEW: usize = 16;

static ZEROS: [u8; BLOCK] = [0; BLOCK];

#[derive(Debug)]
pub(super) struct Block {
    /// At most as many bytes as the block covers; the rest is zero.
    bytes: SecretBytes,
    reservation: Reservation,
}

/// `None` for a block of zeros.
pub(super) type Slot = Option<Arc<Block>>;

/// The content of a draft at one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Image {
    slots: Vec<Slot>,
    length: u64,
}

/// The content of a draft.
#[derive(Debug)]
pub(super) struct Blocks {
    image: Image,
    account: Account,
    /// The reservation for bytes outside blocks.
    rest: Reservation,
}

/// A part of a draft for a read.
#[derive(Debug)]
pub(super) enum Window {
    /// It is inside one block.
    Within(Arc<Block>, Range<usize>),
    /// It is in several blocks, beginning `skip` bytes into the first, or is zero.
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

    /// All bytes, in order.
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

    /// The number of bytes that the block at `index` covers.
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
    /// Passes the bytes to `done`.
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
    /// Blocks with `content`, which has at most the bytes of one block.
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

    /// Blocks with `length` bytes. `fill` fills each block, and gets its offset.
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

    /// Blocks with `length` zero bytes.
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

    /// Writes `data` at `offset`; a gap before it is zero. After an error nothing has changed.
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
                // The added bytes are in no shared block, so this needs no memory.
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

    /// Zeroes the existing bytes from `offset` to `end`. After an error nothing has changed.
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

    /// Truncates or extends the content to `size` bytes. After an error nothing has changed.
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
        // The removed bytes that were outside blocks.
        let empty = (before - size).saturating_sub(held);
        self.rest.shrink(self.rest.bytes().saturating_sub(empty));
        self.image.length = size;
        let_go(gone);
        Ok(())
    }

    /// Cuts the block at `index` to `end` bytes; returns the number of bytes removed.
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

    /// Makes sure that the range is in blocks that only this draft has.
    fn prepare(&mut self, offset: u64, end: u64) -> Result<(), Errno> {
        let (first, last) = (place(offset).0, count(end));
        for index in first..last {
            let start = index as u64 * BLOCK as u64;
            let length = (end - start).min(BLOCK as u64) as usize;
            // If a later block failed, the old content of this one would be needed.
            let overwritten = first + 1 == last && offset <= start;
            self.own(index, length, overwritten)?;
        }
        Ok(())
    }

    /// A block that only this draft has, of at least `length` bytes. `overwritten` says that its
    /// present bytes, if not more than that, are no longer needed.
    fn own(&mut self, index: usize, length: usize, overwritten: bool) -> Result<&mut Block, Errno> {
        let slot = &mut self.image.slots[index];
        let held = slot.as_ref().map_or(0, |block| block.bytes.len());
        let overwritten = overwritten && length >= held;
        let length = length.max(held);
        if slot.as_mut().and_then(Arc::get_mut).is_none() {
            // Others keep the bytes of the shared block. Added bytes are reserved already.
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

/// A buffer for `length` bytes of the block at `index`, whose capacity was `before`. Small contents
/// take little memory, and a long series of appends does not move the bytes each time.
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

/// Memory left for the rest of the program if the process has a limit, in bytes: if a draft took
/// the last of it, no draft could be published.
const SPARE: usize = 4 << 20;

fn must_leave_spare() -> Result<(), MemoryError> {
    match memory::is_room_for(SPARE) {
        true => Ok(()),
        false => Err(MemoryError { wanted: SPARE }),
    }
}

/// The block of an offset, and the offset in that block.
fn place(offset: u64) -> (usize, usize) {
    let block = BLOCK as u64;
    let index = usize::try_from(offset / block).unwrap_or(usize::MAX);
    (index, (offset % block) as usize)
}

/// The number of blocks up to `end`.
fn count(end: u64) -> usize {
    usize::try_from(end.div_ceil(BLOCK as u64)).unwrap_or(usize::MAX)
}

/// Wipes blocks that nobody else has; on another thread if they are many.
fn let_go(mut slots: Vec<Slot>) {
    let mut own = 0;
    for block in slots.iter_mut().flatten().filter_map(Arc::get_mut) {
        // Blocks that are about to be wiped are free for the next draft.
        block.reservation.shrink(0);
        own += 1;
    }
    if own <= FEW {
        return;
    }
    let wipe = std::thread::Builder::new().name("wipe".into());
    // Without a thread, they are wiped here.
    let _ = wipe.spawn(move || drop(slots));
}
