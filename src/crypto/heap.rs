//! The allocator of this program: what is given back is wiped first. Names, link targets, extended
//! attributes, and what libraries make of keys on the way to a KMS, live in ordinary memory for as
//! long as they are used; this keeps them from staying there afterwards.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};

struct Wiping;

#[global_allocator]
static HEAP: Wiping = Wiping;

// SAFETY: everything is passed on to the system's allocator, with the layouts that we are given.
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
            libc::explicit_bzero(block.cast(), layout.size());
            System.dealloc(block, layout);
        }
    }

    /// Never by the system's own, which leaves a copy behind when it moves a block.
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller promises that `size`, rounded up, is a size that a layout may have.
        let larger = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        // SAFETY: both blocks are as long as their layouts say and do not overlap; the old one is
        // given back once.
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

    #[test]
    fn what_is_given_back_is_wiped_also_when_it_moves() {
        let layout = Layout::from_size_align(4096, 8).expect("a layout");
        let keeps = |block: *mut u8, byte: u8| {
            // The allocator keeps its own links at the beginning of what is free.
            // SAFETY: the block stays mapped, and nothing is allocated while this looks at it.
            unsafe { std::slice::from_raw_parts(block.add(64), 4000).contains(&byte) }
        };
        // SAFETY: every block is used as its layout says, and given back once.
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
