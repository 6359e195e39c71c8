//! Listing a directory slowly, and going back in it.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use super::tree::sys;

/// Reads a directory with one system call after the other, of so many bytes, with pauses; and now and
/// then goes back to where it was a while ago.
pub struct Slow {
    descriptor: OwnedFd,
    room: usize,
}

/// A name, and the position after it.
pub type Named = (String, i64);

impl Slow {
    pub fn open(path: &Path, room: usize) -> Self {
        let descriptor = std::fs::File::open(path).expect("opened").into();
        Self { descriptor, room }
    }

    /// The next names; none at the end.
    pub fn next(&self) -> Vec<Named> {
        let mut room = vec![0u8; self.room];
        let fd = self.descriptor.as_raw_fd();
        // SAFETY: the kernel writes as much as there is room for.
        let length =
            unsafe { libc::syscall(libc::SYS_getdents64, fd, room.as_mut_ptr(), room.len()) };
        let length = sys(length).expect("listed") as usize;
        let mut names = Vec::new();
        let mut rest = &room[..length];
        while !rest.is_empty() {
            // Its number, the position after it, its length, its kind.
            let position = i64::from_ne_bytes(rest[8..16].try_into().expect("8 bytes"));
            let length = usize::from(u16::from_ne_bytes([rest[16], rest[17]]));
            let name = rest[19..length].split(|byte| *byte == 0).next();
            let name = String::from_utf8(name.expect("a name").to_vec()).expect("UTF-8");
            names.push((name, position));
            rest = &rest[length..];
        }
        names
    }

    pub fn seek(&self, position: i64) {
        nix::unistd::lseek(&self.descriptor, position, nix::unistd::Whence::SeekSet)
            .expect("sought");
    }

    /// All names, each as often as it was shown.
    pub fn all(&self, pause: Duration, back: &mut impl FnMut() -> bool) -> Vec<String> {
        let mut names: Vec<Named> = Vec::new();
        loop {
            let more = self.next();
            if more.is_empty() {
                return names.into_iter().map(|(name, _)| name).collect();
            }
            names.extend(more);
            std::thread::sleep(pause);
            if back() {
                // Whatever was shown after it is shown again.
                names.truncate(names.len() / 2 + 1);
                let (_, position) = names.last().expect("a name");
                self.seek(*position);
            }
        }
    }
}
