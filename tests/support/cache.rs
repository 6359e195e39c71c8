//! What the kernel's page cache holds of a file. Opening a file of a FUSE mount empties that, so
//! whoever wants to know has it open, or knows the frames of memory that its pages were in.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::tree::sys;

const PAGE: usize = 4096;

/// Sees which pages of a file are in the cache, and reads none. The file stays open.
pub struct Watch {
    pub file: File,
    address: *mut libc::c_void,
    size: usize,
}

impl Watch {
    /// Of the first `size` bytes.
    pub fn of(path: &Path, size: usize) -> Self {
        let file = File::open(path).expect("opened");
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let address = unsafe {
            let (read, private) = (libc::PROT_READ, libc::MAP_PRIVATE);
            libc::mmap(
                std::ptr::null_mut(),
                size,
                read,
                private,
                file.as_raw_fd(),
                0,
            )
        };
        let why = std::io::Error::last_os_error();
        assert_ne!(address, libc::MAP_FAILED, "{why}");
        Self {
            file,
            address,
            size,
        }
    }

    pub fn pages(&self) -> usize {
        self.size.div_ceil(PAGE)
    }

    /// Pages that are in the cache.
    pub fn cached(&self) -> usize {
        let mut pages = vec![0; self.pages()];
        // SAFETY: a byte for each page of the mapping.
        sys(unsafe { libc::mincore(self.address, self.size, pages.as_mut_ptr()) }).expect("asked");
        pages.iter().filter(|page| **page & 1 == 1).count()
    }

    /// The first byte of page `page`, which is in the cache then.
    pub fn read(&self, page: usize) -> u8 {
        assert!(page < self.pages());
        // SAFETY: within the mapping and the file. Nothing else writes where volatile would not do.
        unsafe { self.address.cast::<u8>().add(page * PAGE).read_volatile() }
    }

    /// Reads all pages; the frames of memory that they are in.
    pub fn frames(&self) -> Vec<u64> {
        let map = File::open("/proc/self/pagemap").expect("opened");
        let frame = |page| {
            self.read(page);
            let frame = word(&map, (self.address as usize / PAGE + page) as u64) & ((1 << 55) - 1);
            assert_ne!(frame, 0, "this test needs the page map as root sees it");
            frame
        };
        (0..self.pages()).map(frame).collect()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // SAFETY: mapped by this value, and unmapped once.
        unsafe { libc::munmap(self.address, self.size) };
    }
}

/// The memory of the machine, by frames.
pub struct Frames {
    flags: File,
}

impl Frames {
    pub fn of_this_machine() -> Self {
        let flags = File::open("/proc/kpageflags").expect("opened");
        Self { flags }
    }

    /// Whether this frame holds a page of a file, whichever.
    pub fn holds_a_page(&self, frame: u64) -> bool {
        const UP_TO_DATE: u64 = 1 << 3;
        const ANONYMOUS: u64 = 1 << 12;
        word(&self.flags, frame) & (UP_TO_DATE | ANONYMOUS) == UP_TO_DATE
    }
}

fn word(table: &File, at: u64) -> u64 {
    let mut word = [0; 8];
    table.read_exact_at(&mut word, at * 8).expect("a word");
    u64::from_le_bytes(word)
}

/// Sends the first `size` bytes of a file into another, as `sendfile` does; what arrived.
pub fn sent(from: &File, size: usize) -> Vec<u8> {
    let into = tempfile::tempfile().expect("a file");
    let mut at = 0;
    while (at as usize) < size {
        // SAFETY: two open descriptors, and an offset that is the kernel's for the call.
        let sent = unsafe {
            let left = size - at as usize;
            libc::sendfile(into.as_raw_fd(), from.as_raw_fd(), &raw mut at, left)
        };
        assert!(sys(sent as i64).expect("sent") > 0, "{at} of {size} bytes");
    }
    let mut bytes = vec![0; size];
    into.read_exact_at(&mut bytes, 0).expect("read");
    bytes
}
