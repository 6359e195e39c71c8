//! A vault with records of every kind in several states, its rows now and before, and what is
//! found when some of them are exchanged.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rusqlite::types::Value;
use rusqlite::{Connection, params_from_iter};
use secretfs::vault::{Failure, Kind, OpenOptions, ROOT, Vault, VaultError, check};

use crate::support::contents::{Contents, Reading};
use crate::support::layer::{Layer, Served};

/// A table: the columns of its key, those with sealed or authenticated bytes, and all others.
pub struct Table {
    pub name: &'static str,
    pub key: &'static [&'static str],
    pub blobs: &'static [&'static str],
    pub plain: &'static [&'static str],
}

const fn table(
    name: &'static str,
    key: &'static [&'static str],
    blobs: &'static [&'static str],
    plain: &'static [&'static str],
) -> Table {
    Table {
        name,
        key,
        blobs,
        plain,
    }
}

pub const TABLES: [Table; 9] = [
    table("header", &["id"], &["value"], &[]),
    table("keyring", &["id"], &["value"], &[]),
    table("state", &["id"], &["value"], &[]),
    table("node", &["id"], &["value"], &["generation"]),
    table("entry", &["directory", "tag"], &["value"], &[]),
    table(
        "version",
        &["node", "version"],
        &["value"],
        &["generation", "first_chunk"],
    ),
    table("chunk", &["id"], &["sealed"], &["node", "version", "idx"]),
    table("orphan", &["id"], &[], &[]),
    table("event", &["sequence"], &["value"], &[]),
];

impl Table {
    /// All columns: key, bytes, others.
    pub fn columns(&self) -> impl Iterator<Item = &'static str> {
        let parts = [self.key, self.blobs, self.plain];
        parts.into_iter().flatten().copied()
    }
}

/// The values of a row's columns.
pub type Row = Vec<Value>;
/// All rows of all tables, by the number of the table and the key.
pub type Rows = BTreeMap<(usize, String), Row>;

pub fn key(table: usize, row: &Row) -> (usize, String) {
    (table, format!("{:?}", &row[..TABLES[table].key.len()]))
}

/// Who finds a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Found {
    /// Whoever mounts the vault.
    AtMount,
    /// `check`.
    ByCheck,
    /// Nobody; all reads back as it was.
    Never,
}

pub struct Sample {
    layer: Layer,
    evil: Connection,
    /// As the vault is.
    pub now: Rows,
    /// As it was, several times.
    pub before: Vec<Rows>,
    contents: Contents,
    killed: (Vec<u8>, Vec<u8>),
}

pub fn write(served: &Served, parent: u64, name: &str, content: &[u8]) -> u64 {
    let (ino, fh) = match served.lookup(parent, name.as_bytes()) {
        Ok(attr) => {
            let flags = libc::O_WRONLY | libc::O_TRUNC;
            (attr.ino, served.open(attr.ino, flags).expect("opened"))
        }
        Err(_) => served.create(parent, name.as_bytes(), 0o600),
    };
    for (at, piece) in content.chunks(100_000).enumerate() {
        let offset = at as u64 * 100_000;
        served.write(fh, offset, piece).expect("written");
    }
    served.fsync(fh).expect("published");
    served.release(fh);
    ino
}

impl Sample {
    pub fn new() -> Self {
        let layer = Layer::in_memory();
        let mut before = vec![rows(&layer.vault())];
        let served = layer.open();
        write(&served, ROOT, "password", b"a first password");
        let certificate = write(&served, ROOT, "certificate", &[b'c'; 2000]);
        write(&served, ROOT, "removed later", b"until it is removed");
        let directory = served.make(ROOT, b"directory", Kind::Directory);
        let directory = directory.expect("made").ino;
        write(&served, directory, "large", &[b'1'; 66_000]);
        served.finish();
        before.push(rows(&layer.vault()));

        // A later state, of which this host knows; the earlier one is restored and accepted.
        let kept = layer.vault().with_extension("kept");
        copy(&layer.vault(), &kept);
        let served = layer.open();
        write(&served, ROOT, "password", b"a password that is lost");
        served.finish();
        std::fs::remove_dir_all(layer.vault()).expect("removed");
        copy(&kept, &layer.vault());
        std::fs::remove_dir_all(&kept).expect("removed");
        let mut options = layer.options();
        options.accept_rollback = true;
        drop(Vault::open(&layer.vault(), &options).expect("accepted"));
        before.push(rows(&layer.vault()));

        let served = layer.open();
        write(&served, ROOT, "password", b"the second password");
        write(&served, directory, "large", &[b'2'; 66_000]);
        served.unlink(ROOT, b"removed later").expect("removed");
        write(&served, ROOT, "empty", b"");
        served
            .set_xattr(certificate, b"user.issuer", b"us", 0)
            .expect("set");
        served
            .set_xattr(directory, b"user.kind", &[b'k'; 300], 0)
            .expect("set");
        let inner = served.make(directory, b"inner", Kind::Directory);
        let inner = inner.expect("made").ino;
        served.link(certificate, inner, b"link").expect("linked");
        served.make(inner, b"symlink", Kind::Symlink).expect("made");
        served.make(inner, b"pipe", Kind::Fifo).expect("made");
        served.make(ROOT, b"bare", Kind::Directory).expect("made");
        served.finish();
        before.push(rows(&layer.vault()));

        let served = layer.open();
        write(&served, ROOT, "password", b"the third password");
        // Left-overs of a killed daemon: a file without a name, and the version before the
        // current one, both still being read.
        let open = |ino| {
            let fh = served.open(ino, libc::O_RDONLY).expect("opened");
            served.read(fh, 0, 10).expect("read");
        };
        let removed = write(&served, ROOT, "removed", b"open while it is removed");
        open(removed);
        served.unlink(ROOT, b"removed").expect("removed");
        let replaced = write(&served, inner, "replaced", b"open while it is replaced");
        open(replaced);
        write(&served, inner, "replaced", b"the replacement");
        served.barrier();
        layer.crash(|| served.abort());

        let database = layer.vault().join("vault.db");
        let read = |path: &Path| std::fs::read(path).expect("read");
        let killed = (read(&database), read(&layer.vault().join("vault.db-wal")));
        let evil = Connection::open(&database).expect("a database");
        evil.execute_batch("PRAGMA synchronous = OFF; PRAGMA ignore_check_constraints = ON")
            .expect("set");
        let mut sample = Self {
            now: rows(&layer.vault()),
            layer,
            evil,
            before,
            contents: Contents::new(),
            killed,
        };
        let vault = Vault::open(&sample.layer.vault(), &sample.options(true)).expect("opened");
        let reading = Reading::of(&vault);
        assert!(reading.errors.is_empty(), "{:?}", reading.errors);
        sample.contents = reading.contents;
        // The host knows how far the vault has come.
        let anchors = secretfs::vault::Anchors::at(sample.layer.anchors());
        let id = vault.keyring().vault();
        let mut anchor = anchors.load(id).expect("read").expect("an anchor");
        anchor.commit_sequence = vault.state().commit;
        anchors.store(&anchor, true).expect("stored");
        drop(vault);
        assert_eq!(sample.find("nothing", true), Found::Never);
        assert_eq!(sample.check().expect("checked"), 0);
        let of = |table: &str| sample.of(table).count();
        assert!(of("node") >= 12 && of("chunk") >= 7 && of("entry") >= 10);
        assert!(of("orphan") == 2 && of("event") == 2);
        sample
    }

    /// The rows of one table.
    pub fn of(&self, name: &str) -> impl Iterator<Item = &Row> {
        let table = number(name);
        let of = self.now.iter().filter(move |((t, _), _)| *t == table);
        of.map(|(_, row)| row)
    }

    pub fn options(&self, anchored: bool) -> OpenOptions {
        let mut options = self.layer.options();
        options.read_only = true;
        if !anchored {
            options.anchor_dir = None;
        }
        options
    }

    fn check(&self) -> Result<u64, VaultError> {
        // What an anchor adds shows at the mount.
        let report = check(&self.layer.vault(), &self.options(false))?;
        assert_eq!(report.problem_count as usize, report.problems.len());
        Ok(report.problem_count)
    }

    /// A path beside the vault.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.layer.vault().with_file_name(name)
    }

    /// The database and its log as they were when the daemon was killed.
    pub fn files(&self) -> (Vec<u8>, Vec<u8>) {
        self.killed.clone()
    }

    /// A writer opens the vault and closes it again.
    pub fn settle(&mut self) {
        let vault = Vault::open(&self.layer.vault(), &self.layer.options()).expect("opened");
        drop(vault);
        self.now = rows(&self.layer.vault());
    }

    /// Puts rows in, for good.
    pub fn plant(&self, rows: &[(usize, Row)]) {
        rows.iter()
            .for_each(|(table, row)| self.insert(*table, row));
    }

    /// Takes rows out, puts others in, looks who finds it, and puts everything back.
    pub fn exchange(
        &self,
        what: &str,
        anchored: bool,
        out: &[(usize, &Row)],
        put: &[(usize, Row)],
    ) -> Found {
        self.evil.execute_batch("BEGIN IMMEDIATE").expect("begun");
        out.iter().for_each(|(table, row)| self.delete(*table, row));
        put.iter().for_each(|(table, row)| self.insert(*table, row));
        self.evil.execute_batch("COMMIT").expect("committed");
        let found = self.find(what, anchored);
        self.evil.execute_batch("BEGIN IMMEDIATE").expect("begun");
        put.iter().for_each(|(table, row)| self.delete(*table, row));
        let put = put.iter().map(|(table, row)| key(*table, row));
        let out = out.iter().map(|(table, row)| key(*table, row));
        for touched in put.chain(out) {
            if let Some(row) = self.now.get(&touched) {
                self.insert(touched.0, row);
            }
        }
        self.evil.execute_batch("COMMIT").expect("committed");
        found
    }

    /// One row in another's place.
    pub fn replace(&self, what: &str, table: usize, old: &Row, new: Row) -> Found {
        self.exchange(what, false, &[(table, old)], &[(table, new)])
    }

    fn delete(&self, table: usize, row: &Row) {
        delete(&self.evil, table, row);
    }

    fn insert(&self, table: usize, row: &Row) {
        insert(&self.evil, table, row);
    }

    /// Who finds what was done. Nobody is told anything but the truth: what can be read is what
    /// was written, and what is missing is missed.
    pub fn find(&self, what: &str, anchored: bool) -> Found {
        let vault = match Vault::open(&self.layer.vault(), &self.options(anchored)) {
            Ok(vault) => vault,
            Err(error) => {
                must_be_clear(what, &error);
                return Found::AtMount;
            }
        };
        let reading = Reading::of(&vault);
        drop(vault);
        for error in &reading.errors {
            assert_eq!(error.failure(), Failure::Integrity, "{what}: {error}");
        }
        for (path, told) in &reading.contents {
            let right = self.contents.get(path) == Some(told);
            assert!(right, "{what}: {} is wrong", path.escape_ascii());
        }
        let whole = reading.contents.len() == self.contents.len();
        assert!(
            whole || !reading.errors.is_empty(),
            "{what}: names are missing"
        );
        match self.check() {
            Ok(0) => {
                assert!(reading.errors.is_empty(), "{what}: only reading finds it");
                Found::Never
            }
            Ok(_) => Found::ByCheck,
            Err(error) => {
                must_be_clear(what, &error);
                Found::ByCheck
            }
        }
    }

    /// Whether what was done can be told from the vault at all: one that opens and is clean, with
    /// other contents than now.
    pub fn passes_for_another_state(&self, rows: &Rows, anchored: bool) -> bool {
        self.put_all(rows);
        let opened = Vault::open(&self.layer.vault(), &self.options(anchored));
        let clean = opened.is_ok() && self.check().is_ok_and(|problems| problems == 0);
        drop(opened);
        self.put_all(&self.now);
        clean
    }

    fn put_all(&self, rows: &Rows) {
        self.evil.execute_batch("BEGIN IMMEDIATE").expect("begun");
        for table in TABLES {
            let sql = format!("DELETE FROM {}", table.name);
            self.evil.execute_batch(&sql).expect("emptied");
        }
        for ((table, _), row) in rows {
            self.insert(*table, row);
        }
        self.evil.execute_batch("COMMIT").expect("committed");
    }
}

pub fn must_be_clear(what: &str, error: &VaultError) {
    let told = error.to_string();
    assert!(!told.contains(char::is_control), "{what}: {told:?}");
    // What stands in the keyring is told to the KMS, which may be the first to refuse.
    let by_kms = error.failure() == Failure::KeyDenied && what.contains("keyring");
    let newer = what.contains("header") && told.contains("use a newer one");
    let code_6 = error.failure() == Failure::Integrity;
    let right = code_6 || by_kms || newer;
    assert!(right, "{what}: {:?}, {told}", error.failure());
}

pub fn number(name: &str) -> usize {
    let found = TABLES.iter().position(|table| table.name == name);
    found.expect("a table")
}

fn copy(from: &Path, to: &Path) {
    crate::support::evil::copy(from, to);
}

/// All rows that are stored now.
pub fn rows(vault: &Path) -> Rows {
    let database: PathBuf = vault.join("vault.db");
    let connection = Connection::open(database).expect("a database");
    let mut rows = Rows::new();
    for (number, table) in TABLES.iter().enumerate() {
        let columns: Vec<&str> = table.columns().collect();
        let sql = format!("SELECT {} FROM {}", columns.join(", "), table.name);
        let mut statement = connection.prepare(&sql).expect(&sql);
        let found = statement.query_map([], |row| {
            (0..columns.len())
                .map(|at| row.get(at))
                .collect::<Result<Row, _>>()
        });
        for row in found.expect("rows") {
            let row = row.expect("a row");
            rows.insert(key(number, &row), row);
        }
    }
    rows
}

/// Takes a row out.
pub fn delete(evil: &Connection, table: usize, row: &Row) {
    let Table { name, key, .. } = &TABLES[table];
    let terms: Vec<String> = key.iter().map(|column| format!("{column} = ?")).collect();
    let sql = format!("DELETE FROM {name} WHERE {}", terms.join(" AND "));
    let mut statement = evil.prepare_cached(&sql).expect(&sql);
    let values = params_from_iter(&row[..key.len()]);
    statement.execute(values).expect(&sql);
}

/// Puts a row in, in the place of one with the same key.
pub fn insert(evil: &Connection, table: usize, row: &Row) {
    let columns: Vec<&str> = TABLES[table].columns().collect();
    let marks = vec!["?"; columns.len()].join(", ");
    let (name, columns) = (TABLES[table].name, columns.join(", "));
    let sql = format!("INSERT OR REPLACE INTO {name} ({columns}) VALUES ({marks})");
    let mut statement = evil.prepare_cached(&sql).expect(&sql);
    statement.execute(params_from_iter(row)).expect(&sql);
}
