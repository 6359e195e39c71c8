//! A medium that is full, gone, or of the wrong kind; durable commits, and records that are erased.

use std::os::unix::fs::MetadataExt as _;

use nix::mount::{MsFlags, mount, umount};

use super::super::checkpoint;
use super::*;
use crate::store::{Scrub, Store};

/// A tmpfs of limited size, for root only.
struct Small {
    home: tempfile::TempDir,
}

impl Small {
    fn new(size: &str) -> Option<Self> {
        let home = tempfile::tempdir().unwrap();
        let options = format!("size={size}");
        mount(
            Some("none"),
            home.path(),
            Some("tmpfs"),
            MsFlags::empty(),
            Some(options.as_str()),
        )
        .ok()
        .map(|()| Self { home })
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = umount(self.home.path());
    }
}

#[test]
fn a_full_disk_refuses_a_write_and_spares_the_store() {
    let Some(small) = Small::new("6m") else {
        return;
    };
    let directory = small.home.path().join("vault");
    create(&directory).unwrap();
    let open = || {
        SqliteStore::open(
            &directory,
            Mode::Write(Holder::current(None)),
            OpenOptions::default(),
        )
        .unwrap()
    };
    let store = open();
    let ballast = small.home.path().join("ballast");
    fs::write(&ballast, vec![0; 2 << 20]).unwrap();
    let mut last = 0;
    let error = loop {
        let i = last + 1;
        match put(&store, |tx| tx.put_node(i, &record(1, &[1; 60_000]))) {
            Ok(()) => last = i,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind, StoreErrorKind::Full, "{error}");
    assert!(last > 5);
    for durability in [Durability::Now, Durability::Soon] {
        let error = write(&store, durability, |tx: &mut dyn Write| {
            tx.put_node(1000, &record(1, &vec![1; 1 << 20]))
        });
        assert_eq!(kind(error), StoreErrorKind::Full);
    }
    get(&store, |tx| {
        assert_eq!(tx.node(last)?.unwrap().value.len(), 60_000);
        assert_eq!(tx.node(last + 1)?, None);
        assert_eq!(tx.node(1000)?, None);
        Ok(())
    })
    .unwrap();
    // Another program frees space: the same store goes on.
    fs::remove_file(&ballast).unwrap();
    put(&store, |tx| tx.put_node(1, &record(2, b"small"))).unwrap();
    drop(store);
    let store = open();
    assert_eq!(
        get(&store, |tx| tx.node(1)).unwrap().unwrap(),
        record(2, b"small")
    );
    assert_eq!(
        get(&store, |tx| tx.node(last))
            .unwrap()
            .unwrap()
            .value
            .len(),
        60_000
    );
}

#[test]
fn a_full_disk_leaves_no_half_vault() {
    let Some(small) = Small::new("64k") else {
        return;
    };
    let directory = small.home.path().join("vault");
    let error = SqliteStore::create(&directory, OpenOptions::default(), &mut |tx| {
        tx.put_keyring(&vec![1; 1 << 20]).unwrap();
        Ok(())
    });
    assert_eq!(kind(error), StoreErrorKind::Full);
    assert!(!directory.exists());
}

#[test]
fn a_vault_that_was_moved_away_acknowledges_nothing() {
    for name in ["vault.db", "vault.db-wal", "lock"] {
        let vault = Vault::filled();
        let store = vault.writer();
        put(&store, |tx| tx.put_orphan(1)).unwrap();
        fs::rename(vault.file(name), vault.file("elsewhere")).unwrap();
        fs::write(vault.file(name), "").unwrap();
        assert_eq!(
            kind(put(&store, |tx| tx.put_orphan(2))),
            StoreErrorKind::Moved
        );
        fs::rename(vault.file("elsewhere"), vault.file(name)).unwrap();
        put(&store, |tx| tx.put_orphan(3)).unwrap();
        assert_eq!(get(&store, |tx| tx.orphans(None, 10)).unwrap(), [1, 3, 9]);
    }
    let vault = Vault::filled();
    let store = vault.writer();
    write(&store, Durability::Soon, |tx: &mut dyn Write| {
        tx.put_orphan(1)
    })
    .unwrap();
    fs::rename(&vault.directory, vault.directory.with_extension("moved")).unwrap();
    assert_eq!(kind(store.sync()), StoreErrorKind::Moved);
}

#[test]
fn what_another_has_synced_is_not_acknowledged_either_after_the_vault_was_moved_away() {
    let vault = Vault::filled();
    let store = vault.writer();
    write(&store, Durability::Soon, |tx: &mut dyn Write| {
        tx.put_orphan(1)
    })
    .unwrap();
    store.sync_without_a_look().unwrap();
    fs::rename(&vault.directory, vault.directory.with_extension("moved")).unwrap();
    for _ in 0..2 {
        assert_eq!(kind(store.sync()), StoreErrorKind::Moved);
    }
}

/// An older copy of the vault would authenticate as well.
#[test]
fn no_connection_is_opened_to_what_took_the_place_of_the_vault() {
    let vault = Vault::filled();
    let store = vault.writer();
    for name in ["vault.db", "vault.db-wal"] {
        fs::rename(vault.file(name), vault.file(&format!("right.{name}"))).unwrap();
        fs::write(
            vault.file(name),
            fs::read(vault.file(&format!("right.{name}"))).unwrap(),
        )
        .unwrap();
    }
    let orphans = || get(&store, |tx| tx.orphans(None, 10));
    assert_eq!(kind(orphans()), StoreErrorKind::Moved);
    for name in ["vault.db", "vault.db-wal"] {
        fs::rename(vault.file(&format!("right.{name}")), vault.file(name)).unwrap();
    }
    assert_eq!(orphans().unwrap(), [9]);
}

/// The files still exist for processes that have them open.
#[test]
fn what_was_moved_away_is_read_by_several_over_the_connections_that_are_left() {
    let vault = Vault::filled();
    let store = vault.writer();
    let orphans = || get(&store, |tx| tx.orphans(None, 10));
    orphans().unwrap();
    fs::rename(&vault.directory, vault.directory.with_extension("moved")).unwrap();
    std::thread::scope(|scope| {
        let (begun, under_way) = std::sync::mpsc::channel();
        let store = &store;
        let first = scope.spawn(move || {
            get(store, |tx| {
                begun.send(()).unwrap();
                // The second thread has no connection of its own meanwhile.
                std::thread::sleep(std::time::Duration::from_millis(50));
                tx.orphans(None, 10)
            })
        });
        under_way.recv().unwrap();
        assert_eq!(orphans().unwrap(), [9]);
        assert_eq!(first.join().unwrap().unwrap(), [9]);
    });
}

#[test]
fn a_vault_replaced_during_a_transaction_latches_the_writer() {
    let vault = Vault::filled();
    let store = vault.writer();
    let outcome = put(&store, |tx| {
        fs::rename(vault.file("vault.db"), vault.file("elsewhere")).unwrap();
        tx.put_orphan(1)
    });
    assert_eq!(kind(outcome), StoreErrorKind::Moved);
    fs::rename(vault.file("elsewhere"), vault.file("vault.db")).unwrap();
    assert_eq!(
        kind(put(&store, |tx| tx.put_orphan(2))),
        StoreErrorKind::Moved
    );
    drop(store);
    put(&vault.writer(), |tx| tx.put_orphan(2)).unwrap();
}

#[test]
fn network_and_fuse_file_systems_are_refused() {
    // Not every environment has 9p or FUSE; any unsafe file system mounted here will do.
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    for line in mounts.lines() {
        let mut fields = line.split(' ').skip(1);
        let (Some(point), Some(kind_of)) = (fields.next(), fields.next()) else {
            continue;
        };
        let unsafe_kind =
            kind_of.starts_with("fuse") || kind_of == "9p" || kind_of.starts_with("nfs");
        let opened = SqliteStore::open(Path::new(point), Mode::ReadOnly, OpenOptions::default());
        // Mounts of other tests come and go, and may be dead.
        if let Err(error) = opened
            && kind_of != "fuse.secretfs"
            && Path::new(point).is_dir()
        {
            assert_eq!(
                error.kind == StoreErrorKind::UnsafeFilesystem,
                unsafe_kind,
                "{line}"
            );
        }
    }
}

#[test]
fn a_sync_writes_nothing() {
    let vault = Vault::filled();
    let store = vault.writer();
    let wal = || fs::metadata(vault.file("vault.db-wal")).unwrap().len();
    store.sync().unwrap();
    assert_eq!(wal(), 0);
    put(&store, |tx| tx.put_orphan(1)).unwrap();
    let durable = wal();
    store.sync().unwrap();
    assert_eq!(wal(), durable);
    write(&store, Durability::Soon, |tx: &mut dyn Write| {
        tx.put_orphan(2)
    })
    .unwrap();
    let soon = wal();
    assert!(soon > durable);
    store.sync().unwrap();
    put(&store, |_| Ok(())).unwrap();
    assert_eq!(wal(), soon);
}

#[test]
fn the_wal_stays_bounded_while_readers_overlap() {
    let vault = Vault::filled();
    let store = vault.writer();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    get(&store, |tx| {
                        tx.node(1)?;
                        std::thread::sleep(std::time::Duration::from_millis(20));
                        tx.node(2)
                    })
                    .unwrap();
                }
            });
        }
        for i in 0..400_u64 {
            write(&store, Durability::Soon, |tx: &mut dyn Write| {
                tx.put_node(i % 4 + 10, &record(i, &vec![i as u8; 1 << 20]))
            })
            .unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    // 400 MiB and more went through it.
    let length = fs::metadata(vault.file("vault.db-wal")).unwrap().len();
    assert!(length < 200 << 20, "{length}");
    drop(store);
    assert!(fs::metadata(vault.file("vault.db")).unwrap().size() < 40 << 20);
}

#[test]
fn commits_without_a_pause_do_not_make_the_wal_grow() {
    let vault = Vault::filled();
    let store = vault.writer();
    let value = [7; 64 << 10];
    let mut longest = 0;
    for i in 0..2_500_u64 {
        // At the pace of the disk, which takes everything twice.
        let durability = match i % 8 {
            0 => Durability::Now,
            _ => Durability::Soon,
        };
        write(&store, durability, |tx: &mut dyn Write| {
            tx.put_node(i % 4 + 10, &record(i, &value))
        })
        .unwrap();
        longest = longest.max(fs::metadata(vault.file("vault.db-wal")).unwrap().len());
    }
    // 160 MiB and more went through it.
    assert!(longest < 64 << 20, "{longest}");
}

#[test]
fn after_a_checkpoint_that_failed_the_wal_is_kept() {
    let vault = Vault::filled();
    let store = vault.writer();
    let value = record(4, b"acknowledged");
    write(&store, Durability::Now, |tx: &mut dyn Write| {
        tx.put_node(40, &value)
    })
    .unwrap();
    let failed = StoreError::new(StoreErrorKind::Io, "cannot sync the database");
    checkpoint::fail(&store.gate, failed);
    let error = write(&store, Durability::Soon, |tx: &mut dyn Write| {
        tx.put_node(41, &value)
    })
    .unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Io);
    drop(store);
    assert!(!vault.snapshot()["vault.db-wal"].0.is_empty());
    let store = vault.writer();
    assert_eq!(get(&store, |tx| tx.node(40)).unwrap(), Some(value));

    // Even if nothing is left to sync.
    store.local_place().take_over();
    store.sync().unwrap();
    let failed = StoreError::new(StoreErrorKind::Io, "cannot sync the database");
    checkpoint::fail(&store.gate, failed);
    drop(store);
    assert!(!vault.snapshot()["vault.db-wal"].0.is_empty());
}

#[test]
fn replaced_and_removed_records_are_gone_from_the_raw_files() {
    let vault = Vault::new();
    let store = vault.writer();
    let marker = |i: u8| format!("old wrap {i} of a key, to be gone afterwards").into_bytes();
    put(&store, |tx| {
        let long = marker(1).repeat(500);
        tx.put_keyring(&long)?;
        for id in 0..500 {
            tx.put_node(id, &record(1, &marker(2).repeat(5)))?;
            tx.put_entry(1, &[id as u8; 32], &marker(3))?;
            tx.insert_version(id, 1, &record(1, &marker(4)), &mut chunks(&[100]))?;
        }
        Ok(())
    })
    .unwrap();
    assert_eq!(store.scrub().unwrap(), Scrub::Scrubbed);
    let contains = |i: u8| {
        vault.snapshot().values().any(|bytes| {
            bytes
                .0
                .windows(marker(i).len())
                .any(|window| window == marker(i).as_slice())
        })
    };
    assert!((1..=4).all(contains));
    put(&store, |tx| tx.put_keyring(&[9; 300])).unwrap();
    put(&store, |tx| {
        for id in 0..500 {
            tx.delete_node(id)?;
            tx.delete_entry(1, &[id as u8; 32])?;
            tx.delete_version(id, 1)?;
        }
        Ok(())
    })
    .unwrap();
    assert!(contains(1));
    assert_eq!(store.scrub().unwrap(), Scrub::Scrubbed);
    for i in 1..=4 {
        assert!(!contains(i), "{i}");
    }
    put(&store, |tx| tx.put_orphan(1)).unwrap();
}
