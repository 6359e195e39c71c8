//! The daemon is killed under load and nothing acknowledged is lost; the store is tampered with and
//! nothing wrong is ever read.
//!
//! `SECRETFS_STRESS_ROUNDS=10` for ten times as many kills.

mod support;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rusqlite::Connection;
use support::load::{Dice, Tally, Writer};
use support::process::{Place, kill, system, wait_for};

const SOON: Duration = Duration::from_secs(30);
/// Vaults at once, kills of each one's daemon, and writers in each.
const VAULTS: u64 = 4;
const KILLS: u64 = 50;
const WRITERS: u32 = 3;

/// What a vault holds: names and contents.
type World = BTreeMap<String, Vec<u8>>;

fn rounds() -> u64 {
    let set = std::env::var("SECRETFS_STRESS_ROUNDS").ok();
    set.and_then(|rounds| rounds.parse().ok()).unwrap_or(1)
}

#[track_caller]
fn check(place: &Place) {
    place
        .run(["check".as_ref(), place.vault().as_os_str()])
        .succeeded();
}

/// Kills the daemon of one vault again and again, at whatever point of the load.
fn kill_and_compare(seed: u64, kills: u64) {
    let place = Place::with_vault();
    let mut dice = Dice(seed);
    let mut writers: Vec<Writer> = Vec::new();
    for _ in 0..kills {
        let mut server = place.serve(&[]);
        if writers.is_empty() {
            let made = (0..WRITERS).map(|number| Writer::new(&place.point(), number, seed));
            writers = made.collect();
        }
        for writer in &mut writers {
            writer.expect_what_was_acknowledged();
        }
        let tally = Tally::default();
        std::thread::scope(|scope| {
            let threads: Vec<_> = writers
                .iter_mut()
                .map(|writer| scope.spawn(|| writer.run(&tally)))
                .collect();
            let enough = dice.roll(40);
            wait_for("the writers", SOON, || {
                tally.deeds() >= enough || threads.iter().any(|thread| thread.is_finished())
            });
            // Sleeping is not deciding: whatever is going on by then is cut off.
            std::thread::sleep(Duration::from_micros(dice.roll(5_000)));
            tally.ending.store(true, Ordering::SeqCst);
            server.signal(libc::SIGKILL);
            wait_for("the daemon's end", SOON, || !server.is_running());
        });
        detach(&place);
        check(&place);
    }
    place.mount(&[]).succeeded();
    for writer in &mut writers {
        writer.expect_what_was_acknowledged();
    }
    detach(&place);
    wait_for("the daemon's end", SOON, || place.daemons().is_empty());
    check(&place);
}

/// Lazily: the program that another thread is just about to run may have a copy of a descriptor.
fn detach(place: &Place) {
    system("umount", &["-l".as_ref(), place.point().as_os_str()]);
}

#[test]
fn a_killed_daemon_loses_nothing_that_was_acknowledged() {
    std::thread::scope(|scope| {
        for vault in 0..VAULTS {
            scope.spawn(move || kill_and_compare(vault + 1, KILLS * rounds()));
        }
    });
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
