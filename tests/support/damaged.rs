//! A vault with secrets of which records are damaged.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Connection;
use serde_json::Value;

use super::process::{Place, Ran, status, wait_for};
use super::rotating::{content, fill, secret};

pub const SECRETS: usize = 60;
const SOON: Duration = Duration::from_secs(60);

/// A vault with secrets, and the numbers of their nodes and of the directories.
pub struct World {
    pub place: Place,
    pub nodes: Vec<u64>,
    pub directories: Vec<u64>,
}

impl World {
    /// Mounted.
    pub fn new() -> Self {
        let place = Place::with_vault();
        place.mount(&[]).succeeded();
        let point = place.point();
        fill(&point, SECRETS);
        let number = |path: PathBuf| std::fs::metadata(path).expect("there").ino();
        Self {
            nodes: (0..SECRETS).map(|n| number(secret(&point, n))).collect(),
            directories: (0..4)
                .map(|d| number(point.join(format!("d{d}"))))
                .collect(),
            place,
        }
    }

    pub fn unmounted() -> Self {
        let world = Self::new();
        world.umount();
        world
    }

    pub fn umount(&self) {
        let point = self.place.point();
        let umount = ["umount".as_ref(), point.as_os_str()];
        self.place.run(umount).succeeded();
        wait_for("the daemon's end", SOON, || self.place.daemons().is_empty());
    }

    pub fn run(&self, args: &[&str]) -> Ran {
        let vault = self.place.vault();
        let (command, flags) = args.split_first().expect("a command");
        let args = [command.as_ref(), vault.as_os_str()];
        self.place
            .run(args.into_iter().chain(flags.iter().map(AsRef::as_ref)))
    }

    pub fn database(&self) -> Connection {
        Connection::open(self.place.vault().join("vault.db")).expect("open")
    }

    pub fn edit(&self, sql: &str) -> usize {
        let changed = self.database().execute(sql, []).expect("edited");
        assert!(changed > 0, "{sql}");
        changed
    }

    /// Changes one bit of a blob.
    pub fn flip(&self, table: &str, column: &str, which: &str, at: usize) {
        let database = self.database();
        let sql = format!("SELECT {column} FROM {table} WHERE {which}");
        let mut value: Vec<u8> = database.query_row(&sql, [], |row| row.get(0)).expect("one");
        value[at] ^= 1;
        let sql = format!("UPDATE {table} SET {column} = ?1 WHERE {which}");
        assert_eq!(database.execute(&sql, [value]).expect("changed"), 1);
    }

    /// The secrets that are where they were, whole.
    pub fn in_place(&self) -> Vec<usize> {
        let all = 0..SECRETS;
        all.filter(|n| {
            std::fs::read(secret(&self.place.point(), *n)).is_ok_and(|found| found == content(*n))
        })
        .collect()
    }

    /// What is in `lost+found`.
    pub fn lost(&self) -> BTreeMap<String, Vec<u8>> {
        let directory = self.place.point().join("lost+found");
        let Ok(entries) = std::fs::read_dir(directory) else {
            return BTreeMap::new();
        };
        let entries = entries.map(|entry| entry.expect("an entry"));
        entries
            .map(|entry| {
                let name = entry.file_name().into_string().expect("UTF-8");
                (name, std::fs::read(entry.path()).unwrap_or_default())
            })
            .collect()
    }

    pub fn events(&self) -> Vec<Value> {
        let lines = self.run(&["audit", "--json"]).succeeded().stdout();
        let lines = lines.lines();
        lines
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect()
    }

    /// Files beside the vault with what was taken out of it.
    pub fn taken_out(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.place.path()).expect("listed");
        let entries = entries.map(|entry| entry.expect("an entry").path());
        entries
            .filter(|path| path.to_string_lossy().contains("/v.removed-"))
            .collect()
    }
}

pub fn all_but(damaged: &[usize]) -> Vec<usize> {
    (0..SECRETS).filter(|n| !damaged.contains(n)).collect()
}

#[track_caller]
pub fn wait_until_blocked(point: &Path) -> Value {
    let mut now = Value::Null;
    wait_for("it to be blocked", SOON, || {
        now = status(point)["rotation"].take();
        now["blocked"] == true
    });
    now
}
