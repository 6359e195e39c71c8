//! What a power cut leaves: all that was synced, and some of what was not.
//!
//! Of writes and truncations that were not synced, any may have reached the disk, in any order, and
//! of each write any sectors. A sector is written whole or not at all. Names are changed in order:
//! of what was done in a directory since it was synced, a beginning is there.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::load::Dice;

const SECTOR: u64 = 512;

pub type FileId = u32;

/// What a process did, or a test wants to remember: names are relative paths.
#[derive(Clone, Debug)]
pub enum Event {
    Create(String, FileId),
    Write(FileId, u64, Arc<[u8]>),
    Truncate(FileId, u64),
    Sync(FileId),
    Unlink(String),
    Rename(String, String),
    SyncDirectory(String),
    /// Worker `.0` has begun what leads to its state `.1`.
    Begun(usize, usize),
    /// Worker `.0` was told that its state `.1` is on the disk.
    Acknowledged(usize, usize),
}

/// The files in a directory and below: names and contents.
pub type Image = BTreeMap<String, Vec<u8>>;

#[derive(Clone, Default)]
struct File {
    synced: Vec<u8>,
    unsynced: Vec<Event>,
}

/// A disk with a cache, as of some point of a recording.
#[derive(Clone)]
pub struct Disk {
    files: BTreeMap<FileId, File>,
    /// The names that were synced, and by directory what was done to them since.
    names: BTreeMap<String, FileId>,
    unsynced: BTreeMap<String, Vec<Event>>,
}

impl Disk {
    /// A disk with these files, all synced, numbered from 0.
    pub fn with(image: &Image) -> Self {
        let file = |content: &Vec<u8>| File {
            synced: content.clone(),
            unsynced: Vec::new(),
        };
        Self {
            files: (0..).zip(image.values().map(file)).collect(),
            names: image.keys().cloned().zip(0..).collect(),
            unsynced: BTreeMap::new(),
        }
    }

    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::Create(name, file) => {
                self.files.insert(*file, File::default());
                self.done_in(directory_of(name), event);
            }
            Event::Unlink(name) => self.done_in(directory_of(name), event),
            Event::Rename(from, to) => {
                assert_eq!(directory_of(from), directory_of(to), "moved elsewhere");
                self.done_in(directory_of(from), event);
            }
            Event::Write(file, ..) | Event::Truncate(file, _) => {
                self.file(*file).unsynced.push(event.clone());
            }
            Event::Sync(file) => {
                let file = self.file(*file);
                for event in std::mem::take(&mut file.unsynced) {
                    change(&mut file.synced, &event, |_| true);
                }
            }
            Event::SyncDirectory(name) => {
                for event in self.unsynced.remove(name).unwrap_or_default() {
                    change_names(&mut self.names, &event);
                }
            }
            Event::Begun(..) | Event::Acknowledged(..) => {}
        }
    }

    fn file(&mut self, id: FileId) -> &mut File {
        self.files.get_mut(&id).expect("a file")
    }

    fn done_in(&mut self, directory: &str, event: &Event) {
        let unsynced = self.unsynced.entry(directory.to_owned()).or_default();
        unsynced.push(event.clone());
    }

    /// What a process sees.
    pub fn seen(&self) -> Image {
        self.image(usize::MAX, |_, file| {
            let mut content = file.synced.clone();
            for event in &file.unsynced {
                change(&mut content, event, |_| true);
            }
            content
        })
    }

    /// What is found after a power cut now.
    pub fn cut(&self, dice: &mut Dice) -> Image {
        let most = self.unsynced.values().map(Vec::len).max().unwrap_or(0);
        let names = match dice.roll(3) {
            0 => 0,
            1 => usize::MAX,
            _ => dice.roll(most as u64 + 1) as usize,
        };
        self.image(names, |_, file| file.cut(dice))
    }

    fn image(&self, names: usize, mut content: impl FnMut(FileId, &File) -> Vec<u8>) -> Image {
        let mut found = self.names.clone();
        for events in self.unsynced.values() {
            for event in events.iter().take(names) {
                change_names(&mut found, event);
            }
        }
        let contents = found.into_iter();
        contents
            .map(|(name, id)| (name, content(id, &self.files[&id])))
            .collect()
    }
}

impl File {
    fn cut(&self, dice: &mut Dice) -> Vec<u8> {
        let mut content = self.synced.clone();
        let count = self.unsynced.len() as u64;
        if count == 0 {
            return content;
        }
        let way = dice.roll(6);
        let special = dice.roll(count);
        for (index, event) in (0..).zip(&self.unsynced) {
            let (there, torn) = match way {
                // Nothing; all; all but one; one alone.
                0 => (false, false),
                1 => (true, false),
                2 => (index != special, false),
                3 => (index == special, dice.roll(2) == 0),
                // A beginning, its last write torn.
                4 => (index <= special, index == special),
                // Anything.
                _ => (dice.roll(2) == 0, dice.roll(2) == 0),
            };
            if there {
                change(&mut content, event, |_| !torn || dice.roll(2) == 0);
            }
        }
        content
    }
}

fn directory_of(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(directory, _)| directory)
}

/// Does to a content what `event` says; of a write those sectors that are `there`.
fn change(content: &mut Vec<u8>, event: &Event, mut there: impl FnMut(u64) -> bool) {
    match event {
        Event::Truncate(_, length) => content.resize(*length as usize, 0),
        Event::Write(_, at, data) => {
            let mut from = *at;
            let end = at + data.len() as u64;
            while from < end {
                let to = end.min((from / SECTOR + 1) * SECTOR);
                if there(from / SECTOR) {
                    let (first, last) = (from as usize, to as usize);
                    if content.len() < last {
                        content.resize(last, 0);
                    }
                    let source = (from - at) as usize..(to - at) as usize;
                    content[first..last].copy_from_slice(&data[source]);
                }
                from = to;
            }
        }
        _ => {}
    }
}

fn change_names(names: &mut BTreeMap<String, FileId>, event: &Event) {
    match event {
        Event::Create(name, file) => {
            names.insert(name.clone(), *file);
        }
        Event::Unlink(name) => {
            names.remove(name);
        }
        Event::Rename(from, to) => {
            if let Some(file) = names.remove(from) {
                names.insert(to.clone(), file);
            }
        }
        _ => {}
    }
}
