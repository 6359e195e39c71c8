//! Bounds single allocations: Rust's by an allocator that aborts, SQLite's by its own statistics.

#![allow(unsafe_code, reason = "an allocator cannot be written without it")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use rusqlite::ffi;

static LIMIT: AtomicUsize = AtomicUsize::new(usize::MAX);

/// The system's allocator, which ends the process when more is asked for at once than is allowed.
pub struct Bounded;

fn check(size: usize) {
    // What a failing test tells of itself may take more.
    if size > LIMIT.load(Ordering::Relaxed) && !std::thread::panicking() {
        LIMIT.store(usize::MAX, Ordering::Relaxed);
        let trace = std::backtrace::Backtrace::force_capture();
        eprintln!("an allocation of {size} bytes, which the input does not justify\n{trace}");
        std::process::abort();
    }
}

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Bounded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        // SAFETY: the caller's promises are those that are asked for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(start, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        check(size);
        // SAFETY: as above.
        unsafe { System.realloc(start, layout, size) }
    }
}

/// Runs `body`, in which no single allocation may have more than `limit` bytes.
pub fn within(limit: usize, body: impl FnOnce()) {
    sqlite_largest();
    LIMIT.store(limit, Ordering::Relaxed);
    body();
    LIMIT.store(usize::MAX, Ordering::Relaxed);
    let largest = sqlite_largest();
    // A row may have 2 MiB; it begins with room for 20 pages, of as much as 64 KiB each.
    assert!(
        largest <= limit.max(2 << 20),
        "SQLite allocated {largest} bytes at once, which the input does not justify"
    );
}

/// The largest allocation of SQLite since the last call.
fn sqlite_largest() -> usize {
    let (mut now, mut largest) = (0, 0);
    // SAFETY: both results have a place; the call does nothing else.
    let code =
        unsafe { ffi::sqlite3_status64(ffi::SQLITE_STATUS_MALLOC_SIZE, &mut now, &mut largest, 1) };
    assert_eq!(code, ffi::SQLITE_OK, "SQLite keeps no statistics");
    usize::try_from(largest).expect("a size")
}
