//! The allocator of this program wipes every block before it frees it. Names, link targets,
//! extended attributes, and the copies that libraries make of keys on the way to a KMS are in
//! ordinary memory while they are used; wiping keeps them from staying there afterwards.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};

/// The system's allocator, with wiping. The program declares it as its global allocator.
#[derive(Clone, Copy, Debug)]
pub struct Wiping;

/// A block of at least this many bytes has its pages returned to the kernel instead of overwritten:
/// a large buffer is often used only at its beginning, and overwriting would make all of it
/// resident.
const LARGE: usize = 1 << 20;
const PAGE: usize = 4096;

/// Overwrites a block, or returns its pages to the kernel.
///
/// # Safety
/// The block must be `size` bytes long, belong to the heap, and no longer be in use.
unsafe fn wipe(block: *mut u8, size: usize) {
    if size >= LARGE {
        let skip = block.align_offset(PAGE);
        let length = (size - skip) / PAGE * PAGE;
        // SAFETY: these are whole pages of private memory inside the block, which the kernel
        // replaces by zeros. `errno` is restored: a destructor must not change it.
        let taken = unsafe {
            let errno = *libc::__errno_location();
            let pages = block.add(skip).cast();
            // Only Linux 5.18 and later do this to locked pages.
            let taken = libc::madvise(pages, length, libc::MADV_DONTNEED_LOCKED) == 0
                || libc::madvise(pages, length, libc::MADV_DONTNEED) == 0;
            *libc::__errno_location() = errno;
            taken
        };
        if taken {
            // SAFETY: both ends are inside the block.
            unsafe {
                libc::explicit_bzero(block.cast(), skip);
                libc::explicit_bzero(block.add(skip + length).cast(), size - skip - length);
            }
            return;
        }
    }
    // SAFETY: as the caller promises.
    unsafe { libc::explicit_bzero(block.cast(), size) }
}

// SAFETY: blocks come from the system's allocator and return to it with the layouts of the caller.
// `realloc` allocates, copies and frees.
unsafe impl GlobalAlloc for Wiping {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the block has the length of its layout, and nobody uses it any more.
        unsafe {
            wipe(block, layout.size());
            System.dealloc(block, layout);
        }
    }

    /// The system's `realloc` is not used: it leaves a copy behind when it moves a block.
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller promises that `size`, rounded up, is a size that a layout may have.
        let larger = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        // SAFETY: both blocks are as long as their layouts say and do not overlap; the old one is
        // freed once.
        unsafe {
            let moved = self.alloc(larger);
            if !moved.is_null() {
                std::ptr::copy_nonoverlapping(block, moved, layout.size().min(size));
                self.dealloc(block, layout);
            }
            moved
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAP: Wiping = Wiping;

    #[test]
    fn what_is_given_back_is_wiped_also_when_it_moves() {
        let layout = Layout::from_size_align(4096, 8).expect("a layout");
        let keeps = |block: *mut u8, byte: u8| {
            // The allocator keeps its own links at the beginning of a free block. SAFETY: the block
            // stays mapped, and nothing is allocated while this looks at it.
            unsafe { std::slice::from_raw_parts(block.add(64), 4000).contains(&byte) }
        };
        // SAFETY: every block is used as its layout says, and freed once.
        unsafe {
            let guard = HEAP.alloc(layout);
            let first = HEAP.alloc(layout);
            let second = HEAP.alloc(layout);
            first.write_bytes(0xaa, 4096);
            let moved = HEAP.realloc(first, layout, 100_000);
            assert_ne!(moved, first);
            assert!(!keeps(first, 0xaa));
            assert_eq!(*moved.add(4095), 0xaa);
            second.write_bytes(0xbb, 4096);
            HEAP.dealloc(second, layout);
            assert!(!keeps(second, 0xbb));
            HEAP.dealloc(
                moved,
                Layout::from_size_align(100_000, 8).expect("a layout"),
            );
            HEAP.dealloc(guard, layout);
        }
    }
}
