//! Bounds single allocations, those of C code as well: `malloc` and its kin end the process when
//! more is asked for at once than is allowed, and are the C library's otherwise.

#![allow(unsafe_code, reason = "an allocator cannot be written without it")]

use std::ffi::c_void;
use std::io::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};

static LIMIT: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Runs `body`, in which no single allocation may have more than `limit` bytes.
pub fn within(limit: usize, body: impl FnOnce()) {
    LIMIT.store(limit, Ordering::Relaxed);
    body();
    LIMIT.store(usize::MAX, Ordering::Relaxed);
}

fn check(size: usize) {
    // What a failing test tells of itself may take more.
    if size > LIMIT.load(Ordering::Relaxed) && !std::thread::panicking() {
        LIMIT.store(usize::MAX, Ordering::Relaxed);
        let trace = std::backtrace::Backtrace::force_capture();
        let what = format!("an allocation of {size} bytes, which the input does not justify");
        // Not by the macros, whose words a test runner keeps for a test that ends.
        let _ = writeln!(std::io::stderr(), "{what}\n{trace}");
        std::process::abort();
    }
}

unsafe extern "C" {
    fn __libc_malloc(size: usize) -> *mut c_void;
    fn __libc_calloc(count: usize, size: usize) -> *mut c_void;
    fn __libc_realloc(block: *mut c_void, size: usize) -> *mut c_void;
}

/// # Safety
/// As malloc(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn malloc(size: usize) -> *mut c_void {
    check(size);
    // SAFETY: the C library's own, asked for the same.
    unsafe { __libc_malloc(size) }
}

/// # Safety
/// As calloc(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn calloc(count: usize, size: usize) -> *mut c_void {
    check(count.saturating_mul(size));
    // SAFETY: the C library's own, asked for the same.
    unsafe { __libc_calloc(count, size) }
}

/// # Safety
/// As realloc(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn realloc(block: *mut c_void, size: usize) -> *mut c_void {
    check(size);
    // SAFETY: the C library's own, asked for the same.
    unsafe { __libc_realloc(block, size) }
}
