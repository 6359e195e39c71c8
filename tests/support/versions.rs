//! Contents that are told apart by any of their bytes, each of a length of its own, and every way to
//! replace and to read one.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::map::Map;

/// Lengths of the contents of `a`, `b`, …
pub const LENGTHS: [usize; 8] = [1, 1 << 20, 10, 1000, 4096, 3000, 70_000, 5000];

/// The content number `n`.
pub fn version(n: usize) -> Vec<u8> {
    let n = n % LENGTHS.len();
    vec![b'a' + n as u8; LENGTHS[n]]
}

/// Whether that is one content, and all of it.
pub fn is_whole(bytes: &[u8]) -> bool {
    let Some(first) = bytes.first() else {
        return false;
    };
    let n = usize::from(first.wrapping_sub(b'a'));
    LENGTHS.get(n) == Some(&bytes.len()) && bytes.iter().all(|byte| byte == first)
}

/// How a content is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Opened with O_TRUNC, written in two pieces, closed.
    Truncating,
    /// Opened, cut to nothing, written, closed.
    Cutting,
    /// Written beside, and renamed over it.
    Renaming,
}

pub const WRITES: [How; 3] = [How::Truncating, How::Cutting, How::Renaming];

impl How {
    pub fn replace(self, path: &Path, bytes: &[u8]) {
        let write = |mut file: File| {
            let (one, other) = bytes.split_at(bytes.len() / 2);
            file.write_all(one).expect("written");
            file.write_all(other).expect("written");
        };
        match self {
            Self::Truncating => write(File::create(path).expect("open")),
            Self::Cutting => {
                let mut options = OpenOptions::new();
                let file = options.read(true).write(true).open(path).expect("open");
                file.set_len(0).expect("cut");
                write(file);
            }
            Self::Renaming => {
                let beside = path.with_extension("new");
                write(File::create(&beside).expect("open"));
                std::fs::rename(&beside, path).expect("renamed");
            }
        }
    }
}

/// How a content is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// As many bytes as fstat tells.
    BySize,
    /// As many as there are before the end, as glibc's files do: they read the last piece first.
    LastFirst,
    /// Until there are no more.
    UntilEnd,
    /// A mapping of what fstat tells.
    ByMapping,
    /// As many bytes as fstat tells, by sendfile.
    BySending,
}

pub const LOOKS: [Look; 5] = [
    Look::BySize,
    Look::LastFirst,
    Look::UntilEnd,
    Look::ByMapping,
    Look::BySending,
];

impl How {
    /// What reads whole versions while they are replaced in this way: in place, the one cache of pages
    /// that a file has serves two of them.
    pub fn looks(self) -> &'static [Look] {
        match self {
            Self::Truncating | Self::Cutting => &LOOKS[..3],
            Self::Renaming => &LOOKS,
        }
    }
}

impl Look {
    /// What is found; `None` where pages are refused.
    pub fn read(self, path: &Path) -> Option<Vec<u8>> {
        let mut file = File::open(path).expect("the secret is always there");
        let told = |file: &File| file.metadata().expect("told").len() as usize;
        match self {
            Self::BySize => Some(exactly(&file, told(&file))),
            Self::LastFirst => {
                let end = told(&file);
                let last = end & !4095;
                let mut piece = vec![0; 4096];
                let count = file.read_at(&mut piece, last as u64).expect("readable");
                assert_eq!(count, (end - last).min(4096), "of the last piece");
                if last == 0 {
                    piece.truncate(count);
                    return Some(piece);
                }
                Some(exactly(&file, end))
            }
            Self::UntilEnd => {
                let mut bytes = Vec::new();
                file.read_to_end(&mut bytes).expect("readable");
                Some(bytes)
            }
            Self::ByMapping => {
                let map = Map::private(&file, told(&file)).expect("mapped");
                map.bytes().ok()
            }
            Self::BySending => sent(&file, told(&file)),
        }
    }
}

/// As many bytes as were told, by way of the page cache; `None` if they do not come.
fn sent(file: &File, count: usize) -> Option<Vec<u8>> {
    let mut into = tempfile::tempfile().expect("a file");
    let mut at: libc::off_t = 0;
    while (at as usize) < count {
        // SAFETY: two open descriptors, and an offset that is the kernel's for the call.
        let sent = unsafe {
            let left = count - at as usize;
            libc::sendfile(into.as_raw_fd(), file.as_raw_fd(), &raw mut at, left)
        };
        if sent <= 0 {
            return None;
        }
    }
    let mut bytes = Vec::new();
    into.rewind().expect("rewound");
    into.read_to_end(&mut bytes).expect("read");
    Some(bytes)
}

/// As many bytes from the beginning as were told, in pieces; whether there are more is not asked.
fn exactly(file: &File, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    let mut at = 0;
    while at < count {
        let end = (at + 50_000).min(count);
        match file.read_at(&mut bytes[at..end], at as u64) {
            Ok(0) => break,
            Ok(read) => at += read,
            Err(error) => panic!("not readable: {error}"),
        }
    }
    bytes.truncate(at);
    bytes
}
