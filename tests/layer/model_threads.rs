//! Many threads at once on the file system layer: whatever they do, every request is answered,
//! readers see whole contents of one writer, and the vault is consistent afterwards.
//!
//! `SECRETFS_STRESS_ROUNDS=100` for a longer campaign.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use libc::{ENOENT, ENOSPC, O_APPEND, O_RDONLY, O_RDWR, O_TRUNC, O_WRONLY};
use secretfs::fs::{Ending, Errno, SetAttributes};
use secretfs::vault::{Kind, RenameMode};

use crate::support::layer::{Layer, Served};
use crate::support::load::rounds;
use crate::support::reference::ROOT;

const THREADS: u32 = 6;
const STEPS: u32 = 100;
const SIZES: [usize; 6] = [16, 256, 4096, 65_536, 65_552, 200_000];

/// Always replaced as a whole; the second also by renaming over it.
const REPLACED: [&[u8]; 2] = [b"replaced", b"renamed-over"];
/// Replaced as a whole, and written in place by one at a time.
const MIXED: &[u8] = b"mixed";
/// Anything may happen to these.
const ROUGH: [&[u8]; 3] = [b"rough", b"rougher", b"roughest"];

/// SplitMix64: what happens should depend on a seed and on the scheduler alone.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u32) -> u32 {
        (self.next() % u64::from(bound)) as u32
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u32) as usize]
    }
}

/// A content in which every 16 bytes say whose it is, how long it is, and where they belong.
fn content(writer: u32, length: usize) -> Vec<u8> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let mut bytes = vec![0; length / 16 * 16];
    for (index, block) in bytes.chunks_exact_mut(16).enumerate() {
        let words = [writer, number, length as u32, index as u32];
        for (place, word) in block.chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
    }
    bytes
}

#[track_caller]
fn expect_whole(content: &[u8]) {
    let word = |at: usize| content.get(at..at + 4).expect("a whole block");
    for (index, block) in content.chunks(16).enumerate() {
        assert_eq!(block[..12], content[..12], "block {index} is another's");
        assert_eq!(block[12..], (index as u32).to_le_bytes(), "misplaced");
    }
    assert_eq!(
        word(8),
        (content.len() as u32).to_le_bytes(),
        "cut off or extended"
    );
}

struct Stress {
    fs: Served,
    /// Memory may run short: a writer that is told so leaves nothing behind but its truncation.
    short: bool,
    /// The mount may end at any time: everything may fail.
    ended: AtomicBool,
    in_place: Mutex<()>,
}

impl Stress {
    fn may_fail(&self, errno: Errno) -> bool {
        self.ended.load(Ordering::Relaxed) || (self.short && errno.0 == ENOSPC)
    }

    /// What an operation came to; nothing when it failed as it may.
    #[track_caller]
    fn fine<T>(&self, result: Result<T, Errno>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(errno) if self.may_fail(errno) => None,
            Err(errno) => panic!("unexpected error {errno:?}"),
        }
    }

    /// Opens what a name names now: it may name something else by the time it is opened.
    fn open(&self, name: &[u8], flags: i32) -> Option<u64> {
        loop {
            let found = self.fs.lookup(ROOT, name).map(|attr| attr.ino);
            match self.fine(found).map(|ino| self.fs.open(ino, flags))? {
                Err(Errno(ENOENT)) => {}
                opened => return self.fine(opened),
            }
        }
    }

    fn close(&self, fh: u64) {
        self.fine(self.fs.flush(fh));
        self.fs.release(fh);
    }

    fn replace(&self, name: &[u8], bytes: &[u8], dice: &mut Dice) -> Option<()> {
        let fh = self.open(name, O_TRUNC | dice.pick(&[O_WRONLY, O_RDWR]))?;
        // Whoever writes in pieces leaves a piece when there is no room for the rest.
        let piece = match self.short {
            true => bytes.len(),
            false => dice.pick(&[bytes.len(), 4096, 70_000]),
        };
        let mut offset = 0;
        for piece in bytes.chunks(piece) {
            if self.fine(self.fs.write(fh, offset, piece)).is_none() {
                break;
            }
            offset += piece.len() as u64;
        }
        self.close(fh);
        Some(())
    }

    fn replace_by_rename(&self, thread: u32, bytes: &[u8]) -> Option<()> {
        let name = format!("new-{thread}");
        let flags = O_WRONLY | libc::O_EXCL;
        let created = self.fs.try_create(ROOT, name.as_bytes(), 0o600, flags);
        let (_, fh) = self.fine(created)?;
        let written = self.fine(self.fs.write(fh, 0, bytes));
        self.close(fh);
        match written {
            Some(_) => {
                let (from, to) = ((ROOT, name.as_bytes()), (ROOT, REPLACED[1]));
                self.fine(self.fs.rename(from, to, RenameMode::Replace))
            }
            None => self.fine(self.fs.unlink(ROOT, name.as_bytes())),
        }
    }

    fn write_in_place(&self, bytes: &[u8]) -> Option<()> {
        let _alone = self.in_place.lock().unwrap_or_else(PoisonError::into_inner);
        let ino = self.fine(self.fs.lookup(ROOT, MIXED))?.ino;
        let fh = self.open(MIXED, O_RDWR)?;
        // First what may fail, so that a failure leaves the content as it was.
        if self.fine(self.fs.write(fh, 0, bytes)).is_some() {
            let set = SetAttributes {
                size: Some(bytes.len() as u64),
                ..SetAttributes::default()
            };
            self.fine(self.fs.setattr(ino, Some(fh), set).map(drop));
        }
        self.close(fh);
        // Its draft is over only when it has been published.
        self.fine(self.fs.lookup(ROOT, MIXED).map(drop))
    }

    fn expect_content(&self, content: &[u8]) {
        // An orderly end publishes what is half written; where memory is short, files stay empty
        // that were only truncated.
        let ended = self.ended.load(Ordering::Relaxed);
        if !(ended || self.short && content.is_empty()) {
            expect_whole(content);
        }
    }

    /// Reads in pieces: replacements must not get in between.
    fn read_in_pieces(&self, name: &[u8], dice: &mut Dice) -> Option<()> {
        let fh = self.open(name, O_RDONLY)?;
        let size = dice.pick(&[512, 4096, 65_536, 131_072]);
        for _ in 0..1 + dice.below(3) {
            let mut content = Vec::new();
            while let Some(piece) = self.fine(self.fs.read(fh, content.len() as u64, size)) {
                let end = piece.len() < size as usize;
                content.extend_from_slice(&piece);
                if end {
                    self.expect_content(&content);
                    break;
                }
            }
        }
        self.fs.release(fh);
        Some(())
    }

    fn read_at_once(&self, name: &[u8]) -> Option<()> {
        let fh = self.open(name, O_RDONLY)?;
        if let Some(content) = self.fine(self.fs.read(fh, 0, 1 << 20)) {
            self.expect_content(&content);
        }
        self.fs.release(fh);
        Some(())
    }

    /// What was closed is what is read, with whatever the others do.
    fn read_back(&self, thread: u32, dice: &mut Dice) -> Option<()> {
        let name = format!("own-{thread}");
        let bytes = content(thread, dice.pick(&SIZES));
        let full = dice.below(3) > 0;
        let fh = self.open(name.as_bytes(), O_WRONLY | O_TRUNC)?;
        let written = full.then(|| self.fine(self.fs.write(fh, 0, &bytes)));
        self.close(fh);
        let fh = self.open(name.as_bytes(), O_RDONLY)?;
        let read = self.fine(self.fs.read(fh, 0, 1 << 20));
        self.fs.release(fh);
        let expected = match written {
            Some(Some(_)) => &bytes[..],
            _ => &[],
        };
        if !self.ended.load(Ordering::Relaxed) {
            assert!(
                read.is_none_or(|read| read == expected),
                "not what was closed"
            );
        }
        Some(())
    }

    /// Anything at all to a file that others use: answers do not matter, but there must be some.
    fn be_rough(&self, dice: &mut Dice) {
        let (name, other) = (dice.pick(&ROUGH), dice.pick(&ROUGH));
        let size = || SetAttributes {
            size: Some(70_000),
            ..SetAttributes::default()
        };
        let found = self.fs.lookup(ROOT, name).map(|attr| attr.ino);
        let Ok(ino) = found else {
            let _ = self
                .fs
                .try_create(ROOT, name, 0o644, O_RDWR)
                .map(|(_, fh)| self.fs.release(fh));
            return;
        };
        match dice.below(10) {
            0 => drop(self.fs.setattr(ino, None, size())),
            1 => drop(self.fs.unlink(ROOT, name)),
            2 => drop(self.fs.link(ino, ROOT, other)),
            3 => drop(
                self.fs
                    .rename((ROOT, name), (ROOT, other), RenameMode::Replace),
            ),
            4 => drop(
                self.fs
                    .rename((ROOT, name), (ROOT, other), RenameMode::Exchange),
            ),
            5 => drop(self.fs.set_xattr(ino, b"user.a", &[7; 100], 0)),
            6 => drop(self.fs.make(ROOT, name, Kind::Fifo)),
            _ => {
                let flags = dice.pick(&[O_RDWR, O_RDWR | O_TRUNC, O_RDWR | O_APPEND, O_WRONLY]);
                let Ok(fh) = self.fs.open(ino, flags) else {
                    return;
                };
                for _ in 0..dice.below(6) {
                    self.be_rough_to(fh, ino, dice);
                }
                self.fs.release(fh);
            }
        }
    }

    fn be_rough_to(&self, fh: u64, ino: u64, dice: &mut Dice) {
        let offset = u64::from(dice.below(100_000));
        let set = SetAttributes {
            size: Some(offset),
            ..SetAttributes::default()
        };
        match dice.below(8) {
            0 => drop(self.fs.setattr(ino, Some(fh), set)),
            1 => drop(self.fs.flush(fh)),
            2 => drop(self.fs.fsync(fh)),
            3 => drop(self.fs.read(fh, offset, 100_000)),
            4 => drop(self.fs.allocate(fh, (offset, 1000), 0)),
            5 => drop(self.fs.copy_range((fh, offset), (fh, 0), 50_000)),
            6 => drop(self.fs.getattr(ino, Some(fh))),
            _ => drop(self.fs.write(fh, offset, &[1; 3000])),
        }
    }

    fn step(&self, thread: u32, dice: &mut Dice) {
        let bytes = content(thread, dice.pick(&SIZES));
        let name = dice.pick(&REPLACED);
        let _ = match dice.below(12) {
            0 | 1 => self.replace(name, &bytes, dice),
            2 => self.replace_by_rename(thread, &bytes),
            3 => self.replace(MIXED, &bytes, dice),
            4 => self.write_in_place(&bytes),
            5 | 6 => self.read_in_pieces(name, dice),
            7 => self.read_at_once(MIXED),
            8 => self.read_back(thread, dice),
            9 => self.fine(self.fs.list(ROOT).map(drop)),
            _ => {
                self.be_rough(dice);
                None
            }
        };
    }
}

fn prepare(fs: &Served) {
    let own: Vec<String> = (0..THREADS).map(|thread| format!("own-{thread}")).collect();
    let own = own.iter().map(|name| name.as_bytes());
    for name in REPLACED.into_iter().chain([MIXED]).chain(own) {
        let (_, fh) = fs.create(ROOT, name, 0o600);
        fs.write(fh, 0, &content(99, 4096)).unwrap();
        fs.flush(fh).unwrap();
        fs.release(fh);
    }
}

/// How a round ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// After the last request.
    Idle,
    /// In the middle of everything.
    Busy,
}

fn play(seed: u64, max_memory: u64, end: End) {
    // What an EIO was about.
    let _ = tracing_subscriber::fmt().with_test_writer().try_init();
    let layer = Layer::in_memory();
    let stress = Stress {
        // Threads may have to wait long for their turn.
        fs: layer.open_patiently(16 << 20, max_memory, Duration::from_secs(3600)),
        short: max_memory < 16 << 20,
        ended: AtomicBool::new(false),
        in_place: Mutex::new(()),
    };
    prepare(&stress.fs);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let stress = &stress;
            scope.spawn(move || {
                let mut dice = Dice(seed << 8 | u64::from(thread));
                for _ in 0..STEPS {
                    stress.step(thread, &mut dice);
                }
            });
        }
        if end == End::Busy {
            std::thread::sleep(Duration::from_millis(150 + seed % 7 * 50));
            stress.ended.store(true, Ordering::Relaxed);
            // What is closed after it cannot be stored any more, and counts as lost.
            let _ = stress.fs.0.finish(Ending::Orderly);
        }
    });
    assert_eq!(
        stress.fs.0.open_files(),
        0,
        "all that was opened was closed"
    );
    if end == End::Idle {
        stress.fs.finish();
    } else {
        drop(stress);
    }
    expect_consistent(&layer, max_memory < 16 << 20, end);
}

fn expect_consistent(layer: &Layer, may_be_empty: bool, end: End) {
    let report = layer.check();
    assert_eq!(report.problem_count, 0, "{:?}", report.problems);
    let fs = layer.open();
    let mut files = std::collections::BTreeSet::new();
    for (name, ino) in fs.list(ROOT).unwrap() {
        let is_file = fs.getattr(ino, None).unwrap().kind == Kind::File;
        if is_file && fs.0.get_xattr(ino, b"user.secretfs.version") != Ok(b"0".to_vec()) {
            files.insert(ino);
        }
        if REPLACED.contains(&&name[..]) || name == MIXED {
            let content = fs.read_all(ino).unwrap();
            // See `expect_content`.
            if end == End::Idle && !(may_be_empty && content.is_empty()) {
                expect_whole(&content);
            }
        }
    }
    fs.finish();
    let report = layer.check();
    assert_eq!(report.problem_count, 0, "{:?}", report.problems);
    assert_eq!(report.versions, files.len() as u64, "one version a file");
}

#[test]
fn threads_are_answered_and_read_whole_contents() {
    for seed in 0..rounds() as u64 {
        play(seed, 256 << 20, End::Idle);
    }
}

#[test]
fn threads_that_run_out_of_memory_are_answered_and_read_whole_contents() {
    for seed in 0..rounds() as u64 {
        play(seed + 1000, 900_000, End::Idle);
    }
}

#[test]
fn a_mount_that_ends_while_threads_use_it_answers_them() {
    for seed in 0..rounds() as u64 {
        play(seed + 2000, 256 << 20, End::Busy);
    }
}
