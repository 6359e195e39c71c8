//! The daemon is killed under load and nothing acknowledged is lost; the store is tampered with and
//! nothing wrong is ever read.

mod support;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rusqlite::Connection;
use support::process::{Place, kill, wait_for};

const SOON: Duration = Duration::from_secs(30);
const KILLS: u32 = 20;
const WRITERS: u64 = 4;

/// What a writer's directory holds.
type World = BTreeMap<String, Vec<u8>>;

/// A writer in a directory of its own: makes, replaces, appends, renames and removes.
struct Writer {
    directory: PathBuf,
    world: World,
    /// A sequence that looks random and is the same in every run.
    dice: u64,
}

impl Writer {
    fn roll(&mut self, sides: u64) -> u64 {
        self.dice = self
            .dice
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.dice >> 33) % sides
    }

    fn secret(&mut self) -> Vec<u8> {
        let size = [1, 300, 5_000, 70_000, 200_000][self.roll(5) as usize];
        let word = format!("{:08x}", self.roll(1 << 31));
        word.into_bytes().into_iter().cycle().take(size).collect()
    }

    /// Goes on until the mount is gone. What the directory may hold then: what was acknowledged
    /// before the last deed, and what that deed leads to.
    fn run(&mut self, done: &AtomicU64) -> Vec<World> {
        loop {
            let name = format!("secret-{}", self.roll(6));
            let path = self.directory.join(&name);
            let mut next = self.world.clone();
            let mut between = None;
            let result = match self.roll(10) {
                0..=4 => {
                    let secret = self.secret();
                    if !self.world.contains_key(&name) {
                        // Made, and nothing published yet.
                        next.insert(name.clone(), Vec::new());
                        between = Some(next.clone());
                    }
                    next.insert(name, secret.clone());
                    let sync = self.roll(3) == 0;
                    replace(&path, &secret, sync)
                }
                5 | 6 => match next.get_mut(&name) {
                    Some(content) if content.len() < 400_000 => {
                        let secret = self.secret();
                        content.extend_from_slice(&secret);
                        append(&path, &secret)
                    }
                    _ => continue,
                },
                7 | 8 => {
                    let other = format!("secret-{}", self.roll(6));
                    match next.remove(&name) {
                        Some(content) if other != name => {
                            next.insert(other.clone(), content);
                            std::fs::rename(&path, self.directory.join(other))
                        }
                        _ => continue,
                    }
                }
                _ => match next.remove(&name) {
                    Some(_) => std::fs::remove_file(&path),
                    None => continue,
                },
            };
            if result.is_err() {
                return [Some(self.world.clone()), between, Some(next)]
                    .into_iter()
                    .flatten()
                    .collect();
            }
            self.world = next;
            done.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn replace(path: &Path, secret: &[u8], sync: bool) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(secret)?;
    if sync {
        file.sync_all()?;
    }
    closed(file)
}

fn append(path: &Path, secret: &[u8]) -> std::io::Result<()> {
    let mut file = OpenOptions::new().append(true).open(path)?;
    file.write_all(secret)?;
    closed(file)
}

/// `close` that tells.
fn closed(file: File) -> std::io::Result<()> {
    // SAFETY: the descriptor was owned by `file`, and by nobody from here on.
    match unsafe { libc::close(std::os::fd::IntoRawFd::into_raw_fd(file)) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

fn world(directory: &Path) -> World {
    let entries = std::fs::read_dir(directory).expect("a directory");
    entries
        .map(|entry| {
            let entry = entry.expect("an entry");
            let name = entry.file_name().into_string().expect("UTF-8");
            (name, std::fs::read(entry.path()).expect("readable"))
        })
        .collect()
}

fn sizes(world: &World) -> Vec<(&str, usize, String)> {
    let start = |content: &[u8]| String::from_utf8_lossy(&content[..content.len().min(8)]).into();
    world
        .iter()
        .map(|(name, c)| (name.as_str(), c.len(), start(c)))
        .collect()
}

#[track_caller]
fn check(place: &Place) {
    place
        .run(["check".as_ref(), place.vault().as_os_str()])
        .succeeded();
}

#[test]
fn a_killed_daemon_loses_nothing_that_was_acknowledged() {
    let place = Place::with_vault();
    place.mount(&[]).succeeded();
    let mut writers: Vec<Writer> = (0..WRITERS)
        .map(|n| {
            let directory = place.point().join(format!("writer-{n}"));
            std::fs::create_dir(&directory).expect("made");
            Writer {
                directory,
                world: World::new(),
                dice: n + 1,
            }
        })
        .collect();
    for round in 0..KILLS {
        let done = Arc::new(AtomicU64::new(0));
        let threads: Vec<_> = writers
            .into_iter()
            .map(|mut writer| {
                let done = Arc::clone(&done);
                std::thread::spawn(move || {
                    let possible = writer.run(&done);
                    (writer, possible)
                })
            })
            .collect();
        // Not always at the same point of whatever goes on.
        wait_for("the writers", SOON, || {
            done.load(Ordering::Relaxed) >= 40 + 7 * u64::from(round % 5)
        });
        for pid in place.daemons() {
            kill(pid, libc::SIGKILL);
        }
        let ended: Vec<_> = threads
            .into_iter()
            .map(|thread| thread.join().expect("a writer"))
            .collect();
        wait_for("the daemon's end", SOON, || place.daemons().is_empty());
        place
            .run(["umount".as_ref(), place.point().as_os_str()])
            .succeeded();
        check(&place);
        place.mount(&[]).succeeded();
        writers = ended
            .into_iter()
            .map(|(mut writer, possible)| {
                let found = world(&writer.directory);
                assert!(
                    possible.contains(&found),
                    "round {round}, {:?}: found {:?}, possible were {:?}",
                    writer.directory,
                    sizes(&found),
                    possible.iter().map(sizes).collect::<Vec<_>>(),
                );
                writer.world = found;
                writer
            })
            .collect();
    }
    place
        .run(["umount".as_ref(), place.point().as_os_str()])
        .succeeded();
    check(&place);
}

/// A vault with records of every kind, unmounted, and what is in it.
struct Sample {
    place: Place,
    database: PathBuf,
    whole: Vec<u8>,
    contents: World,
}

impl Sample {
    fn new() -> Self {
        let place = Place::with_vault();
        place.mount(&[]).succeeded();
        std::fs::create_dir(place.point().join("directory")).expect("made");
        let mut contents = World::new();
        for (name, size) in [("small", 10), ("directory/large", 200_000), ("other", 1000)] {
            let content = vec![b'a' + name.len() as u8; size];
            std::fs::write(place.point().join(name), &content).expect("written");
            contents.insert(name.to_owned(), content);
        }
        // An orphan: without a name, but open when the daemon is killed.
        let path = place.point().join("orphan");
        std::fs::write(&path, "orphan").expect("written");
        let open = File::open(&path).expect("open");
        std::fs::remove_file(&path).expect("removed");
        std::fs::write(place.point().join("last"), "last").expect("written");
        contents.insert("last".into(), b"last".to_vec());
        for pid in place.daemons() {
            kill(pid, libc::SIGKILL);
        }
        wait_for("the daemon's end", SOON, || place.daemons().is_empty());
        drop(open);
        place
            .run(["umount".as_ref(), place.point().as_os_str()])
            .succeeded();
        let database = place.vault().join("vault.db");
        // What the killed daemon left in the WAL goes where a copy finds it.
        let connection = Connection::open(&database).expect("a database");
        let checkpoint = "PRAGMA wal_checkpoint(TRUNCATE)";
        connection
            .query_row(checkpoint, [], |_| Ok(()))
            .expect("moved");
        drop(connection);
        let whole = std::fs::read(&database).expect("readable");
        check(&place);
        Self {
            place,
            database,
            whole,
            contents,
        }
    }

    fn restore(&self) {
        for end in ["-wal", "-shm"] {
            let mut path = self.database.clone().into_os_string();
            path.push(end);
            let _ = std::fs::remove_file(path);
        }
        std::fs::write(&self.database, &self.whole).expect("written");
    }

    fn edit<T>(&self, edit: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> T {
        let connection = Connection::open(&self.database).expect("a database");
        edit(&connection).expect("edited")
    }

    /// What was changed is named by `check`, and no wrong content can be had.
    #[track_caller]
    fn is_detected(&self, what: &str) {
        let ran = self
            .place
            .run(["check".as_ref(), self.place.vault().as_os_str()]);
        let said = ran.stderr();
        assert_eq!(ran.0.status.code(), Some(6), "check, {what}: {said}");
        assert!(
            !said.contains("panic") && !said.contains("internal error"),
            "{what}: {said}"
        );
        let mounted = self.place.mount(&["-o", "ro"]);
        if !mounted.0.status.success() {
            let said = mounted.stderr();
            assert_eq!(mounted.0.status.code(), Some(6), "mount, {what}: {said}");
            return;
        }
        for (name, content) in &self.contents {
            match std::fs::read(self.place.point().join(name)) {
                Ok(found) => assert!(found == *content, "{what}: {name} is wrong"),
                Err(error) => {
                    let code = error.raw_os_error();
                    // A tag that was changed leaves a name that cannot be found any more.
                    let hidden = what.contains("tag") && code == Some(libc::ENOENT);
                    assert!(code == Some(libc::EIO) || hidden, "{what}: {name}: {error}");
                }
            }
        }
        self.place
            .run(["umount".as_ref(), self.place.point().as_os_str()])
            .succeeded();
    }
}

#[test]
fn a_flipped_bit_in_any_record_is_detected() {
    let sample = Sample::new();
    let blobs = [
        ("header", "value"),
        ("keyring", "value"),
        ("state", "value"),
        ("node", "value"),
        ("entry", "value"),
        ("entry", "tag"),
        ("version", "value"),
        ("chunk", "sealed"),
        ("event", "value"),
    ];
    for (table, column) in blobs {
        let count: i64 = sample.edit(|db| {
            db.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| {
                row.get(0)
            })
        });
        assert!(count > 0, "no {table}");
        for (row, part) in [(0, 0), (count - 1, 1), (count / 2, 2)] {
            sample.restore();
            sample.edit(|db| {
                let key = format!("SELECT {column} FROM {table} LIMIT 1 OFFSET {row}");
                let old: Vec<u8> = db.query_row(&key, [], |row| row.get(0))?;
                let mut new = old.clone();
                // At its beginning, in its middle, at its end.
                let at = (old.len() - 1) * part / 2;
                new[at] ^= 0x10;
                let change = format!("UPDATE {table} SET {column} = ?1 WHERE {column} = ?2");
                db.execute(&change, (&new, &old))
            });
            sample.is_detected(&format!("{table}.{column}, row {row}, part {part}"));
        }
    }
    for (table, column) in [
        ("node", "generation"),
        ("version", "generation"),
        ("version", "first_chunk"),
        ("chunk", "idx"),
        ("event", "sequence"),
    ] {
        sample.restore();
        sample.edit(|db| db.execute(&format!("UPDATE {table} SET {column} = {column} + 64"), []));
        sample.is_detected(&format!("{table}.{column}"));
    }
}

#[test]
fn a_forged_list_of_orphans_deletes_nothing() {
    let sample = Sample::new();
    sample.restore();
    let changed = sample.edit(|db| db.execute("UPDATE orphan SET id = id + 1000", []));
    assert!(changed > 0, "no orphan");
    sample.is_detected("orphan");
    // All that has a name is said to be an orphan.
    sample.restore();
    sample.edit(|db| db.execute("INSERT OR IGNORE INTO orphan SELECT id FROM node", []));
    sample.place.mount(&[]).succeeded();
    for (name, content) in &sample.contents {
        let found = std::fs::read(sample.place.point().join(name)).expect("readable");
        assert!(found == *content, "{name}");
    }
    let point = sample.place.point();
    sample
        .place
        .run(["umount".as_ref(), point.as_os_str()])
        .succeeded();
    check(&sample.place);
}
