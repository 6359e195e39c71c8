//! Random requests to the file system layer, answered as the reference answers them, with the
//! vault opened again between runs.
//!
//! `PROPTEST_CASES=20000 cargo nextest run --test model` for a longer campaign.

mod asking;
mod listing;
mod strategies;

use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::FileFailurePersistence;
use secretfs::fs::Errno;
use secretfs::vault::{Kind, RenameMode, Timestamp};

use crate::support::layer::{Layer, Served, caller_as};
use crate::support::process::wait_for;
use crate::support::reference::stream::Stream;
use crate::support::reference::{Answer, CONTROL, Fh, Ino, ROOT, Reference, When};
use strategies::run;

const CASES: u32 = 100;

/// Lengths and offsets at which padding, chunks and whole contents end.
const SIZES: [u64; 10] = [
    0, 1, 255, 256, 257, 65_535, 65_536, 65_537, 131_073, 300_000,
];

/// Largest secret and most memory.
const LIMITS: [(u64, u64); 3] = [(16 << 20, 256 << 20), (300_000, 700_000), (65_537, 200_000)];

/// A name in one of the directories.
#[derive(Clone, Debug)]
struct At(Index, u8);

/// Where a handle reads or writes.
#[derive(Clone, Copy, Debug)]
enum Place {
    Fixed(u64),
    /// At the end of what the handle sees.
    End,
}

/// Which process; 0 cannot be seen.
#[derive(Clone, Copy, Debug)]
enum Process {
    This,
    Other,
    Unseen,
}

impl Process {
    fn pid(self) -> u32 {
        match self {
            Self::This => std::process::id(),
            Self::Other => 1,
            Self::Unseen => 0,
        }
    }

    fn seen(self) -> Option<u32> {
        Some(self.pid()).filter(|pid| *pid != 0)
    }

    /// What the kernel takes for the owner of its locks.
    fn owner(self) -> u64 {
        match self {
            Self::This => 1,
            Self::Other => 2,
            Self::Unseen => 3,
        }
    }
}

#[derive(Clone, Debug)]
enum Request {
    Create(At, u32, i32, Process),
    Open(Index, i32, Process, u32),
    Read(Index, Place, u64, Process),
    ReadWhole(Index),
    Write(Index, Place, u64, u8, (Process, bool)),
    Flush(Index, Process, u64),
    Fsync(Index),
    Release(Index),
    Truncate(Index, u64, u32),
    TruncateHandle(Index, u64, u32),
    Stat(Index, Process),
    StatHandle(Index),
    Allocate(Index, (u64, u64), i32),
    Copy((Index, Place), (Index, Place), u64),
    Seek(Index, u64, bool),
    Make(At, Kind, u32),
    Lookup(At),
    Link(Index, At),
    Remove(At, bool),
    Rename(At, At, RenameMode),
    Change(Index, Set, u32),
    SetXattr(Index, u8, usize, i32),
    RemoveXattr(Index, u8),
    Xattrs(Index, u8),
    OpenDirectory(Index),
    ReadDirectory(Index, usize),
    CloseDirectory(Index),
    List(Index, usize, bool),
    /// So many transactions more of what replaces all keys.
    Reencrypt(u32),
}

#[derive(Clone, Debug)]
enum Set {
    Mode(u32),
    Owner(Option<u32>, Option<u32>),
    Times(Option<i64>, Option<i64>),
}

/// How a run ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Orderly,
    Aborted,
    Crash,
}

#[derive(Clone, Debug)]
struct Run {
    limits: (u64, u64),
    requests: Vec<Request>,
    end: End,
}

fn name(number: u8) -> Vec<u8> {
    match number {
        3 => vec![0xff, 0xfe, b'\n', b' '],
        4 => vec![b'n'; 255],
        5 => vec![b'n'; 256],
        6 => CONTROL.to_vec(),
        7 => b"...".to_vec(),
        n => vec![b'a' + n],
    }
}

fn xattr(number: u8) -> &'static [u8] {
    match number {
        0 => b"user.a",
        1 => b"user.b",
        2 => b"user.c",
        3 => b"user.secretfs.version",
        4 => b"trusted.a",
        _ => b"user.\xff",
    }
}

fn data(size: u64, seed: u8) -> Vec<u8> {
    let byte = |i: u64| (i as u8).wrapping_mul(7) ^ seed ^ (i >> 8) as u8;
    (0..size).map(byte).collect()
}

fn number(answer: &Result<impl Sized, Errno>) -> Option<i32> {
    answer.as_ref().err().map(|errno| errno.0)
}

/// The two must answer alike.
#[track_caller]
fn same<T: PartialEq>(found: Result<T, Errno>, expected: Answer<T>) {
    let errno = number(&found);
    assert_eq!(errno, expected.as_ref().err().copied(), "error number");
    if let (Ok(found), Ok(expected)) = (found, expected) {
        assert!(found == expected, "another answer");
    }
}

#[track_caller]
fn same_bytes(found: Result<Vec<u8>, Errno>, expected: Answer<Vec<u8>>) {
    if let (Ok(found), Ok(expected)) = (&found, &expected) {
        assert_eq!(found.len(), expected.len(), "number of bytes");
        let differs = found.iter().zip(expected).position(|(a, b)| a != b);
        assert_eq!(differs, None, "first byte that differs");
    }
    same(found, expected);
}

struct Both {
    fs: Served,
    reference: Reference,
    streams: std::collections::BTreeMap<Fh, Stream>,
}

impl Both {
    fn directory(&self, index: &Index) -> Ino {
        let nodes = self.reference.nodes.iter();
        let directories = nodes.filter(|(_, node)| node.kind == Kind::Directory);
        let directories: Vec<_> = directories.map(|(ino, _)| *ino).collect();
        *index.get(&directories)
    }

    fn place(&self, At(directory, number): &At) -> (Ino, Vec<u8>) {
        let directory = self.directory(directory);
        // What is wrong with a name is only told where names can be.
        let removed = self.reference.nodes[&directory].links == 0;
        (directory, name(if removed { 0 } else { *number }))
    }

    fn file(&self, index: &Index) -> Option<Ino> {
        let nodes = self.reference.nodes.iter();
        let files: Vec<_> = nodes
            .filter(|(_, node)| node.kind == Kind::File)
            .map(|(ino, _)| *ino)
            .collect();
        (!files.is_empty()).then(|| *index.get(&files))
    }

    fn node(&self, index: &Index) -> Ino {
        *index.get(&self.reference.nodes.keys().copied().collect::<Vec<_>>())
    }

    fn handle(&self, index: &Index) -> Option<Fh> {
        let handles: Vec<_> = self.reference.handles.keys().copied().collect();
        (!handles.is_empty()).then(|| *index.get(&handles))
    }

    fn stream(&self, index: &Index) -> Option<Fh> {
        let open: Vec<_> = self.reference.directories.keys().copied().collect();
        (!open.is_empty()).then(|| *index.get(&open))
    }

    fn offset(&self, fh: Fh, place: Place) -> u64 {
        match place {
            Place::Fixed(offset) => offset,
            Place::End => {
                let ino = self.reference.handles[&fh].ino;
                self.reference.size(ino, Some(fh), 0)
            }
        }
    }

    /// Asks both for attributes, as somebody does who cannot be seen, and compares them.
    fn look(&mut self, ino: Ino, fh: Option<Fh>) {
        self.look_as(ino, fh, Process::Unseen);
    }

    fn look_as(&mut self, ino: Ino, fh: Option<Fh>, process: Process) {
        let attr = self.fs.getattr_as(caller_as(process.pid(), 0), ino, fh);
        let attr = attr.expect("it can be looked at");
        self.reference.stat(ino, fh, process.pid());
        self.reference.expect_attr(ino, fh, process.pid(), &attr);
    }

    /// Waits for what a close leaves to be published.
    fn settle(&self, ino: Ino) {
        let _ = self.fs.getattr(ino, None);
    }

    /// Compares everything that can be seen.
    fn compare(&mut self) {
        let nodes: Vec<_> = self.reference.nodes.keys().copied().collect();
        for ino in nodes {
            self.look(ino, None);
        }
        for (ino, node) in &self.reference.nodes {
            self.expect_xattr_names(*ino);
            for (name, value) in &node.xattrs {
                assert_eq!(self.fs.0.get_xattr(*ino, name).as_ref(), Ok(value));
            }
            match node.kind {
                Kind::Directory => {
                    self.expect_list(*ino, 100, false);
                    for (name, child) in &node.entries {
                        assert_eq!(self.fs.lookup(*ino, name).unwrap().ino, *child);
                    }
                }
                Kind::File if node.links > 0 => {
                    let expected = self.reference.seen_by_all(*ino).to_vec();
                    same_bytes(self.fs.read_all(*ino), Ok(expected));
                }
                Kind::Symlink => assert_eq!(self.fs.0.read_link(*ino), Ok(node.target.clone())),
                _ => {}
            }
        }
        let handles = self.reference.handles.iter();
        let handles: Vec<_> = handles.map(|(fh, handle)| (*fh, handle.ino)).collect();
        for (fh, ino) in handles {
            self.look(ino, Some(fh));
        }
    }

    fn end(self, layer: &Layer, end: End) -> Reference {
        let Self {
            fs, mut reference, ..
        } = self;
        let start = Timestamp::now();
        match end {
            End::Orderly => {
                fs.finish();
                reference.publish_all(When(start, Timestamp::now()));
            }
            End::Aborted => fs.abort(),
            End::Crash => {
                fs.barrier();
                let mounted = std::sync::Arc::downgrade(&fs.0);
                let commits = || mounted.upgrade().expect("mounted").vault().state().commit;
                layer.crash_while(commits, || fs.abort());
            }
        }
        expect_clean(layer);
        reference.cut();
        reference
    }
}

fn expect_clean(layer: &Layer) -> secretfs::vault::CheckReport {
    let report = layer.check();
    assert_eq!(report.problem_count, 0, "{:?}", report.problems);
    report
}

fn open(layer: &Layer, reference: Option<Reference>, (size, memory): (u64, u64)) -> Both {
    let fs = layer.open_with(size, memory);
    // Replacing keys is gone on with by itself; from here on nothing is done that is not asked for.
    wait_for("the end of what was begun", Duration::from_secs(60), || {
        !fs.0.vault().is_rotating()
    });
    let reference = reference.unwrap_or_else(|| Reference::new(&fs.getattr(ROOT, None).unwrap()));
    let mut both = Both {
        fs,
        reference,
        streams: Default::default(),
    };
    (both.reference.max_size, both.reference.max_memory) = (size, memory);
    both
}

fn play(runs: &[Run]) {
    let layer = Layer::in_memory();
    let mut reference = None;
    for run in runs {
        let mut both = open(&layer, reference, run.limits);
        for request in &run.requests {
            both.ask(request);
            both.note_names();
        }
        both.compare();
        reference = Some(both.end(&layer, run.end));
    }
    // What is there after all that, all left-overs being gone.
    let mut both = open(&layer, reference, LIMITS[0]);
    both.compare();
    let reference = both.end(&layer, End::Orderly);
    let report = expect_clean(&layer);
    let expected = (
        reference.nodes.len() as u64 + 1,
        reference.entries(),
        reference.versions(),
    );
    assert_eq!(
        (report.nodes, report.entries, report.versions),
        expected,
        "nodes, names and versions"
    );
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(CASES),
        max_shrink_iters: 400,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource(
            "proptest-regressions"
        ))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn requests_are_answered_as_promised_and_everything_is_there_after_reopening(
        runs in prop::collection::vec(run(), 1..4)
    ) {
        play(&runs);
    }
}
