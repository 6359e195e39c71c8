//! The memory of another process, as root sees it: which of it can be swapped out, and what is in it.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

const PAGE: u64 = 4096;

/// A mapping, as `/proc/PID/smaps` tells.
#[derive(Clone, Debug)]
pub struct Mapping {
    pub start: u64,
    pub end: u64,
    pub name: String,
    /// What the kernel calls `VmFlags`.
    pub flags: Vec<String>,
    /// Bytes by what they are: `Rss`, `Swap`, `Locked` …
    pub sizes: BTreeMap<String, u64>,
}

impl Mapping {
    pub fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|f| f == flag)
    }

    /// Nothing keeps its pages in memory.
    pub fn is_swappable(&self) -> bool {
        !self.has("lo")
    }
}

impl fmt::Display for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kib = (self.end - self.start) / 1024;
        write!(f, "{:x} {kib} KiB {}", self.start, self.name)?;
        write!(f, " [{}]", self.flags.join(" "))
    }
}

/// All mappings of a process.
pub fn mappings(pid: i32) -> Vec<Mapping> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).expect("smaps");
    let mut all: Vec<Mapping> = Vec::new();
    for line in text.lines() {
        let (key, rest) = line.split_once(' ').expect("two columns");
        match (key.strip_suffix(':'), all.last_mut()) {
            (Some("VmFlags"), Some(last)) => {
                last.flags = rest.split_whitespace().map(str::to_owned).collect();
            }
            (Some(key), Some(last)) => {
                let kib = rest.trim().strip_suffix(" kB").map(str::parse::<u64>);
                if let Some(Ok(kib)) = kib {
                    last.sizes.insert(key.to_owned(), kib * 1024);
                }
            }
            _ => {
                let (start, end) = key.split_once('-').expect("a range");
                let number = |text| u64::from_str_radix(text, 16).expect("an address");
                all.push(Mapping {
                    start: number(start),
                    end: number(end),
                    name: rest
                        .split_whitespace()
                        .skip(4)
                        .collect::<Vec<_>>()
                        .join(" "),
                    flags: Vec::new(),
                    sizes: BTreeMap::new(),
                });
            }
        }
    }
    assert!(all.len() > 10, "{text}");
    all
}

/// What is looked for: what it is, and its bytes.
pub type Needle = (String, Vec<u8>);

/// Which needles are in the memory of a process, and in which mappings.
#[derive(Debug, Default)]
pub struct Found {
    pub hits: Vec<(String, Mapping, usize)>,
    /// Mappings that have pages, none of which can be read.
    pub unreadable: Vec<Mapping>,
    /// Bytes that were looked through.
    pub searched: usize,
}

impl Found {
    pub fn of(&self, what: &str) -> Vec<&Mapping> {
        let hits = self.hits.iter().filter(|(name, ..)| name == what);
        hits.map(|(_, mapping, _)| mapping).collect()
    }

    /// Nothing that was looked for is in memory that may be swapped out.
    #[track_caller]
    pub fn nothing_swappable(&self, stage: &str) {
        let open: Vec<String> = self
            .hits
            .iter()
            .filter(|(_, mapping, _)| mapping.is_swappable())
            .map(|(what, mapping, times)| format!("{what} {times} times in {mapping}"))
            .collect();
        assert!(open.is_empty(), "{stage}: {open:#?}");
    }
}

/// Looks through all pages that a process has, in memory or swapped out.
pub fn search(pid: i32, needles: &[Needle]) -> Found {
    let memory = File::open(format!("/proc/{pid}/mem")).expect("root reads all memory");
    let pages = File::open(format!("/proc/{pid}/pagemap")).expect("root reads the page map");
    let mut found = Found::default();
    for mapping in mappings(pid) {
        let mut bytes = Vec::new();
        let (mut present, mut read) = (0, 0);
        let count = ((mapping.end - mapping.start) / PAGE) as usize;
        let mut map = vec![0; count * 8];
        // What lies above the addresses of user space has no page map.
        if pages
            .read_exact_at(&mut map, mapping.start / PAGE * 8)
            .is_err()
        {
            continue;
        }
        for (at, entry) in map.chunks(8).enumerate() {
            let entry = u64::from_le_bytes(entry.try_into().expect("eight bytes"));
            // In memory, or in swap.
            if entry >> 62 == 0 {
                // No needle spans a page that is not there.
                bytes.push(0);
                continue;
            }
            present += 1;
            let mut page = [0; PAGE as usize];
            let address = mapping.start + at as u64 * PAGE;
            if memory.read_exact_at(&mut page, address).is_ok() {
                read += 1;
                bytes.extend_from_slice(&page);
            }
        }
        if present > 0 && read == 0 {
            found.unreadable.push(mapping.clone());
        }
        found.searched += read * PAGE as usize;
        for (what, needle) in needles {
            let times = count_of(&bytes, needle);
            if times > 0 {
                found.hits.push((what.clone(), mapping.clone(), times));
            }
        }
    }
    assert!(found.searched > 1 << 20, "{} bytes", found.searched);
    found
}

/// How often `needle` is in `bytes`.
pub fn count_of(bytes: &[u8], needle: &[u8]) -> usize {
    let (mut rest, mut times) = (bytes, 0);
    loop {
        // SAFETY: both slices are as long as they say.
        let at = unsafe {
            libc::memmem(
                rest.as_ptr().cast(),
                rest.len(),
                needle.as_ptr().cast(),
                needle.len(),
            )
        };
        if at.is_null() {
            return times;
        }
        times += 1;
        rest = &rest[at as usize - rest.as_ptr() as usize + needle.len()..];
    }
}
