//! Writers who know what must be found again however their mount ended, and readers who know a torn
//! secret when they see one.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::tree::closed;

/// How many times as long as usual tests are to take: `SECRETFS_STRESS_ROUNDS`.
pub fn rounds() -> usize {
    let rounds = std::env::var("SECRETFS_STRESS_ROUNDS");
    rounds.map_or(1, |rounds| rounds.parse().expect("a number"))
}

/// SplitMix64: what happens depends on a seed and on the scheduler alone.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.roll(of.len() as u64) as usize]
    }
}

/// Always replaced as a whole.
const WHOLE: [&str; 6] = [
    "whole-0", "whole-1", "whole-2", "whole-3", "whole-4", "whole-5",
];
/// Appended to, overwritten and truncated in place, but always by whole pieces.
const EDITED: [&str; 3] = ["edited-0", "edited-1", "edited-2"];
const DIRECTORIES: [&str; 2] = ["directory-0/", "directory-1/"];
const DRAFT: &str = "draft";

const WHOLE_SIZES: [usize; 5] = [16, 304, 5_008, 70_000, 200_000];
const PIECE_SIZES: [usize; 4] = [16, 304, 4_096, 10_000];
/// One `read` gets it all, so that a reader sees one version however often it is edited.
const MAX_EDITED: usize = 60_000;

/// A piece in which every 16 bytes say whose it is, which, how long, and where they belong.
fn piece(writer: u32, number: u32, length: usize) -> Vec<u8> {
    let blocks = (0..length as u32 / 16).flat_map(|index| [writer, number, length as u32, index]);
    blocks.flat_map(u32::to_le_bytes).collect()
}

/// The lengths of the whole pieces of `writer` of which `bytes` consists; `None` when it does not.
fn pieces(writer: u32, mut bytes: &[u8]) -> Option<Vec<usize>> {
    let mut lengths = Vec::new();
    while !bytes.is_empty() {
        let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let length = word(8)? as usize;
        let found = bytes.get(..length)?;
        if word(0)? != writer || length == 0 || found != piece(writer, word(4)?, length) {
            return None;
        }
        lengths.push(length);
        bytes = &bytes[length..];
    }
    Some(lengths)
}

/// What a writer's directory holds: names of files and, with a slash, of empty directories.
#[derive(Clone, Default)]
pub struct World {
    names: BTreeMap<String, u64>,
    contents: BTreeMap<u64, Arc<Vec<u8>>>,
}

impl World {
    /// What is in `directory`; reads all of it.
    pub fn found_in(directory: &Path) -> Self {
        let mut world = Self::default();
        let entries = std::fs::read_dir(directory).expect("a directory");
        for entry in entries {
            let entry = entry.expect("an entry");
            let name = entry.file_name().into_string().expect("UTF-8");
            let found = entry.metadata().expect("a node");
            if found.is_dir() {
                let mut inside = std::fs::read_dir(entry.path()).expect("a directory");
                assert!(inside.next().is_none(), "{name} is not empty");
                world.add(&format!("{name}/"), found.ino(), Vec::new());
            } else {
                let content = std::fs::read(entry.path()).expect("readable");
                assert_eq!(found.len(), content.len() as u64, "{name} has another size");
                world.add(&name, found.ino(), content);
            }
        }
        for (name, id) in &world.names {
            let links = world.names.values().filter(|other| *other == id).count() as u64;
            let found = std::fs::metadata(directory.join(name)).expect("a node");
            assert!(found.is_dir() || found.nlink() == links, "links of {name}");
        }
        world
    }

    fn add(&mut self, name: &str, id: u64, content: Vec<u8>) {
        self.names.insert(name.to_owned(), id);
        self.contents.insert(id, Arc::new(content));
        self.forget_nameless();
    }

    fn remove(&mut self, name: &str) -> u64 {
        let id = self.names.remove(name).expect("a name");
        self.forget_nameless();
        id
    }

    fn forget_nameless(&mut self) {
        let names = &self.names;
        self.contents
            .retain(|id, _| names.values().any(|named| named == id));
    }

    fn content(&self, name: &str) -> Option<&Arc<Vec<u8>>> {
        self.contents.get(self.names.get(name)?)
    }

    /// The content of every name, and the first name of the same file.
    fn shape(&self) -> BTreeMap<&str, (&str, &[u8])> {
        let first = |id: &u64| {
            let mut names = self.names.iter();
            let (name, _) = names.find(|(_, other)| *other == id).expect("a name");
            name.as_str()
        };
        let names = self.names.iter();
        names
            .map(|(name, id)| (name.as_str(), (first(id), self.contents[id].as_slice())))
            .collect()
    }

    /// Files in it.
    pub fn len(&self) -> u64 {
        self.names
            .keys()
            .filter(|name| !name.ends_with('/'))
            .count() as u64
    }

    /// For people: names, lengths, and the number of the last piece.
    pub fn summary(&self) -> String {
        let describe = |(name, (first, content)): (&str, (&str, &[u8]))| {
            let number = content
                .get(4..8)
                .map(|b| u32::from_le_bytes(b.try_into().expect("4")));
            let number = number.map_or("none".into(), |number| number.to_string());
            format!(
                "{name}={first}: {} bytes, first piece {number}",
                content.len()
            )
        };
        self.shape()
            .into_iter()
            .map(describe)
            .collect::<Vec<_>>()
            .join("; ")
    }
}

impl PartialEq for World {
    fn eq(&self, other: &Self) -> bool {
        self.shape() == other.shape()
    }
}

macro_rules! deeds {
    ($($deed:ident: $name:literal,)*) => {
        #[derive(Clone, Copy)]
        pub enum Deed { $($deed),* }
        const DEEDS: &[&str] = &[$($name),*];
    };
}

deeds! {
    Make: "made",
    Replace: "replaced",
    Sync: "synced",
    Append: "appended to",
    Overwrite: "overwritten",
    Truncate: "truncated",
    Rename: "renamed",
    Link: "linked",
    Unlink: "unlinked",
    ReadNameless: "read without a name",
    Directory: "directories made, renamed or removed",
}

/// What writers and readers did, and what they are told.
pub struct Tally {
    deeds: Vec<AtomicU64>,
    reads: AtomicU64,
    /// The mount is being ended: everything may fail from here on.
    pub ending: AtomicBool,
    /// Writers and readers stop by themselves.
    pub stop: AtomicBool,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            deeds: DEEDS.iter().map(|_| AtomicU64::new(0)).collect(),
            reads: AtomicU64::new(0),
            ending: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        }
    }
}

impl Tally {
    pub fn deeds(&self) -> u64 {
        self.deeds
            .iter()
            .map(|deed| deed.load(Ordering::Relaxed))
            .sum()
    }

    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    pub fn by_kind(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = self.deeds.iter().map(|deed| deed.load(Ordering::Relaxed));
        DEEDS.iter().copied().zip(counts)
    }

    fn done(&self, deed: Deed) {
        self.deeds[deed as usize].fetch_add(1, Ordering::Relaxed);
    }

    fn stops(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// An error is a fault unless the mount is being ended.
    #[track_caller]
    fn must_be_ending(&self, error: &io::Error, what: &dyn std::fmt::Display) {
        let ending = self.ending.load(Ordering::SeqCst);
        assert!(ending, "{what}: {error} while the mount is served");
    }
}

/// A writer in a directory of its own.
pub struct Writer {
    number: u32,
    directory: PathBuf,
    dice: Dice,
    /// What was acknowledged, and what the deed under way leads to.
    world: World,
    next: Option<World>,
    last_id: u64,
    last_piece: u32,
}

impl Writer {
    /// Makes its directory below `point`.
    pub fn new(point: &Path, number: u32, seed: u64) -> Self {
        let directory = directory_of(point, number);
        std::fs::create_dir(&directory).expect("made");
        Self {
            number,
            directory,
            dice: Dice(seed ^ u64::from(number) << 32),
            world: World::default(),
            next: None,
            // Above those of the vault, which take their place after each mount.
            last_id: 1 << 63,
            last_piece: 0,
        }
    }

    /// Works until the mount is gone or `tally` says stop.
    pub fn run(&mut self, tally: &Tally) {
        while !tally.stops() {
            match self.act() {
                Ok(Some(deed)) => tally.done(deed),
                Ok(None) => {}
                Err(error) => {
                    return tally.must_be_ending(&error, &format_args!("writer {}", self.number));
                }
            }
        }
    }

    /// Compares what is there after a mount with what may be there; returns how many files were
    /// read.
    #[track_caller]
    pub fn expect_what_was_acknowledged(&mut self) -> u64 {
        let found = World::found_in(&self.directory);
        let possible: Vec<World> = [Some(std::mem::take(&mut self.world)), self.next.take()]
            .into_iter()
            .flatten()
            .collect();
        assert!(
            possible.contains(&found),
            "{:?}: found [{}], possible were [{}]",
            self.directory,
            found.summary(),
            possible
                .iter()
                .map(World::summary)
                .collect::<Vec<_>>()
                .join("] or ["),
        );
        self.world = found;
        self.world.len()
    }

    fn step<T>(&mut self, next: World, deed: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
        self.next = Some(next);
        let value = deed(&self.directory)?;
        self.world = self.next.take().expect("just put there");
        Ok(value)
    }

    fn id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    fn piece(&mut self, sizes: &[usize]) -> Vec<u8> {
        self.last_piece += 1;
        piece(self.number, self.last_piece, self.dice.pick(sizes))
    }

    fn act(&mut self) -> io::Result<Option<Deed>> {
        let whole = self.dice.pick(&WHOLE);
        let edited = self.dice.pick(&EDITED);
        match self.dice.roll(20) {
            0..=2 => self.make(whole, &WHOLE_SIZES),
            3 => self.make(edited, &PIECE_SIZES),
            4..=8 => self.replace(whole),
            9..=11 => self.edit(edited),
            12 => self.truncate(edited),
            13 => self.rename(whole, &WHOLE),
            14 => self.rename(edited, &EDITED),
            15 => self.link(whole),
            16 => self.unlink(whole),
            17 => self.unlink(edited),
            18 => self.read_nameless(whole),
            _ => self.change_directories(),
        }
    }

    /// A new file appears under its name whole: the first content of a new file may be read while
    /// it is written.
    fn make(&mut self, name: &'static str, sizes: &[usize]) -> io::Result<Option<Deed>> {
        // One that a kill left would be replaced, not made.
        self.unlink(DRAFT)?;
        let id = self.id();
        let mut next = self.world.clone();
        next.add(DRAFT, id, Vec::new());
        let mut file = self.step(next.clone(), |at| File::create(at.join(DRAFT)))?;
        let content = self.piece(sizes);
        next.add(DRAFT, id, content.clone());
        let synced = self.dice.roll(3) == 0;
        self.step(next.clone(), |_| {
            file.write_all(&content)?;
            if synced {
                file.sync_all()?;
            }
            closed(file)
        })?;
        next.remove(DRAFT);
        next.add(name, id, content);
        self.step(next, |at| std::fs::rename(at.join(DRAFT), at.join(name)))?;
        Ok(Some(Deed::Make))
    }

    fn replace(&mut self, name: &'static str) -> io::Result<Option<Deed>> {
        let Some(id) = self.world.names.get(name).copied() else {
            return Ok(None);
        };
        let content = self.piece(&WHOLE_SIZES);
        let mut next = self.world.clone();
        next.contents.insert(id, Arc::new(content.clone()));
        let synced = self.dice.roll(3) == 0;
        self.step(next, |at| {
            let mut file = File::options()
                .write(true)
                .truncate(true)
                .open(at.join(name))?;
            let (first, second) = content.split_at(content.len() / 2);
            file.write_all(first)?;
            file.write_all(second)?;
            if synced {
                file.sync_all()?;
            }
            closed(file)
        })?;
        Ok(Some(if synced { Deed::Sync } else { Deed::Replace }))
    }

    /// Appends a piece, or overwrites one in its place.
    fn edit(&mut self, name: &'static str) -> io::Result<Option<Deed>> {
        let Some(old) = self.world.content(name).cloned() else {
            return Ok(None);
        };
        let lengths = pieces(self.number, &old).expect("whole pieces");
        let mut content = old.to_vec();
        let mut next = self.world.clone();
        let id = next.names[name];
        let room = MAX_EDITED - old.len() >= 10_000;
        if room && (lengths.is_empty() || self.dice.roll(2) == 0) {
            let more = self.piece(&PIECE_SIZES);
            content.extend_from_slice(&more);
            next.contents.insert(id, Arc::new(content));
            self.step(next, |at| {
                let mut file = OpenOptions::new().append(true).open(at.join(name))?;
                file.write_all(&more)?;
                closed(file)
            })?;
            return Ok(Some(Deed::Append));
        }
        let index = self.dice.roll(lengths.len() as u64) as usize;
        let at: usize = lengths[..index].iter().sum();
        let new = self.piece(&[lengths[index]]);
        content[at..at + new.len()].copy_from_slice(&new);
        next.contents.insert(id, Arc::new(content));
        self.step(next, |directory| {
            let file = File::options().write(true).open(directory.join(name))?;
            file.write_all_at(&new, at as u64)?;
            closed(file)
        })?;
        Ok(Some(Deed::Overwrite))
    }

    /// `truncate` by path, which opens nothing.
    fn truncate(&mut self, name: &'static str) -> io::Result<Option<Deed>> {
        let Some(old) = self.world.content(name).cloned() else {
            return Ok(None);
        };
        let lengths = pieces(self.number, &old).expect("whole pieces");
        let kept = self.dice.roll(lengths.len() as u64 + 1) as usize;
        let length: usize = lengths[..kept].iter().sum();
        let mut next = self.world.clone();
        let id = next.names[name];
        next.contents.insert(id, Arc::new(old[..length].to_vec()));
        self.step(next, |at| {
            Ok(nix::unistd::truncate(&at.join(name), length as i64)?)
        })?;
        Ok(Some(Deed::Truncate))
    }

    fn rename(&mut self, name: &'static str, to: &[&'static str]) -> io::Result<Option<Deed>> {
        let other = self.dice.pick(to);
        let mut next = self.world.clone();
        match next.names.get(name) {
            Some(id) if next.names.get(other) != Some(id) => {}
            // Of two names of one file, rename(2) removes none.
            _ => return Ok(None),
        }
        let id = next.names.remove(name).expect("just seen");
        next.names.insert(other.to_owned(), id);
        next.forget_nameless();
        self.step(next, |at| std::fs::rename(at.join(name), at.join(other)))?;
        Ok(Some(Deed::Rename))
    }

    fn link(&mut self, name: &'static str) -> io::Result<Option<Deed>> {
        let other = self.dice.pick(&WHOLE);
        let mut next = self.world.clone();
        match next.names.get(name).copied() {
            Some(id) if !next.names.contains_key(other) => next.names.insert(other.to_owned(), id),
            _ => return Ok(None),
        };
        self.step(next, |at| std::fs::hard_link(at.join(name), at.join(other)))?;
        Ok(Some(Deed::Link))
    }

    fn unlink(&mut self, name: &'static str) -> io::Result<Option<Deed>> {
        let mut next = self.world.clone();
        if next.names.contains_key(name) {
            next.remove(name);
            self.step(next, |at| std::fs::remove_file(at.join(name)))?;
            return Ok(Some(Deed::Unlink));
        }
        Ok(None)
    }

    /// What is open can be read when its name is gone.
    fn read_nameless(&mut self, name: &'static str) -> io::Result<Option<Deed>> {
        let Some(content) = self.world.content(name).cloned() else {
            return Ok(None);
        };
        let mut file = File::open(self.directory.join(name))?;
        self.unlink(name)?;
        let mut found = Vec::new();
        file.read_to_end(&mut found)?;
        assert!(
            found == *content,
            "{name} was removed, and reads differently"
        );
        Ok(Some(Deed::ReadNameless))
    }

    fn change_directories(&mut self) -> io::Result<Option<Deed>> {
        let (name, other) = (self.dice.pick(&DIRECTORIES), self.dice.pick(&DIRECTORIES));
        let mut next = self.world.clone();
        if !next.names.contains_key(name) {
            next.add(name, self.id(), Vec::new());
            self.step(next, |at| std::fs::create_dir(at.join(name)))?;
        } else if name == other {
            next.remove(name);
            self.step(next, |at| std::fs::remove_dir(at.join(name)))?;
        } else {
            let id = next.remove(name);
            next.add(other, id, Vec::new());
            self.step(next, |at| std::fs::rename(at.join(name), at.join(other)))?;
        }
        Ok(Some(Deed::Directory))
    }
}

fn directory_of(point: &Path, writer: u32) -> PathBuf {
    point.join(format!("writer-{writer}"))
}

/// Reads files of `writers` writers until `tally` says stop; each content must be a whole one.
pub fn read(point: &Path, writers: u32, seed: u64, tally: &Tally) {
    let mut dice = Dice(seed);
    let mut buffer = vec![0; 256 << 10];
    while !tally.stops() {
        let writer = dice.roll(u64::from(writers)) as u32;
        let edited = dice.roll(3) == 0;
        let name = dice.pick(if edited { &EDITED[..] } else { &WHOLE[..] });
        let path = directory_of(point, writer).join(name);
        match read_one(&path, edited, &mut buffer) {
            Ok(length) => {
                let whole = pieces(writer, &buffer[..length]);
                let torn = whole.is_none_or(|pieces| !edited && pieces.len() != 1);
                assert!(!torn, "{path:?} is torn: {length} bytes");
                tally.reads.fetch_add(1, Ordering::Relaxed);
            }
            // Not there now, or the mount is not.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                std::thread::yield_now();
            }
            Err(error) => return tally.must_be_ending(&error, &path.display()),
        }
    }
}

fn read_one(path: &Path, edited: bool, buffer: &mut [u8]) -> io::Result<usize> {
    let mut file = File::open(path)?;
    let mut length = 0;
    loop {
        let read = file.read(&mut buffer[length..])?;
        length += read;
        // A second read of what is edited would go on in what is there by then.
        if read == 0 || edited {
            return Ok(length);
        }
    }
}
