//! Several processes, and the files that one leaves behind.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::*;
use crate::store::{Store, holder};

const VAULT: &str = "SECRETFS_TEST_VAULT";
const ROLE: &str = "SECRETFS_TEST_ROLE";

/// Another process that plays a role on the vault, and has reported that it is ready.
struct Process(Child);

impl Process {
    fn start(vault: &Vault, role: &str) -> Self {
        Self::start_as(&vault.directory, role, 0)
    }

    fn start_as(directory: &Path, role: &str, uid: u32) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args([
                "--exact",
                "store::sqlite::tests::processes::child",
                "--ignored",
                "--nocapture",
            ])
            .env(VAULT, directory)
            .env(ROLE, role)
            .stdout(Stdio::piped());
        if uid != 0 {
            command.uid(uid).gid(uid);
        }
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(
            lines.any(|line| line.unwrap().contains("READY")),
            "the child failed"
        );
        // Read on, or the output of the test harness would block the child.
        std::thread::spawn(move || lines.for_each(drop));
        Self(child)
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    fn join(mut self) {
        assert!(self.0.wait().unwrap().success());
    }
}

#[test]
fn a_writer_knows_whether_somebody_reads_beside_it() {
    let vault = Vault::filled();
    let writer = vault.writer();
    assert!(!writer.local_place().has_readers());
    let reader = Process::start(&vault, "hold a read transaction and hang");
    let here = SqliteStore::open(&vault.directory, Mode::ReadOnly, OpenOptions::default()).unwrap();
    assert!(writer.local_place().has_readers());
    reader.kill();
    assert!(writer.local_place().has_readers());
    drop(here);
    assert!(!writer.local_place().has_readers());
    // A writer does not block readers, nor they a writer.
    let reader = Process::start(&vault, "hold a read transaction and hang");
    drop(writer);
    let writer = vault.writer();
    assert!(writer.local_place().has_readers());
    put(&writer, |tx| tx.put_node(41, &record(4, b"x"))).unwrap();
    reader.kill();
    assert!(!writer.local_place().has_readers());
}

#[test]
#[ignore = "run by other tests"]
fn child() {
    let Some(directory) = std::env::var_os(VAULT) else {
        return;
    };
    let open = |mode| SqliteStore::open(Path::new(&directory), mode, OpenOptions::default());
    let ready = || println!("\nREADY");
    let forever = || -> ! {
        loop {
            std::thread::sleep(Duration::from_secs(60));
        }
    };
    match std::env::var(ROLE).unwrap().as_str() {
        "commit and hang" => {
            let store = open(Mode::Write(Holder::current(Some(Path::new("/mnt/x"))))).unwrap();
            store.local_place().announce().unwrap();
            put(&store, |tx| tx.put_node(40, &record(4, b"durable"))).unwrap();
            ready();
            forever()
        }
        "hold a read transaction and hang" => {
            let store = open(Mode::ReadOnly).unwrap();
            get(&store, |tx| {
                tx.node(1)?;
                ready();
                forever();
                #[expect(unreachable_code)]
                Ok(())
            })
            .unwrap();
        }
        "follow the state" => {
            // A reader sees only whole commits, and finally the last one.
            let store = open(Mode::ReadOnly).unwrap();
            ready();
            let (mut seen, mut changes) = (0, 0);
            let deadline = Instant::now() + Duration::from_secs(60);
            while seen < 500 {
                assert!(Instant::now() < deadline, "saw only {seen}");
                if store.foreign_changes().unwrap() == changes && changes != 0 {
                    std::thread::yield_now();
                    continue;
                }
                changes = store.foreign_changes().unwrap();
                seen = get(&store, |tx| {
                    let generation = tx.node(2)?.unwrap().generation;
                    let state = tx.state()?.unwrap();
                    assert!(generation == 1 || state == generation.to_be_bytes());
                    assert!(generation >= seen);
                    Ok(generation)
                })
                .unwrap();
            }
        }
        "may only read" => {
            let outcome = open(Mode::ReadOnly).and_then(|store| get(&store, |tx| tx.node(1)));
            println!("outcome: {outcome:?}");
            ready();
            outcome.unwrap();
        }
        "may not even read" => {
            let error = open(Mode::ReadOnly).unwrap_err();
            ready();
            assert_eq!(error.kind, StoreErrorKind::Denied, "{error}");
            let error = open(Mode::Write(Holder::current(None))).unwrap_err();
            assert_eq!(error.kind, StoreErrorKind::Denied, "{error}");
        }
        "may not make files" => {
            let error = open(Mode::ReadOnly).unwrap_err();
            ready();
            assert_eq!(error.kind, StoreErrorKind::Denied, "{error}");
            assert!(error.message.contains("write permission"), "{error}");
        }
        "meet an I/O failure" => {
            // SQLite does not know EFBIG, and takes it for a failing medium. Without a handler the
            // signal would end the process.
            let flag = std::sync::Arc::default();
            signal_hook::flag::register(libc::SIGXFSZ, flag).unwrap();
            let store = open(Mode::Write(Holder::current(None))).unwrap();
            let limit = |bytes| {
                let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
                setrlimit(Resource::RLIMIT_FSIZE, bytes, hard).unwrap();
            };
            ready();
            limit(64 << 10);
            let error = put(&store, |tx| tx.put_node(50, &record(1, &[1; 100_000])));
            assert_eq!(kind(error), StoreErrorKind::Io);
            limit(1 << 30);
            let error = put(&store, |tx| tx.put_orphan(50)).unwrap_err();
            assert_eq!(error.kind, StoreErrorKind::Io);
            assert!(
                error.message.contains("until the vault is reopened"),
                "{error}"
            );
            assert_eq!(kind(store.sync()), StoreErrorKind::Io);
            assert_eq!(get(&store, |tx| tx.node(50)).unwrap(), None);
            drop(store);
            let store = open(Mode::Write(Holder::current(None))).unwrap();
            assert_eq!(get(&store, |tx| tx.orphans(None, 9)).unwrap(), [9]);
            put(&store, |tx| tx.put_orphan(50)).unwrap();
        }
        role => panic!("{role}?"),
    }
}

#[test]
fn a_second_writer_is_refused_and_told_who_the_first_one_is() {
    let vault = Vault::filled();
    assert_eq!(holder(&vault.directory).unwrap(), None);
    let me = Holder {
        since: 1,
        ..Holder::current(Some(Path::new("/mnt/s\u{1b}[2J")))
    };
    let first = vault.open_once_free(me.clone()).unwrap();
    assert_eq!(holder(&vault.directory).unwrap(), Some(Holder::unknown()));
    let error = vault.open(Mode::Write(Holder::current(None))).unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Busy);
    assert!(error.message.contains("unknown"), "{error}");

    first.local_place().announce().unwrap();
    assert_eq!(holder(&vault.directory).unwrap(), Some(me));
    let error = vault.open(Mode::Write(Holder::current(None))).unwrap_err();
    assert!(
        error
            .message
            .contains(&format!("process {}", std::process::id())),
        "{error}"
    );
    for part in ["/mnt/s\\u{1b}", "-o ro", "bind mount", " h"] {
        assert!(error.message.contains(part), "{error}");
    }
    drop(vault.reader());
    drop(first);
    assert_eq!(holder(&vault.directory).unwrap(), None);
    assert_eq!(vault.snapshot()["lock"].0, b"");
    drop(vault.writer());
}

#[test]
fn hostile_text_in_the_lock_is_harmless() {
    let vault = Vault::filled();
    let store = vault.writer();
    for text in [
        &b"\xff\xfe"[..],
        b"{}",
        b"[1",
        &[b'['; 100_000],
        b"{\"pid\":-1}",
    ] {
        fs::write(vault.file("lock"), text).unwrap();
        assert_eq!(holder(&vault.directory).unwrap(), Some(Holder::unknown()));
        assert_eq!(
            kind(vault.open(Mode::Write(Holder::current(None)))),
            StoreErrorKind::Busy
        );
    }
    drop(store);
}

/// The child's commits are in the database, without a WAL.
#[track_caller]
fn must_be_in_the_database(vault: &Vault) {
    assert_eq!(
        vault.snapshot().keys().collect::<Vec<_>>(),
        ["lock", "vault.db"]
    );
    assert_eq!(
        get(&vault.reader(), |tx| tx.node(40)).unwrap().unwrap(),
        record(4, b"durable")
    );
}

#[test]
fn a_killed_writer_leaves_its_commits_and_no_lock() {
    let vault = Vault::filled();
    let child = Process::start(&vault, "commit and hang");
    let error = vault.open(Mode::Write(Holder::current(None))).unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Busy);
    assert!(
        error.message.contains(&format!("process {}", child.0.id())),
        "{error}"
    );
    assert!(error.message.contains("/mnt/x"), "{error}");
    child.kill();
    assert_eq!(holder(&vault.directory).unwrap(), None);

    // Reading the remains changes nothing, not even the WAL.
    let before = vault.snapshot();
    assert!(!before["vault.db-wal"].0.is_empty());
    for _ in 0..2 {
        for open in OPEN {
            let store = open(&vault);
            let node = get(&store, |tx| tx.node(40)).unwrap().unwrap();
            assert_eq!(node, record(4, b"durable"));
        }
        assert_eq!(vault.snapshot(), before);
    }
    // The first write changes it, and a writer that closes properly leaves the database alone.
    let store = vault.writer();
    put(&store, |tx| tx.put_node(41, &record(4, b"x"))).unwrap();
    drop(store);
    must_be_in_the_database(&vault);
}

#[test]
fn what_a_killed_writer_left_goes_into_the_database_with_one_that_adopts_it() {
    let vault = Vault::filled();
    Process::start(&vault, "commit and hang").kill();
    let store = vault.writer();
    store.local_place().take_over();
    drop(store);
    must_be_in_the_database(&vault);
}

const OPEN: [fn(&Vault) -> SqliteStore; 2] = [Vault::reader, Vault::writer];

#[test]
fn opening_and_reading_changes_nothing() {
    let vault = Vault::filled();
    let before = vault.snapshot();
    assert_eq!(before.keys().collect::<Vec<_>>(), ["lock", "vault.db"]);
    for _ in 0..2 {
        for open in OPEN {
            let store = open(&vault);
            get(&store, |tx| tx.scan_nodes(None, 10)).unwrap();
            store.foreign_changes().unwrap();
            store.sync().unwrap();
        }
        assert_eq!(vault.snapshot(), before);
        assert!(!vault.file("vault.db-shm").exists());
    }
    fs::write(vault.file("vault.db-wal"), "").unwrap();
    let before = vault.snapshot();
    for open in OPEN {
        let store = open(&vault);
        get(&store, |tx| tx.scan_nodes(None, 10)).unwrap();
    }
    assert_eq!(vault.snapshot(), before);
}

#[test]
fn readers_in_other_processes_follow_a_writer_that_starts_later() {
    let vault = Vault::filled();
    let readers: Vec<_> = (0..4)
        .map(|_| Process::start(&vault, "follow the state"))
        .collect();
    // One writer after the other; the second finds the commits of the first, which was killed.
    Process::start(&vault, "commit and hang").kill();
    let store = vault.writer();
    assert_eq!(
        get(&store, |tx| tx.node(40)).unwrap().unwrap(),
        record(4, b"durable")
    );
    for i in 2..=500_u64 {
        write(&store, Durability::Soon, |tx: &mut dyn Write| {
            tx.put_state(&i.to_be_bytes())?;
            tx.put_node(2, &record(i, &[0; 5000]))
        })
        .unwrap();
    }
    readers.into_iter().for_each(Process::join);
    drop(store);
    assert_eq!(
        vault.snapshot().keys().collect::<Vec<_>>(),
        ["lock", "vault.db"]
    );
}

#[test]
fn only_commits_of_others_count_as_foreign() {
    let vault = Vault::filled();
    let (writer, reader) = (vault.writer(), vault.reader());
    let (own, foreign) = (
        writer.foreign_changes().unwrap(),
        reader.foreign_changes().unwrap(),
    );
    get(&reader, |tx| tx.node(1)).unwrap();
    assert_eq!(reader.foreign_changes().unwrap(), foreign);
    put(&writer, |tx| tx.put_orphan(1)).unwrap();
    assert_eq!(writer.foreign_changes().unwrap(), own);
    assert_ne!(reader.foreign_changes().unwrap(), foreign);
}

#[test]
fn after_an_io_failure_nothing_is_written_until_the_vault_is_reopened() {
    let vault = Vault::filled();
    Process::start(&vault, "meet an I/O failure").join();
    assert_eq!(
        get(&vault.reader(), |tx| tx.orphans(None, 9)).unwrap(),
        [9, 50]
    );
}

#[test]
fn a_reader_that_hangs_does_not_stop_the_writer_from_closing() {
    let vault = Vault::filled();
    let reader = Process::start(&vault, "hold a read transaction and hang");
    let store = vault.writer();
    put(&store, |tx| tx.put_node(40, &record(1, b"x"))).unwrap();
    let start = Instant::now();
    drop(store);
    assert!(
        start.elapsed() < Duration::from_secs(8),
        "{:?}",
        start.elapsed()
    );
    reader.kill();
    assert_eq!(
        get(&vault.reader(), |tx| tx.node(40)).unwrap().unwrap(),
        record(1, b"x")
    );
}

/// A user without write permission: uid 65534, on files that all may read.
fn for_everybody_to_read(vault: &Vault) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let mut path = vault.directory.clone();
    for entry in fs::read_dir(&path).unwrap() {
        let path = entry.unwrap().path();
        fs::set_permissions(path, PermissionsExt::from_mode(0o644)).unwrap();
    }
    while path.starts_with(std::env::temp_dir()) && path != std::env::temp_dir() {
        fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        path.pop();
    }
    vault.directory.clone()
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

#[test]
fn who_may_only_read_reads_while_the_vault_is_open_and_is_told_why_not_otherwise() {
    if !is_root() {
        return;
    }
    let vault = Vault::filled();
    Process::start_as(&vault.directory, "may not even read", 65534).join();
    let directory = for_everybody_to_read(&vault);
    let before = vault.snapshot();
    Process::start_as(&directory, "may not make files", 65534).join();
    assert_eq!(vault.snapshot(), before);

    let store = vault.writer();
    put(&store, |tx| tx.put_orphan(1)).unwrap();
    for_everybody_to_read(&vault);
    Process::start_as(&directory, "may only read", 65534).join();
    put(&store, |tx| tx.put_orphan(2)).unwrap();
}
