//! Mappings of files, whose pages may not be there: what the kernel answers with SIGBUS is an error
//! here.

use std::fs::File;
use std::os::fd::AsRawFd;

/// A mapping of the first bytes of a file.
pub struct Map {
    address: *mut libc::c_void,
    size: usize,
}

/// What SIGBUS would have told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

impl Map {
    /// To be read and written, by whoever has the file mapped.
    pub fn shared(file: &File, size: usize) -> std::io::Result<Self> {
        Self::new(
            file,
            size,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
        )
    }

    /// To be read.
    pub fn private(file: &File, size: usize) -> std::io::Result<Self> {
        Self::new(file, size, libc::PROT_READ, libc::MAP_PRIVATE)
    }

    fn new(file: &File, size: usize, access: i32, kind: i32) -> std::io::Result<Self> {
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let address = unsafe {
            let fd = file.as_raw_fd();
            libc::mmap(std::ptr::null_mut(), size, access, kind, fd, 0)
        };
        match address {
            libc::MAP_FAILED => Err(std::io::Error::last_os_error()),
            address => Ok(Self { address, size }),
        }
    }

    /// Writes from the beginning.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Refused> {
        assert!(bytes.len() <= self.size);
        // The kernel copies, and has an error for what is not there.
        self.copied(bytes.as_ptr() as usize, self.address as usize, bytes.len())
    }

    /// What is mapped.
    pub fn bytes(&self) -> Result<Vec<u8>, Refused> {
        let mut bytes = vec![0_u8; self.size];
        self.copied(
            self.address as usize,
            bytes.as_mut_ptr() as usize,
            self.size,
        )?;
        Ok(bytes)
    }

    fn copied(&self, from: usize, to: usize, length: usize) -> Result<(), Refused> {
        let vector = |address: usize, done: usize| libc::iovec {
            iov_base: (address + done) as *mut libc::c_void,
            iov_len: length - done,
        };
        let mut done = 0;
        while done < length {
            let (from, to) = (vector(from, done), vector(to, done));
            // SAFETY: both lie in this process, in memory of that length, one of them in the mapping;
            // what cannot be reached is an error.
            let copied = unsafe { libc::process_vm_readv(libc::getpid(), &to, 1, &from, 1, 0) };
            match copied {
                1.. => done += copied as usize,
                _ => return Err(Refused),
            }
        }
        Ok(())
    }

    /// msync(2), to the end.
    pub fn sync(&self) -> nix::Result<()> {
        // SAFETY: this is the mapping.
        let synced = unsafe { libc::msync(self.address, self.size, libc::MS_SYNC) };
        nix::errno::Errno::result(synced).map(drop)
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: mapped by this value, and unmapped once.
        unsafe { libc::munmap(self.address, self.size) };
    }
}
