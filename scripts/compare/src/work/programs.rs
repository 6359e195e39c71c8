//! What secretfs is not made for: a database, and a log.

use std::fs::File;
use std::io::Write;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::read::end;
use crate::Failure;
use crate::bench::{Bench, Row, Unit};
use crate::content::{Random, fill};
use crate::kind::Kind;
use crate::mounted::Mounted;

const SYSTEMS: [Kind; 7] = [
    Kind::Secretfs,
    Kind::Gocryptfs,
    Kind::Securefs,
    Kind::Cryfs,
    Kind::Bindfs,
    Kind::Tmpfs,
    Kind::Floor,
];
/// Ten rounds of 100 commits are the thousand, ten rounds of 1,000 appends the ten thousand.
const COMMITS: u64 = 100;
const APPENDS: u64 = 1000;
/// A round of commits ends at the latest then.
const LONGEST: Duration = Duration::from_millis(1500);
/// Rows of 1,000 bytes that make up 8 MiB.
const ROWS: u64 = 8192;

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self(format!("SQLite: {error}"))
    }
}

fn mount_all(bench: &Bench, name: &str) -> Result<Vec<Mounted>, Failure> {
    let kinds = bench.kinds(&SYSTEMS);
    let mounts = kinds.iter().map(|kind| {
        let mounted = bench.empty(*kind, name)?.mount()?;
        mounted.settle()?;
        Ok(mounted)
    });
    mounts.collect()
}

pub fn sqlite(bench: &mut Bench) -> Result<(), Failure> {
    let what = "a commit to an SQLite database of 8 MiB (journal and synchronous as by default), \
                1,000 commits, each changes one row of 1,000 bytes";
    let mut row = Row::new("sqlite", what, Unit::Microseconds, &[]);
    let mut mounts = mount_all(bench, "sqlite")?;
    for mounted in &mounts {
        let path = mounted.point.join("database");
        let _ = std::fs::remove_file(&path);
        let mut database = Connection::open(path)?;
        let all = database.transaction()?;
        all.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, value BLOB)", [])?;
        for id in 0..ROWS {
            all.execute("INSERT INTO t VALUES (?1, randomblob(1000))", [id as i64])?;
        }
        all.commit()?;
    }
    let mut random = Random::new(8);
    let rounds = if bench.quick { 2 } else { 10 };
    bench.each_round(row.name, rounds, &mut mounts, |_, mounted, _| {
        let database = Connection::open(mounted.point.join("database"))?;
        let mut change = database.prepare("UPDATE t SET value = randomblob(1000) WHERE id = ?1")?;
        let mut done = 0;
        let start = Instant::now();
        while done < COMMITS && start.elapsed() < LONGEST {
            change.execute([random.below(ROWS) as i64])?;
            done += 1;
        }
        row.add(
            mounted.kind,
            start.elapsed().as_secs_f64() * 1e6 / done as f64,
        );
        Ok(())
    })?;
    for mounted in &mounts {
        let database = Connection::open(mounted.point.join("database"))?;
        let verdict: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
        if verdict != "ok" {
            let name = mounted.kind.name();
            return Err(Failure(format!(
                "the database on {name} is broken: {verdict}"
            )));
        }
    }
    bench.rows.push(row);
    end(mounts)
}

pub fn appends(bench: &mut Bench) -> Result<(), Failure> {
    let what = "append 100 bytes to a file of 1 MiB, no fsync; 10,000 appends, a thousand between \
                an open and a close";
    let mut row = Row::new("append", what, Unit::Microseconds, &[]);
    let mut mounts = mount_all(bench, "append")?;
    let mut buffer = vec![0; 1 << 20];
    for mounted in &mounts {
        fill(1, &mut buffer);
        File::create(mounted.point.join("log"))?.write_all(&buffer)?;
    }
    let rounds = if bench.quick { 2 } else { 10 };
    bench.each_round(row.name, rounds, &mut mounts, |_, mounted, _| {
        let start = Instant::now();
        let path = mounted.point.join("log");
        let mut log = File::options().append(true).open(path)?;
        for _ in 0..APPENDS {
            log.write_all(&buffer[..100])?;
        }
        drop(log);
        row.add(
            mounted.kind,
            start.elapsed().as_secs_f64() * 1e6 / APPENDS as f64,
        );
        Ok(())
    })?;
    let wanted = buffer.len() as u64 + rounds as u64 * APPENDS * 100;
    for mounted in &mounts {
        let length = mounted.point.join("log").metadata()?.len();
        if length != wanted {
            let name = mounted.kind.name();
            return Err(Failure(format!("{name}: {length} bytes of {wanted}")));
        }
    }
    bench.rows.push(row);
    end(mounts)
}
