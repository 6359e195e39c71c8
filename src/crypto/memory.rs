//! Memory for secrets: locked where the system allows it, excluded from core files, and wiped
//! when a buffer is dropped, shortened or moved.
//!
//! Small buffers come from slabs that are locked once. Each larger buffer is a mapping of its own;
//! some mappings are kept for reuse. Master keys are in `memfd_secret` pages where the kernel has
//! them, which it removes even from its own direct map.
#![allow(unsafe_code)]

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::sync::{Mutex, Rank};

use super::pages::{self, Mapping, PAGE, map_memfd_secret, map_private};
pub use super::pages::{is_room_for, keep_in, keep_stack_in};

/// The smallest piece of a slab, in bytes. Pieces are powers of two.
const MIN_PIECE: usize = 64;
/// The largest piece of a slab, in bytes.
const MAX_PIECE: usize = 32 * 1024;
/// Size of a slab, in bytes: small enough for the 8 MiB that an ordinary user may lock.
const SLAB: usize = 64 * 1024;
const CLASSES: usize = (MAX_PIECE / MIN_PIECE).ilog2() as usize + 1;

/// There is no memory for a buffer of secrets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no memory for a secret of {wanted} bytes")]
pub struct MemoryError {
    /// Bytes asked for.
    pub wanted: usize,
}

/// How the memory for secrets is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryReport {
    /// Bytes mapped for secrets and locked, whether in use or kept for reuse.
    pub locked: u64,
    /// Bytes mapped for secrets that the system refused to lock.
    pub unlocked: u64,
    /// Where master keys live.
    pub master_keys: KeyHome,
}

/// The kind of memory that holds master keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyHome {
    /// In `memfd_secret` pages.
    MemfdSecret,
    /// In locked pages.
    Locked,
    /// In pages that the system refused to lock.
    Unlocked,
}

/// The weakest memory that any master key got.
static KEY_HOME: AtomicU8 = AtomicU8::new(KeyHome::MemfdSecret as u8);
static SLABS: Mutex<Slabs> = Mutex::new(
    Rank::Slabs,
    Slabs {
        free: [const { Vec::new() }; CLASSES],
        keys: Vec::new(),
    },
);

/// How all memory handed out so far is protected.
pub fn report() -> MemoryReport {
    let (locked, unlocked) = pages::counts();
    MemoryReport {
        locked,
        unlocked,
        master_keys: match KEY_HOME.load(Ordering::Relaxed) {
            0 => KeyHome::MemfdSecret,
            1 => KeyHome::Locked,
            _ => KeyHome::Unlocked,
        },
    }
}

struct Piece(NonNull<u8>);
// SAFETY: a piece on a free list is owned by the list alone.
unsafe impl Send for Piece {}

struct Slabs {
    free: [Vec<Piece>; CLASSES],
    /// Free pieces of the pages for master keys, `MIN_PIECE` bytes each.
    keys: Vec<Piece>,
}

impl Slabs {
    fn take(&mut self, class: usize) -> Option<NonNull<u8>> {
        if self.free[class].is_empty() {
            let (slab, _) = map_private(SLAB)?;
            carve(slab, SLAB, MIN_PIECE << class, &mut self.free[class]);
        }
        self.free[class].pop().map(|piece| piece.0)
    }

    fn take_key(&mut self) -> Option<NonNull<u8>> {
        if self.keys.is_empty() {
            let (page, home) = match map_memfd_secret(PAGE) {
                Some(page) => (page, KeyHome::MemfdSecret),
                None => match map_private(PAGE)? {
                    (page, true) => (page, KeyHome::Locked),
                    (page, false) => (page, KeyHome::Unlocked),
                },
            };
            KEY_HOME.fetch_max(home as u8, Ordering::Relaxed);
            carve(page, PAGE, MIN_PIECE, &mut self.keys);
        }
        self.keys.pop().map(|piece| piece.0)
    }
}

fn carve(start: NonNull<u8>, length: usize, piece: usize, into: &mut Vec<Piece>) {
    for offset in (0..length).step_by(piece) {
        // SAFETY: `offset < length`, and the mapping is `length` bytes long.
        into.push(Piece(unsafe { start.add(offset) }));
    }
}

#[derive(Clone, Copy)]
enum Origin {
    Slab(usize),
    Key,
    Mapping { locked: bool },
}

/// A buffer for secrets: zeroed when made, wiped when dropped, shown by no `Debug`.
pub struct SecretBytes {
    start: NonNull<u8>,
    capacity: usize,
    length: usize,
    origin: Origin,
}

// SAFETY: the buffer is owned by the value alone, like that of a `Vec<u8>`.
unsafe impl Send for SecretBytes {}
// SAFETY: shared references only read.
unsafe impl Sync for SecretBytes {}

impl SecretBytes {
    /// A buffer of `length` zero bytes.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn zeroed(length: usize) -> Result<Self, MemoryError> {
        let wanted = length.max(1);
        let out_of_memory = MemoryError { wanted };
        if wanted <= MAX_PIECE {
            let piece = wanted.next_power_of_two().max(MIN_PIECE);
            let class = (piece / MIN_PIECE).ilog2() as usize;
            let start = SLABS.lock().take(class);
            let start = start.ok_or(out_of_memory)?;
            return Ok(Self {
                start,
                capacity: piece,
                length,
                origin: Origin::Slab(class),
            });
        }
        let Mapping {
            start,
            capacity,
            locked,
        } = Mapping::of(wanted).ok_or(out_of_memory)?;
        Ok(Self {
            start,
            capacity,
            length,
            origin: Origin::Mapping { locked },
        })
    }

    /// A buffer of `length` zero bytes with a capacity of at least `room`, so that it grows without
    /// moving.
    ///
    /// # Errors
    /// As [`zeroed`](Self::zeroed).
    pub fn with_room(length: usize, room: usize) -> Result<Self, MemoryError> {
        let mut buffer = Self::zeroed(room.max(length))?;
        // The bytes behind `length` are zero, as `resize` expects.
        buffer.length = length;
        Ok(buffer)
    }

    /// A buffer for a master key: in a `memfd_secret` page if the kernel has them, else in a page
    /// that holds only master keys.
    ///
    /// # Errors
    /// As [`zeroed`](Self::zeroed).
    pub fn for_master_key(length: usize) -> Result<Self, MemoryError> {
        if length <= MIN_PIECE {
            let start = SLABS.lock().take_key();
            if let Some(start) = start {
                return Ok(Self {
                    start,
                    capacity: MIN_PIECE,
                    length,
                    origin: Origin::Key,
                });
            }
        }
        // This memory is not reserved for master keys, so `status` must not claim that it is.
        KEY_HOME.fetch_max(KeyHome::Unlocked as u8, Ordering::Relaxed);
        Self::zeroed(length)
    }

    /// A copy of `bytes`.
    ///
    /// # Errors
    /// As [`zeroed`](Self::zeroed).
    pub fn copy_of(bytes: &[u8]) -> Result<Self, MemoryError> {
        let mut copy = Self::zeroed(bytes.len())?;
        copy.copy_from_slice(bytes);
        Ok(copy)
    }

    /// Makes the buffer `length` bytes long: bytes cut off are wiped, bytes added are zero.
    ///
    /// # Errors
    /// As [`zeroed`](Self::zeroed); the buffer is unchanged then.
    pub fn resize(&mut self, length: usize) -> Result<(), MemoryError> {
        if length < self.length {
            wipe(&mut self[length..]);
            self.length = length;
        } else if length <= self.capacity {
            // The bytes behind the end were never used, or were wiped when they were cut off.
            self.length = length;
        } else {
            // Growing by half keeps a long series of appends linear.
            let roomy = length.max(self.capacity.saturating_add(self.capacity / 2));
            let mut larger = Self::zeroed(roomy).or_else(|_| Self::zeroed(length))?;
            larger.length = length;
            larger[..self.length].copy_from_slice(self);
            *self = larger;
        }
        Ok(())
    }

    /// The bytes that the buffer occupies.
    pub fn capacity(&self) -> usize {
        self.capacity
    }
}

impl Deref for SecretBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start` points to `capacity >= length` initialised bytes that `self` owns.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

impl DerefMut for SecretBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

impl Drop for SecretBytes {
    fn drop(&mut self) {
        wipe(self);
        let slabs = || SLABS.lock();
        match self.origin {
            Origin::Slab(class) => slabs().free[class].push(Piece(self.start)),
            Origin::Key => slabs().keys.push(Piece(self.start)),
            Origin::Mapping { locked } => {
                let mapping = Mapping {
                    start: self.start,
                    capacity: self.capacity,
                    locked,
                };
                // SAFETY: this was the mapping's only owner, and has wiped it; the bytes behind the
                // end were never used, or were wiped when they were cut off.
                unsafe { mapping.let_go() };
            }
        }
    }
}

/// Zeroes memory, even if the compiler believes that nobody reads it again. As fast as `memset`,
/// since contents of mebibytes are wiped too.
fn wipe(bytes: &mut [u8]) {
    // SAFETY: a slice is as long as it says.
    unsafe { libc::explicit_bzero(bytes.as_mut_ptr().cast(), bytes.len()) };
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretBytes({} bytes)", self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_keeps_its_content_while_it_grows_and_wipes_what_is_cut_off() {
        let mut buffer = SecretBytes::copy_of(b"secret").unwrap();
        for length in [100, 5_000, 40_000, 300_000] {
            buffer.resize(length).unwrap();
            assert_eq!(&buffer[..6], b"secret");
            assert!(buffer[6..].iter().all(|b| *b == 0));
        }
        buffer.resize(3).unwrap();
        buffer.resize(6).unwrap();
        assert_eq!(&buffer[..], b"sec\0\0\0");
    }

    #[test]
    fn a_piece_that_is_handed_out_again_is_zero() {
        for _ in 0..3 {
            let mut buffer = SecretBytes::zeroed(1000).unwrap();
            assert!(buffer.iter().all(|b| *b == 0));
            buffer.fill(0xaa);
        }
    }

    #[test]
    fn a_large_buffer_that_is_used_again_is_zero_also_beyond_its_length() {
        let large = 150_000;
        for length in [large, large / 2 + 1, large - 5] {
            let mut buffer = SecretBytes::zeroed(length).unwrap();
            buffer.resize(buffer.capacity()).unwrap();
            assert!(buffer.iter().all(|b| *b == 0));
            buffer.fill(0xaa);
            buffer.resize(length).unwrap();
        }
    }

    #[test]
    fn debug_shows_no_content() {
        let buffer = SecretBytes::copy_of(b"hunter2").unwrap();
        assert_eq!(format!("{buffer:?}"), "SecretBytes(7 bytes)");
    }
}
