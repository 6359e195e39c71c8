//! The power is cut: what was acknowledged as durable is there, of what came after it a beginning,
//! and nothing else. Everything that the vault, its lock and its anchor write is recorded below the
//! C library, and what a disk may be left with at some point of it is opened as a vault.
//!
//! `SECRETFS_STRESS_ROUNDS=20` for twenty times as many cuts.

#[path = "support/interpose.rs"]
mod interpose;
mod support;

use std::collections::BTreeMap;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use libc::{O_RDONLY, O_RDWR, O_TRUNC, O_WRONLY};
use secretfs::fs::{Errno, SetAttributes};
use secretfs::vault::{Failure, InitOptions, Kind, RenameMode, check, init};

use support::disk::{Disk, Event, FileId, Image};
use support::layer::{Layer, Served};
use support::load::{Dice, rounds};
use support::reference::ROOT;

const NAMES: [&str; 8] = ["a", "b", "c", "d", "e", "below/f", "below/g", "below/h"];
/// Threads that look at cuts.
const SHARES: usize = 4;
const DIRECTORY: &str = "below/directory/";
/// How long contents are.
type Sizes = &'static [usize];
const SMALL: Sizes = &[1, 100, 700, 2_000, 5_000, 9_000, 66_000, 140_000];
/// All but the first are stored in pieces, in two to four transactions.
const LARGE: Sizes = &[700, 1_100_000, 2_200_000, 3_300_000];

/// What a worker's directory holds: names, the first name of the same file, contents.
type State = BTreeMap<String, (String, Arc<Vec<u8>>)>;

fn state_of(names: &BTreeMap<String, u64>, contents: &BTreeMap<u64, Arc<Vec<u8>>>) -> State {
    let mut first = BTreeMap::new();
    let mut state = State::new();
    for (name, id) in names {
        let first: &String = first.entry(id).or_insert(name);
        state.insert(name.clone(), (first.clone(), Arc::clone(&contents[id])));
    }
    state
}

/// Bytes of the files that a worker's directory holds.
fn bytes_of(state: &State) -> u64 {
    let once = state.iter().filter(|(name, (first, _))| *name == first);
    once.map(|(_, (_, content))| content.len() as u64).sum()
}

/// Changes a directory of its own, and remembers every state that it went through.
struct Worker {
    number: usize,
    directory: u64,
    below: u64,
    dice: Dice,
    sizes: Sizes,
    names: BTreeMap<String, u64>,
    contents: BTreeMap<u64, Arc<Vec<u8>>>,
    states: Vec<State>,
}

impl Worker {
    fn new(served: &Served, number: usize, seed: u64, sizes: Sizes) -> Self {
        let name = format!("worker-{number}");
        let made = |parent, name: &[u8]| served.make(parent, name, Kind::Directory).unwrap().ino;
        let directory = made(ROOT, name.as_bytes());
        Self {
            number,
            directory,
            below: made(directory, b"below"),
            dice: Dice(seed ^ (number as u64) << 40),
            sizes,
            names: BTreeMap::new(),
            contents: BTreeMap::new(),
            states: vec![State::new()],
        }
    }

    fn place<'n>(&self, name: &'n str) -> (u64, &'n [u8]) {
        match name.strip_prefix("below/") {
            Some(name) => (self.below, name.trim_end_matches('/').as_bytes()),
            None => (self.directory, name.as_bytes()),
        }
    }

    /// The names and contents are what is being done from here on.
    fn begin(&mut self) {
        self.states.push(state_of(&self.names, &self.contents));
        interpose::note(Event::Begun(self.number, self.states.len() - 1));
    }

    fn acknowledged(&self) {
        interpose::note(Event::Acknowledged(self.number, self.states.len() - 1));
    }

    fn content(&mut self) -> Vec<u8> {
        let size = self.dice.pick(self.sizes);
        let word = self.dice.roll(u64::MAX).to_le_bytes();
        word.into_iter().cycle().take(size).collect()
    }

    fn act(&mut self, served: &Served) {
        let name = self.dice.pick(&NAMES);
        let known = self.names.get(name).copied();
        let other = self.dice.pick(&NAMES);
        let other_known = self.names.get(other).copied();
        match (self.dice.roll(16), known) {
            (0..=5, None) => self.create(served, name),
            (0..=3, Some(id)) => self.replace(served, id),
            (4..=6, Some(id)) => self.edit(served, id),
            (7, Some(id)) => self.truncate(served, id),
            (8, Some(id)) if other_known != Some(id) => {
                let id = self.names.remove(name).unwrap_or(id);
                self.names.insert(other.into(), id);
                self.begin();
                let (from, to) = (self.place(name), self.place(other));
                served.rename(from, to, RenameMode::Replace).unwrap();
            }
            (9, Some(id)) if other_known.is_some_and(|other| other != id) => {
                self.names.insert(name.into(), other_known.unwrap_or(id));
                self.names.insert(other.into(), id);
                self.begin();
                let (from, to) = (self.place(name), self.place(other));
                served.rename(from, to, RenameMode::Exchange).unwrap();
            }
            (10, Some(id)) if other_known.is_none() => {
                self.names.insert(other.into(), id);
                self.begin();
                let (parent, name) = self.place(other);
                served.link(id, parent, name).unwrap();
            }
            (11 | 12, Some(id)) => {
                // Sometimes it is open while its name goes, and is cleared up afterwards.
                let open = self.dice.roll(2) == 0;
                let open = open.then(|| served.open(id, O_RDONLY).unwrap());
                self.names.remove(name);
                self.begin();
                let (parent, name) = self.place(name);
                served.unlink(parent, name).unwrap();
                if let Some(fh) = open {
                    served.release(fh);
                }
            }
            (13, _) => self.make_or_remove_directory(served),
            (14, _) if self.dice.roll(3) == 0 => {
                served.barrier();
                self.acknowledged();
            }
            _ => {}
        }
    }

    /// Two states: the name comes first, and is on the disk with the content at the latest.
    fn create(&mut self, served: &Served, name: &str) {
        let (parent, last) = self.place(name);
        // Its number is known once it is made.
        let unknown = u64::MAX;
        self.names.insert(name.into(), unknown);
        self.contents.insert(unknown, Arc::default());
        self.begin();
        let (id, fh) = served.create(parent, last, 0o600);
        self.names.insert(name.into(), id);
        let content = self.content();
        self.write_and_publish(served, id, fh, (0, &content), content.clone());
    }

    fn replace(&mut self, served: &Served, id: u64) {
        let fh = served.open(id, O_WRONLY | O_TRUNC).unwrap();
        let content = self.content();
        self.write_and_publish(served, id, fh, (0, &content), content.clone());
    }

    fn edit(&mut self, served: &Served, id: u64) {
        let fh = served.open(id, O_RDWR).unwrap();
        let mut whole = self.contents[&id].to_vec();
        let at = self.dice.roll(whole.len() as u64 + 1) as usize;
        let mut data = self.content();
        let longest = self.sizes.iter().max().unwrap_or(&0) + 10_000;
        data.truncate((longest - at).max(1));
        whole.resize(whole.len().max(at + data.len()), 0);
        whole[at..at + data.len()].copy_from_slice(&data);
        self.write_and_publish(served, id, fh, (at, &data), whole);
    }

    fn write_and_publish(
        &mut self,
        served: &Served,
        id: u64,
        fh: u64,
        (at, data): (usize, &[u8]),
        whole: Vec<u8>,
    ) {
        for (piece, index) in data.chunks(100_000).zip(0..) {
            let offset = (at + index * 100_000) as u64;
            served.write(fh, offset, piece).unwrap();
        }
        self.contents.insert(id, whole.into());
        self.begin();
        match self.dice.roll(2) {
            0 => served.flush(fh).unwrap(),
            _ => served.fsync(fh).unwrap(),
        }
        self.acknowledged();
        served.release(fh);
    }

    fn truncate(&mut self, served: &Served, id: u64) {
        let mut whole = self.contents[&id].to_vec();
        whole.truncate(self.dice.roll(whole.len() as u64 + 1) as usize);
        let set = SetAttributes {
            size: Some(whole.len() as u64),
            ..SetAttributes::default()
        };
        self.contents.insert(id, whole.into());
        self.begin();
        served.setattr(id, None, set).unwrap();
        self.acknowledged();
    }

    fn make_or_remove_directory(&mut self, served: &Served) {
        let (parent, name) = self.place(DIRECTORY);
        if self.names.remove(DIRECTORY).is_some() {
            self.begin();
            served.rmdir(parent, name).unwrap();
            return;
        }
        let unknown = u64::MAX;
        self.names.insert(DIRECTORY.into(), unknown);
        self.contents.insert(unknown, Arc::default());
        self.begin();
        let made = served.make(parent, name, Kind::Directory).unwrap().ino;
        self.names.insert(DIRECTORY.into(), made);
        self.contents.insert(made, Arc::default());
    }
}

/// What a worker's directory holds in an open vault.
fn found(served: &Served, worker: usize) -> Result<State, Errno> {
    let directory = served
        .lookup(ROOT, format!("worker-{worker}").as_bytes())?
        .ino;
    let (mut names, mut contents) = (BTreeMap::new(), BTreeMap::new());
    let below = served.lookup(directory, b"below")?.ino;
    for (place, prefix) in [(directory, ""), (below, "below/")] {
        for (name, id) in served.list(place)? {
            let name = prefix.to_owned() + &String::from_utf8_lossy(&name);
            if id == below {
                continue;
            }
            if served.getattr(id, None)?.kind == Kind::Directory {
                names.insert(name + "/", id);
                contents.insert(id, Arc::default());
            } else {
                names.insert(name, id);
                contents.insert(id, Arc::new(served.read_all(id)?));
            }
        }
    }
    Ok(state_of(&names, &contents))
}

/// All files in `directory` and below, but for shared memory.
fn files_in(directory: &Path) -> Image {
    let mut image = Image::new();
    let mut left = vec![directory.to_owned()];
    while let Some(next) = left.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(directory).unwrap().to_str().unwrap();
            if path.is_dir() {
                left.push(path);
            } else if !name.ends_with("-shm") {
                image.insert(name.to_owned(), std::fs::read(&path).unwrap());
            }
        }
    }
    image
}

/// A directory with these files, modes as tight as those of a vault.
fn written(image: &Image) -> Layer {
    let dir = tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap();
    for (name, content) in image {
        let path = dir.path().join(name);
        let mut parent = std::fs::DirBuilder::new();
        parent.recursive(true).mode(0o700);
        parent.create(path.parent().unwrap()).unwrap();
        let mut file = std::fs::OpenOptions::new();
        let mut file = file
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .unwrap();
        std::io::Write::write_all(&mut file, content).unwrap();
    }
    Layer::at(dir)
}

/// What was done to a vault, and what it went through.
struct Recorded {
    before: Image,
    events: Vec<Event>,
    states: Vec<Vec<State>>,
}

/// Sessions of work on a vault, each ended in an orderly way or by a kill of the process.
fn record(workers: usize, sessions: usize, deeds: usize, seed: u64, sizes: Sizes) -> Recorded {
    let mut layer = Layer::in_memory();
    let served = layer.open();
    let mut workers: Vec<Worker> = (0..workers)
        .map(|number| Worker::new(&served, number, seed, sizes))
        .collect();
    served.finish();
    let before = files_in(layer.path());
    let recorder = interpose::begin(layer.path(), before.keys().cloned());
    for session in 0..sessions {
        let served = layer.open();
        let opened = recorder.events().len();
        std::thread::scope(|scope| {
            for worker in &mut workers {
                let served = &served;
                scope.spawn(move || (0..deeds).for_each(|_| worker.act(served)));
            }
        });
        // Sessions are worth cutting when there were checkpoints beside writing.
        for more in 0.. {
            let events = recorder.events();
            if begins_anew(&names_in(&before, &events), &events[opened..]) {
                break;
            }
            assert!(more < 100, "no checkpoint under load");
            (0..20).for_each(|_| workers[0].act(&served));
        }
        if session % 2 == 1 {
            // What is written stays, synced or not; the process is gone. Whoever comes next must
            // not remember what only it has seen.
            workers[0].make_or_remove_directory(&served);
            recorder.pause();
            served.finish();
            layer = written(&disk_after(&before, &recorder.events()).seen());
            recorder.resume(layer.path());
        } else {
            served.finish();
            for worker in &workers {
                worker.acknowledged();
            }
            let seen = disk_after(&before, &recorder.events()).seen();
            assert!(seen == files_in(layer.path()), "not all was recorded");
        }
    }
    Recorded {
        before,
        events: recorder.end(),
        states: workers.into_iter().map(|worker| worker.states).collect(),
    }
}

fn disk_after(before: &Image, events: &[Event]) -> Disk {
    let mut disk = Disk::with(before);
    events.iter().for_each(|event| disk.apply(event));
    disk
}

/// Names that files had.
fn names_in(before: &Image, events: &[Event]) -> BTreeMap<FileId, String> {
    let before = (0..).zip(before.keys().cloned());
    let made = events.iter().filter_map(|event| match event {
        Event::Create(name, file) => Some((*file, name.clone())),
        _ => None,
    });
    before.chain(made).collect()
}

/// Whether the database was synced, as checkpoints do, and its WAL begun anew after that.
fn begins_anew(names: &BTreeMap<FileId, String>, events: &[Event]) -> bool {
    let is = |file: &FileId, name: &str| names[file].ends_with(name);
    let mut events = events.iter();
    events.any(|event| matches!(event, Event::Sync(file) if is(file, "vault.db")))
        && events.any(|event| matches!(event, Event::Write(file, 0, _) if is(file, "vault.db-wal")))
}

impl Recorded {
    /// Where to cut: half of them anywhere, and half where names and lengths of files have just been
    /// changed, which is rare, and is when a vault is opened and closed.
    fn points(&self, cuts: usize) -> Vec<usize> {
        let is_rare = |event: &Event| match event {
            Event::Write(..) | Event::Sync(_) | Event::Begun(..) | Event::Acknowledged(..) => false,
            Event::Create(..) | Event::Truncate(..) | Event::Unlink(_) => true,
            Event::Rename(..) | Event::SyncDirectory(_) => true,
        };
        let after = (1..=self.events.len()).filter(|after| is_rare(&self.events[after - 1]));
        let rare: Vec<usize> = after.collect();
        let mut dice = Dice(cuts as u64);
        let mut point = |index: usize| match index % 2 {
            0 => dice.roll(self.events.len() as u64 + 1) as usize,
            _ => dice.pick(&rare),
        };
        (0..cuts).map(&mut point).collect()
    }

    /// Cuts the power `cuts` times and looks, until a fault is found that is `wanted`. The disk
    /// does what it is told when it `hears`.
    fn fault(
        &self,
        cuts: usize,
        hears: impl Fn(&Event) -> bool + Sync,
        wanted: impl Fn(&str) -> bool + Sync,
    ) -> Option<String> {
        let mut points = self.points(cuts);
        points.sort_unstable();
        let found = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let shares: Vec<_> = (0..SHARES)
                .map(|share| {
                    let mut points = points.iter().copied().skip(share).step_by(SHARES);
                    let (hears, wanted, found) = (&hears, &wanted, &found);
                    let mut cuts = Cuts::of(self, share as u64);
                    scope.spawn(move || {
                        let fault = points.find_map(|point| match found.load(Relaxed) {
                            true => None,
                            false => cuts.fault_at(point, hears).filter(|fault| wanted(fault)),
                        });
                        found.fetch_or(fault.is_some(), Relaxed);
                        fault
                    })
                })
                .collect();
            shares.into_iter().find_map(|share| share.join().unwrap())
        })
    }

    /// Opens what is left, and compares with what may be there.
    fn examine(&self, image: &Image, possible: &[(usize, usize)]) -> Result<(), String> {
        let layer = written(image);
        let served = layer.try_open().map_err(|error| error.to_string())?;
        let states: Result<Vec<State>, Errno> = (0..self.states.len())
            .map(|worker| found(&served, worker))
            .collect();
        served.finish();
        let states = states.map_err(|errno| format!("unreadable: {errno:?}"))?;
        let report = check(&layer.vault(), &layer.options()).map_err(|error| error.to_string())?;
        if report.problem_count > 0 {
            return Err(format!("check: {:?}", report.problems));
        }
        let bytes: u64 = states.iter().map(bytes_of).sum();
        if report.bytes != bytes {
            return Err(format!("{} bytes are stored of {bytes}", report.bytes));
        }
        for (worker, state) in states.iter().enumerate() {
            let (acknowledged, begun) = possible[worker];
            if !self.states[worker][acknowledged..=begun].contains(state) {
                let known = self.states[worker].iter().rposition(|known| known == state);
                return Err(format!(
                    "worker {worker} finds state {known:?}, and {acknowledged} was acknowledged \
                     of {begun}"
                ));
            }
        }
        Ok(())
    }
}

/// The power is cut at later and later points.
struct Cuts<'r> {
    recorded: &'r Recorded,
    dice: Dice,
    disk: Disk,
    /// By worker the state last acknowledged, and the last begun.
    possible: Vec<(usize, usize)>,
    done: usize,
}

impl<'r> Cuts<'r> {
    fn of(recorded: &'r Recorded, seed: u64) -> Self {
        Self {
            recorded,
            dice: Dice(seed),
            disk: Disk::with(&recorded.before),
            possible: vec![(0, 0); recorded.states.len()],
            done: 0,
        }
    }

    fn fault_at(&mut self, point: usize, hears: impl Fn(&Event) -> bool) -> Option<String> {
        for event in &self.recorded.events[self.done..point] {
            match event {
                Event::Acknowledged(worker, state) => self.possible[*worker].0 = *state,
                Event::Begun(worker, state) => self.possible[*worker].1 = *state,
                event if hears(event) => self.disk.apply(event),
                _ => {}
            }
        }
        self.done = point;
        let image = self.disk.cut(&mut self.dice);
        let fault = self.recorded.examine(&image, &self.possible).err()?;
        Some(format!(
            "cut at {point} of {}: {fault}",
            self.recorded.events.len()
        ))
    }
}

#[test]
fn what_was_acknowledged_outlives_a_power_cut_and_names_are_lost_from_the_end_only() {
    let recorded = record(1, 9, 180, 1, SMALL);
    assert_eq!(recorded.fault(1_000 * rounds(), |_| true, |_| true), None);
}

#[test]
fn what_was_acknowledged_to_many_at_once_outlives_a_power_cut() {
    let recorded = record(4, 4, 100, 2, SMALL);
    assert_eq!(recorded.fault(200 * rounds(), |_| true, |_| true), None);
}

#[test]
fn a_large_content_is_whole_or_not_there_wherever_the_power_is_cut_between_its_pieces() {
    let recorded = record(2, 3, 30, 4, LARGE);
    assert_eq!(recorded.fault(150 * rounds(), |_| true, |_| true), None);
}

#[test]
fn a_disk_that_ignores_any_kind_of_sync_is_found_out() {
    let recorded = record(1, 3, 240, 3, SMALL);
    let names = names_in(&recorded.before, &recorded.events);
    let is_sync_of = |event: &Event, end: &str| match event {
        Event::Sync(file) => names[file].ends_with(end),
        Event::SyncDirectory(name) => name == end,
        _ => false,
    };
    for (ignored, told) in [
        // What was acknowledged is lost, and the host's anchor is ahead of the vault.
        ("vault.db-wal", "was acknowledged"),
        ("vault.db-wal", "older than what this host has seen"),
        ("vault.db", ""),
        // The WAL has no name.
        ("vault", "was acknowledged"),
        (".new", "anchor"),
    ] {
        let hears = |event: &Event| !is_sync_of(event, ignored);
        let fault = recorded.fault(1_000, hears, |fault| fault.contains(told));
        let fault = fault.unwrap_or_else(|| panic!("nobody misses syncs of {ignored} ({told})"));
        println!("without syncs of {ignored}: {fault}");
    }
}

#[test]
fn a_power_cut_while_a_vault_is_made_leaves_it_whole_or_leaves_room_for_another_try() {
    let dir = tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap();
    let layer = Layer::at(dir);
    let options = |layer: &Layer| InitOptions {
        kms_keys: vec![secretfs::kms::KeyUri::default_local()],
        uid: 0,
        gid: 0,
        kms: layer.kms(),
        anchor_dir: Some(layer.anchors()),
    };
    // What makes a key durable is the business of the KMS.
    init(&layer.path().join("another"), &options(&layer)).unwrap();
    let before = files_in(layer.path());
    let recorder = interpose::begin(layer.path(), before.keys().cloned());
    init(&layer.vault(), &options(&layer)).unwrap();
    interpose::note(Event::Acknowledged(0, 0));
    let events = recorder.end();
    assert!(disk_after(&before, &events).seen() == files_in(layer.path()));
    let mut dice = Dice(4);
    let (mut whole, mut again) = (0, 0);
    for point in 0..=events.len() {
        for _ in 0..8 * rounds() {
            let image = disk_after(&before, &events[..point]).cut(&mut dice);
            let layer = written(&image);
            let made = matches!(events[..point].last(), Some(Event::Acknowledged(..)));
            match layer.try_open() {
                Ok(served) => {
                    served.finish();
                    whole += 1;
                }
                Err(error) if error.failure() == Failure::NotAVault && !made => {
                    init(&layer.vault(), &options(&layer))
                        .unwrap_or_else(|error| panic!("cut at {point}: {error}"));
                    layer.open().finish();
                    again += 1;
                }
                Err(error) => panic!("cut at {point}: {error}"),
            }
            assert_eq!(layer.check().problem_count, 0, "cut at {point}");
        }
    }
    assert!(whole > 0 && again > 0, "{whole} whole, {again} made again");
}
