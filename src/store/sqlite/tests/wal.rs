//! Transactions on their way into the WAL.

use proptest::prelude::*;
use rusqlite::Connection;

use super::super::connection::{self, Purpose};
use super::super::vfs;
use super::*;

/// The number of writes of this thread to files or devices.
fn writes() -> u64 {
    let counts = fs::read_to_string("/proc/thread-self/io").unwrap();
    let line = counts.lines().find_map(|line| line.strip_prefix("syscw: "));
    line.unwrap().parse().unwrap()
}

#[test]
fn a_transaction_gets_into_the_wal_with_one_write() {
    let vault = Vault::filled();
    let store = vault.writer();
    let large = |store: &SqliteStore, first: u64| {
        put(store, |tx| {
            (first..first + 20).try_for_each(|id| tx.put_node(id, &record(1, &[7; 2_000])))
        })
        .unwrap();
    };
    // The first transaction begins the WAL, and reads pages.
    large(&store, 100);
    let before = writes();
    large(&store, 200);
    assert_eq!(writes() - before, 1);
}

/// A change of a table.
#[derive(Clone, Debug)]
enum Step {
    /// Rows of this many bytes.
    Put(std::ops::Range<u8>, u16),
    Remove(std::ops::Range<u8>),
    Commit,
    Rollback,
    Savepoint,
    RollbackToSavepoint,
    /// A checkpoint by another connection, which may restart or truncate the WAL.
    Checkpoint(bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let rows = || (0..60_u8, 1..30_u8).prop_map(|(first, count)| first..first + count);
    let step = prop_oneof![
        6 => (rows(), 0..6_000_u16).prop_map(|(rows, size)| Step::Put(rows, size)),
        2 => rows().prop_map(Step::Remove),
        3 => Just(Step::Commit),
        1 => Just(Step::Rollback),
        1 => Just(Step::Savepoint),
        1 => Just(Step::RollbackToSavepoint),
        1 => any::<bool>().prop_map(Step::Checkpoint),
    ];
    proptest::collection::vec(step, 1..60)
}

fn take(connection: &Connection, step: &Step, number: usize) {
    match step {
        Step::Put(rows, size) => {
            for id in rows.clone() {
                let value = vec![number as u8; usize::from(*size)];
                let sql = "INSERT INTO row VALUES (?1, ?2) \
                           ON CONFLICT (id) DO UPDATE SET value = excluded.value";
                connection.execute(sql, (id, value)).unwrap();
            }
        }
        Step::Remove(rows) => {
            let sql = "DELETE FROM row WHERE id BETWEEN ?1 AND ?2";
            connection.execute(sql, (rows.start, rows.end)).unwrap();
        }
        Step::Commit => connection.execute_batch("COMMIT; BEGIN IMMEDIATE").unwrap(),
        Step::Rollback => {
            connection.execute_batch("ROLLBACK").unwrap();
            vfs::forget(connection);
            connection.execute_batch("BEGIN IMMEDIATE").unwrap();
        }
        Step::Savepoint => connection.execute_batch("SAVEPOINT s").unwrap(),
        Step::RollbackToSavepoint => {
            // There may be no savepoint.
            let _ = connection.execute_batch("ROLLBACK TO s");
        }
        Step::Checkpoint(cuts) => {
            let mode = if *cuts { "TRUNCATE" } else { "PASSIVE" };
            let path = connection.path().unwrap();
            let other = Connection::open(path).unwrap();
            // The transaction under way blocks some checkpoints.
            other.busy_timeout(std::time::Duration::ZERO).unwrap();
            other
                .query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |_| Ok(()))
                .unwrap();
        }
    }
}

fn rows(connection: &Connection) -> Vec<(u8, Vec<u8>)> {
    let mut statement = connection.prepare("SELECT * FROM row ORDER BY id").unwrap();
    statement
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap()
}

fn make(path: &Path, purpose: Purpose) -> Connection {
    fs::File::create_new(path).unwrap();
    let connection = connection::connect(path, purpose).unwrap();
    // Ten pages: transactions spill, and change again what they have spilled.
    let sql = "PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0; PRAGMA cache_size = 10; \
               PRAGMA synchronous = NORMAL; PRAGMA busy_timeout = 0; \
               CREATE TABLE row (id INTEGER PRIMARY KEY, value BLOB NOT NULL) STRICT";
    connection.execute_batch(sql).unwrap();
    connection
}

#[test]
fn what_was_given_up_is_not_written_over_what_others_have_committed_since() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("ours.db");
    let ours = make(&path, Purpose::Write);
    let put = |connection: &Connection, number| {
        let all = Step::Put(0..40, 3_000);
        connection.execute_batch("BEGIN IMMEDIATE").unwrap();
        take(connection, &all, number);
    };
    put(&ours, 1);
    ours.execute_batch("COMMIT").unwrap();
    let other = Connection::open(&path).unwrap();
    let length = || fs::metadata(home.path().join("ours.db-wal")).unwrap().len();
    for number in [2, 4, 6] {
        let before = length();
        put(&ours, number);
        // The transaction has spilled, and the VFS holds that back.
        assert!(length() - before < 40 * 3_000);
        ours.execute_batch("ROLLBACK").unwrap();
        vfs::forget(&ours);
        put(&other, number + 1);
        other.execute_batch("COMMIT").unwrap();
        assert_eq!(rows(&ours), rows(&other));
        assert_eq!(rows(&ours)[0].1[0], number as u8 + 1);
        let fresh = Connection::open(&path).unwrap();
        let sound: String = fresh
            .query_row("PRAGMA integrity_check", [], |row| row.get(0))
            .unwrap();
        assert_eq!(sound, "ok");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]

    #[test]
    fn what_is_held_back_and_written_at_once_is_what_sqlite_writes_by_itself(steps in steps()) {
        let home = tempfile::tempdir().unwrap();
        let path = |name: &str| home.path().join(name);
        let ours = make(&path("ours.db"), Purpose::Write);
        let plain = make(&path("plain.db"), Purpose::Read);
        for connection in [&ours, &plain] {
            connection.execute_batch("BEGIN IMMEDIATE").unwrap();
        }
        for (number, step) in steps.iter().enumerate() {
            for connection in [&ours, &plain] {
                take(connection, step, number);
            }
            // As its own transaction sees it, as others do, and after a crash.
            prop_assert_eq!(rows(&ours), rows(&plain));
            if matches!(step, Step::Commit) {
                let wal = |name: &str| fs::read(path(&format!("{name}.db-wal"))).unwrap().len();
                prop_assert!(wal("ours") >= wal("plain").min(32));
                for end in ["", "-wal"] {
                    fs::copy(path(&format!("ours.db{end}")), path(&format!("crash.db{end}"))).unwrap();
                }
                let crashed = Connection::open(path("crash.db")).unwrap();
                let others = Connection::open(path("plain.db")).unwrap();
                prop_assert_eq!(rows(&crashed), rows(&others));
                let sound: String =
                    crashed.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
                prop_assert_eq!(sound, "ok");
                drop(crashed);
                for end in ["", "-wal", "-shm"] {
                    let _ = fs::remove_file(path(&format!("crash.db{end}")));
                }
            }
        }
    }
}
