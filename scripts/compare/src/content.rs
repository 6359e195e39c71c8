//! What the secrets hold: bytes that look random and can be told from any other secret's.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::Failure;

/// Bytes of a secret.
pub const SECRET: usize = 1024;

/// A well-mixed number for each number (splitmix64).
pub fn mixed(number: u64) -> u64 {
    let mut z = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Random numbers that are the same in each run.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(mixed(seed) | 1)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(1);
        mixed(self.0) % limit
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.below(last as u64 + 1) as usize;
            items.swap(last, other);
        }
    }
}

fn word(secret: u64, place: usize) -> [u8; 8] {
    mixed(mixed(secret) ^ place as u64).to_le_bytes()
}

/// Fills `buffer` with the content of a secret.
pub fn fill(secret: u64, buffer: &mut [u8]) {
    for (place, piece) in buffer.chunks_mut(8).enumerate() {
        piece.copy_from_slice(&word(secret, place)[..piece.len()]);
    }
}

/// Whether `content` begins and ends as the secret of this number and of `length` does.
pub fn is_right(secret: u64, content: &[u8], length: usize) -> bool {
    content.len() == length
        && content[..8] == word(secret, 0)
        && content[length - 8..] == word(secret, length / 8 - 1)
}

/// A tree of secrets: so many directories with so many secrets each.
#[derive(Clone, Copy, Debug)]
pub struct Tree {
    pub directories: u64,
    pub each: u64,
}

impl Tree {
    pub fn secrets(self) -> u64 {
        self.directories * self.each
    }

    pub fn directory(self, number: u64) -> String {
        format!("d{number:03}")
    }

    pub fn path(self, secret: u64) -> String {
        let directory = self.directory(secret / self.each);
        format!("{directory}/secret-{:05}", secret % self.each)
    }

    /// All paths below `root`.
    pub fn paths(self, root: &Path) -> Vec<PathBuf> {
        (0..self.secrets())
            .map(|secret| root.join(self.path(secret)))
            .collect()
    }

    /// Writes all secrets below `root`, with several threads.
    pub fn write(self, root: &Path, threads: usize) -> Result<(), Failure> {
        for directory in 0..self.directories {
            fs::create_dir(root.join(self.directory(directory)))?;
        }
        let next = AtomicU64::new(0);
        let write = || -> io::Result<()> {
            let mut buffer = [0; SECRET];
            loop {
                let secret = next.fetch_add(1, Ordering::Relaxed);
                if secret >= self.secrets() {
                    return Ok(());
                }
                fill(secret, &mut buffer);
                File::create_new(root.join(self.path(secret)))?.write_all(&buffer)?;
            }
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(write)).collect();
            for worker in workers {
                worker
                    .join()
                    .map_err(|_| Failure("a thread that fills a tree panicked".into()))??;
            }
            Ok(())
        })
    }
}

/// Opens, reads and closes a secret, and sees whether it is the right one.
pub fn read_secret(path: &Path, secret: u64) -> Result<(), Failure> {
    let mut buffer = [0; SECRET + 1];
    // The system calls of a program that knows nothing of the size: one read for the content.
    let length = File::open(path)
        .and_then(|mut file| file.read(&mut buffer))
        .map_err(|e| Failure(format!("{}: {e}", path.display())))?;
    if is_right(secret, &buffer[..length], SECRET) {
        Ok(())
    } else {
        Err(Failure(format!("{}: wrong content", path.display())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_short_or_foreign_content_is_noticed() {
        let mut content = [0; SECRET];
        fill(5, &mut content);
        assert!(is_right(5, &content, SECRET));
        assert!(!is_right(6, &content, SECRET));
        assert!(!is_right(5, &content[..SECRET - 8], SECRET));
        assert!(!is_right(5, &[], SECRET));
        for place in [0, SECRET - 1] {
            content[place] ^= 1;
            assert!(!is_right(5, &content, SECRET));
            content[place] ^= 1;
        }
    }

    #[test]
    fn every_secret_has_a_path_of_its_own() {
        let tree = Tree {
            directories: 3,
            each: 7,
        };
        let mut paths = tree.paths(Path::new("/"));
        paths.sort();
        paths.dedup();
        assert_eq!(paths.len(), 21);
    }
}
