//! The same deeds under a running mount, by another process: records of each class are flipped, swapped,
//! removed, put in and replayed while a mount for writing, or a read-only one, is there that has not read
//! them yet. Nothing is served but what is current; what is found stays known.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::types::Value;

use crate::sample::{Row, Rows, TABLES, delete, insert, key, number, rows};
use crate::support::process::{Place, status, wait_for};

/// What is in a mount: paths, and what is to be read there. Of a directory its names.
type Tree = BTreeMap<PathBuf, Vec<u8>>;

/// A vault in its last state, its records as they are and as they were.
struct Vault {
    place: Place,
    now: Rows,
    before: Rows,
    tree: Tree,
}

const HOW_SOON: Duration = Duration::from_secs(30);

impl Vault {
    fn new() -> Self {
        let place = Place::with_vault();
        let point = place.point();
        place.mount(&[]).succeeded();
        fs::create_dir(point.join("db")).expect("made");
        fs::create_dir(point.join("empty")).expect("made");
        for name in ["db/password", "db/removed", "token", "renamed"] {
            fs::write(point.join(name), format!("the old {name}")).expect("written");
        }
        fs::write(point.join("large"), vec![b'1'; 70_000]).expect("written");
        unmount(&place);
        let before = rows(&place.vault());
        place.mount(&[]).succeeded();
        for name in ["db/password", "token"] {
            fs::write(point.join(name), format!("the new {name}")).expect("written");
        }
        fs::write(point.join("large"), vec![b'2'; 70_000]).expect("written");
        fs::remove_file(point.join("db/removed")).expect("removed");
        fs::rename(point.join("renamed"), point.join("db/moved")).expect("renamed");
        fs::write(point.join("later"), "a later one").expect("written");
        // Of one more generation, so that there are events and wraps of two.
        let rotated = place.run(["rotate".as_ref(), point.as_os_str(), "--wait".as_ref()]);
        assert!(rotated.0.status.success(), "{}", rotated.stderr());
        let (tree, errors) = read_all(&point);
        assert_eq!(errors, Vec::<String>::new());
        unmount(&place);
        Self {
            now: rows(&place.vault()),
            before,
            tree,
            place,
        }
    }

    /// Does it to a mount that has read nothing yet, looks what is served, and puts everything right
    /// again. Where it `must_be_found`, the mount comes to know of it by itself.
    fn try_out(
        &self,
        (mode, what): (&str, &str),
        must_be_found: bool,
        out: &Records,
        put: &Records,
    ) {
        let options = format!("{mode},verify-every=1s");
        self.place.mount(&["-o", &options]).succeeded();
        let point = self.place.point();
        change(&self.place, out, put);
        let (read, errors) = read_all(&point);
        for (path, told) in &read {
            let right = self.tree.get(path);
            assert_eq!(right, Some(told), "{mode}, {what}: {}", path.display());
        }
        // What is missing was refused.
        let is_missing = self.tree.keys().any(|path| !read.contains_key(path));
        assert!(
            !is_missing || !errors.is_empty(),
            "{mode}, {what}: a name was left out"
        );
        for error in &errors {
            // To who only reads, a node that is gone is one that the writer has removed.
            let right = error.ends_with("EIO") || (mode == "ro" && error.ends_with("ESTALE"));
            assert!(right, "{mode}, {what}: {error}");
        }
        let is_found = || {
            let integrity = status(&point)["integrity"].clone();
            integrity.as_str().expect("text").starts_with("failed: ")
        };
        if must_be_found {
            wait_for(&format!("{mode}, {what}: a finding"), HOW_SOON, is_found);
        }
        let told = status(&point);
        let found = told["integrity"].as_str().expect("text").to_owned();
        if mode == "rw" {
            let right = errors.is_empty() || found.starts_with("failed: ");
            assert!(right, "{mode}, {what}: {found}");
        }

        let back = out.clone();
        change(&self.place, put, &back);
        assert_eq!(rows(&self.place.vault()), self.now, "{mode}, {what}");
        if told["state"] == "unlocked" {
            let (read, errors) = read_all(&point);
            assert_eq!(errors, Vec::<String>::new(), "{mode}, {what}");
            assert_eq!(read, self.tree, "{mode}, {what}");
        }
        // It stays known.
        if found.starts_with("failed: ") {
            let still = status(&point)["integrity"].clone();
            assert!(
                still.as_str().expect("text").starts_with("failed: "),
                "{mode}, {what}"
            );
        }
        self.place.run(["umount".as_ref(), point.as_os_str()]);
        wait_for("the end of the mount", HOW_SOON, || {
            !self.place.is_mounted()
        });
        // What the mount has written into the history since is not part of the next case.
        self.put_all_back();
    }

    fn put_all_back(&self) {
        let stored = rows(&self.place.vault());
        if stored == self.now {
            return;
        }
        let all = |rows: &Rows| -> Records {
            rows.iter().map(|((t, _), row)| (*t, row.clone())).collect()
        };
        change(&self.place, &all(&stored), &all(&self.now));
        // And the host does not remember it.
        let anchors = self.place.path().join("anchors");
        fs::remove_dir_all(anchors).expect("removed");
    }

    fn of(&self, table: usize) -> Vec<Row> {
        let of = self.now.iter().filter(|((t, _), _)| *t == table);
        of.map(|(_, row)| row.clone()).collect()
    }

    /// The row as it was, for each that is another now.
    fn older(&self, table: usize) -> Vec<(Row, Row)> {
        let is_other = |(k, row): (&(usize, String), &Row)| {
            let old = self.before.get(k).filter(|old| *old != row)?;
            (k.0 == table).then(|| (row.clone(), old.clone()))
        };
        self.now.iter().filter_map(is_other).collect()
    }

    /// Rows that are not there any more.
    fn removed(&self, table: usize) -> Vec<Row> {
        let is_gone = |k: &(usize, String)| k.0 == table && !self.now.contains_key(k);
        let gone = self.before.iter().filter(|(k, _)| is_gone(k));
        gone.map(|(_, row)| row.clone()).collect()
    }
}

fn unmount(place: &Place) {
    let point = place.point();
    place
        .run(["umount".as_ref(), point.as_os_str()])
        .succeeded();
}

/// By another process than the daemon's.
fn change(place: &Place, out: &Records, put: &Records) {
    let evil = Connection::open(place.vault().join("vault.db")).expect("a database");
    evil.busy_timeout(HOW_SOON).expect("set");
    evil.execute_batch("PRAGMA synchronous = OFF; BEGIN IMMEDIATE")
        .expect("begun");
    out.iter()
        .for_each(|(table, row)| delete(&evil, *table, row));
    put.iter()
        .for_each(|(table, row)| insert(&evil, *table, row));
    evil.execute_batch("COMMIT").expect("committed");
}

/// Everything that can be read, and what cannot.
fn read_all(point: &Path) -> (Tree, Vec<String>) {
    let (mut tree, mut errors) = (Tree::new(), Vec::new());
    let mut left = vec![PathBuf::new()];
    let told = |path: &Path, error: &std::io::Error| {
        let errno = nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or_default());
        format!("{}: {errno:?}", path.display())
    };
    while let Some(path) = left.pop() {
        let at = point.join(&path);
        let is_directory = match fs::symlink_metadata(&at) {
            Ok(found) => found.is_dir(),
            Err(error) => {
                errors.push(told(&path, &error));
                continue;
            }
        };
        let read = match is_directory {
            false => fs::read(&at),
            true => fs::read_dir(&at).and_then(|entries| {
                let names = entries
                    .map(|entry| Ok(entry?.file_name()))
                    .collect::<std::io::Result<Vec<_>>>()?;
                let mut names: Vec<_> = names
                    .into_iter()
                    .map(|n| n.into_string().expect("UTF-8"))
                    .collect();
                names.sort();
                left.extend(names.iter().map(|name| path.join(name)));
                Ok(names.join("\n").into_bytes())
            }),
        };
        match read {
            Ok(read) => drop(tree.insert(path, read)),
            Err(error) => errors.push(told(&path, &error)),
        }
    }
    // Also what is in no listing any more.
    for name in [
        "db/password",
        "db/moved",
        "db/removed",
        "token",
        "large",
        "later",
        "renamed",
    ] {
        let path = PathBuf::from(name);
        if tree.contains_key(&path) || errors.iter().any(|e| e.starts_with(&format!("{name}: "))) {
            continue;
        }
        match fs::read(point.join(name)) {
            Ok(read) => drop(tree.insert(path, read)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => errors.push(told(&path, &error)),
        }
    }
    (tree, errors)
}

fn flipped(table: usize, row: &Row) -> Row {
    let keys = TABLES[table].key.len();
    let mut flipped = row.clone();
    let at = keys..keys + TABLES[table].blobs.len();
    for value in &mut flipped[at] {
        if let Value::Blob(bytes) = value {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 4;
        }
    }
    flipped
}

/// Each row with the values of the next one.
fn swapped(table: usize, rows: &[Row]) -> Vec<Row> {
    let keys = TABLES[table].key.len();
    let turned = rows.iter().zip(rows.iter().cycle().skip(1));
    let swap = |(row, other): (&Row, &Row)| [&row[..keys], &other[keys..]].concat();
    turned.map(swap).collect()
}

/// Rows by the number of their table.
type Records = Vec<(usize, Row)>;

/// Tables whose records a mount reads while it serves files.
const READ: [&str; 4] = ["node", "entry", "version", "chunk"];

fn under_a_mount(mode: &str) {
    let vault = Vault::new();
    for name in READ {
        let table = number(name);
        let of = vault.of(table);
        let with =
            |rows: Vec<Row>| -> Records { rows.into_iter().map(|row| (table, row)).collect() };
        let all = with(of.clone());
        let cases = [
            (
                "all flipped",
                all.clone(),
                with(of.iter().map(|row| flipped(table, row)).collect()),
            ),
            ("all swapped", all.clone(), with(swapped(table, &of))),
            ("all removed", all.clone(), Vec::new()),
        ];
        for (what, out, put) in cases {
            let what = format!("{name}: {what}");
            vault.try_out((mode, &what), true, &out, &put);
        }
        for row in &of {
            let what = format!("{name} {:?}", key(table, row).1);
            let one = with(vec![row.clone()]);
            vault.try_out(
                (mode, &format!("{what} removed")),
                false,
                &one,
                &Records::new(),
            );
            let flipped = with(vec![flipped(table, row)]);
            vault.try_out((mode, &format!("{what} flipped")), false, &one, &flipped);
        }
        for (row, old) in vault.older(table) {
            let what = format!("{name} {:?} replayed", key(table, &row).1);
            vault.try_out((mode, &what), false, &with(vec![row]), &with(vec![old]));
        }
        let (rows, olds): (Vec<_>, Vec<_>) = vault.older(table).into_iter().unzip();
        if !rows.is_empty() {
            let what = format!("{name}: all replayed");
            vault.try_out((mode, &what), true, &with(rows), &with(olds));
        }
        let removed = with(vault.removed(table));
        if !removed.is_empty() {
            let what = format!("{name}: all that were removed");
            vault.try_out((mode, &what), false, &Records::new(), &removed);
        }
    }
    // One secret as it was, with all that belongs to it; and a whole directory.
    let old = |tables: &[&str]| -> (Records, Records) {
        let tables: Vec<usize> = tables.iter().map(|name| number(name)).collect();
        let of = |rows: &Rows| -> Records {
            let of = rows.iter().filter(|((t, _), _)| tables.contains(t));
            of.map(|((t, _), row)| (*t, row.clone())).collect()
        };
        (of(&vault.now), of(&vault.before))
    };
    for tables in [
        &["node", "version", "chunk"][..],
        &["entry"],
        &["node", "entry", "version", "chunk", "orphan"],
        &["node", "entry", "version", "chunk", "orphan", "state"],
        &[
            "header", "keyring", "node", "entry", "version", "chunk", "orphan", "state", "event",
        ],
    ] {
        let (now, before) = old(tables);
        let what = format!("all of {}, as they were", tables.join(", "));
        vault.try_out((mode, &what), true, &now, &before);
    }
}

#[test]
fn a_mount_for_writing_serves_only_what_it_has_written_last_whatever_is_done_to_the_records() {
    under_a_mount("rw");
}

#[test]
fn a_read_only_mount_serves_nothing_older_than_it_has_counted_whatever_is_done_to_the_records() {
    under_a_mount("ro");
}
