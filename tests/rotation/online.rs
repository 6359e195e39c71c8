//! Rotations, on real vaults and mounts: what they replace, what they leave alone, and that they
//! end, whatever happens meanwhile.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::evil::blob;
use crate::support::process::{Place, Ran, kill, status as status_of};
use crate::support::rotating::{
    all_is_there, check_is_clean, command, content, fill, json, secret, serve_with,
    wait_for_the_end,
};

/// It succeeded; how far it got is told on standard error.
#[track_caller]
fn rotated(ran: Ran) -> Ran {
    assert!(ran.0.status.success(), "{}", ran.stderr());
    ran
}

#[test]
fn rotating_a_vault_that_nobody_has_mounted_replaces_its_master_key_and_nothing_else() {
    let place = Place::with_vault();
    place.mount(&[]).succeeded();
    fill(&place.point(), 300);
    place
        .run(["umount".as_ref(), place.point().as_os_str()])
        .succeeded();
    let vault = place.vault();
    let ran = rotated(place.run(["rotate".as_ref(), vault.as_os_str()]));
    assert_eq!(ran.stdout(), crate::support::rotating::done("rotate"));
    let status = json(&place, "status");
    assert_eq!(status["active_generation"], 2, "{status:#}");
    assert_eq!(status["generations"].as_array().map(Vec::len), Some(1));
    assert_eq!(status["retired_generations"][0]["generation"], 1);
    assert!(status["last_rotations"]["rotate"].is_number());
    check_is_clean(&place);
    place.mount(&[]).succeeded();
    all_is_there(&place.point(), 300);
}

#[test]
fn a_mount_rotates_while_files_are_read_and_written_and_no_operation_fails() {
    goes_on_while_files_are_read_and_written("rotate", 10);
}

#[test]
fn a_mount_reencrypts_while_files_are_read_and_written_and_no_operation_fails() {
    goes_on_while_files_are_read_and_written("reencrypt", 10);
}

#[test]
fn a_mount_rewraps_while_files_are_read_and_written_and_no_operation_fails() {
    goes_on_while_files_are_read_and_written("rewrap", 10);
}

/// Mounts the vault twice more, read-only.
fn read_only_mounts(place: &Place) -> Vec<PathBuf> {
    let mount = |n| {
        let point = place.path().join(format!("r{n}"));
        std::fs::create_dir(&point).expect("made");
        let vault = place.vault();
        let args = ["mount".as_ref(), vault.as_os_str(), point.as_os_str()];
        place
            .run(args.into_iter().chain(["-o".as_ref(), "ro".as_ref()]))
            .succeeded();
        point
    };
    (0..2).map(mount).collect()
}

fn goes_on_while_files_are_read_and_written(what: &str, rounds: u64) {
    let place = Place::with_vault();
    place.mount(&[]).succeeded();
    let point = place.point();
    fill(&point, 400);
    let beside = read_only_mounts(&place);
    let stop = Arc::new(AtomicBool::new(false));
    let reads = Arc::new(AtomicU64::new(0));
    let mut threads = Vec::new();
    for point in &beside {
        let (point, stop) = (point.clone(), Arc::clone(&stop));
        threads.push(std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                all_is_there(&point, 400);
            }
        }));
    }
    for reader in 0..8 {
        let (point, stop, reads) = (point.clone(), Arc::clone(&stop), Arc::clone(&reads));
        threads.push(std::thread::spawn(move || {
            let mut n = reader;
            while !stop.load(Ordering::Relaxed) {
                n = (n + 7) % 400;
                assert!(std::fs::read(secret(&point, n)).expect("readable") == content(n));
                reads.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    for writer in 0..4 {
        let (point, stop) = (point.clone(), Arc::clone(&stop));
        threads.push(std::thread::spawn(move || {
            let own = point.join(format!("own-{writer}"));
            for round in 0.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let text = format!("round {round} of writer {writer}");
                std::fs::write(&own, &text).expect("written");
                assert_eq!(std::fs::read_to_string(&own).expect("readable"), text);
                if round % 5 == 0 {
                    std::fs::rename(&own, point.join(format!("old-{writer}"))).expect("renamed");
                }
            }
        }));
    }
    for lister in 0..2 {
        let (point, stop) = (point.clone(), Arc::clone(&stop));
        threads.push(std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let names = std::fs::read_dir(point.join(format!("d{lister}"))).expect("listed");
                let mut names: Vec<_> = names.map(|e| e.expect("an entry").file_name()).collect();
                let count = names.len();
                names.sort();
                names.dedup();
                assert_eq!((count, names.len()), (100, 100), "each name once");
            }
        }));
    }
    let events = |status: &Value| status["events"].as_u64().expect("a number");
    let mut before = events(&status_of(&point));
    for round in 0..rounds {
        command(&point, what).expect("begun");
        let status = wait_for_the_end(&point);
        let generation = if what == "rewrap" { 1 } else { round + 2 };
        assert_eq!(status["active_generation"], generation, "{status:#}");
        assert_eq!(status["generations"].as_array().map(Vec::len), Some(1));
        assert!(events(&status) > before, "{status:#}");
        before = events(&status);
    }
    stop.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().expect("no operation failed");
    }
    for point in &beside {
        place
            .run(["umount".as_ref(), point.as_os_str()])
            .succeeded();
    }
    // All of them, in every round.
    assert!(reads.load(Ordering::Relaxed) > 8 * rounds);
    place
        .run(["umount".as_ref(), point.as_os_str()])
        .succeeded();
    check_is_clean(&place);
}

#[test]
fn read_only_mounts_follow_and_end_up_with_the_new_key() {
    let place = Place::with_vault();
    place.mount(&[]).succeeded();
    fill(&place.point(), 300);
    let points = read_only_mounts(&place);
    let stop = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = points
        .iter()
        .cloned()
        .map(|point| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    all_is_there(&point, 300);
                }
            })
        })
        .collect();
    for what in ["rotate", "reencrypt", "rotate"] {
        command(&place.point(), what).expect("begun");
        wait_for_the_end(&place.point());
    }
    stop.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.join().expect("all was readable throughout");
    }
    for point in &points {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let status = status_of(point);
            let generations = status["generations"].as_array().map(Vec::len);
            if status["active_generation"] == 4 && generations == Some(1) {
                break;
            }
            assert!(Instant::now() < deadline, "{status:#}");
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = nix::mount::umount(point);
    }
}

#[test]
fn a_killed_mount_is_gone_on_from_by_the_next_one() {
    let place = Place::with_vault();
    place.mount(&[]).succeeded();
    fill(&place.point(), 1000);
    let mut finished = 1;
    for round in 0..20u64 {
        // Whatever was under way, there is exactly one rotation at a time.
        match command(&place.point(), "rotate") {
            Ok(()) => finished += 1,
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EBUSY)),
        }
        std::thread::sleep(Duration::from_millis(100 + round * 60));
        for pid in place.daemons() {
            kill(pid, libc::SIGKILL);
        }
        nix::mount::umount2(&place.point(), nix::mount::MntFlags::MNT_DETACH).expect("removed");
        place.mount(&[]).succeeded();
    }
    let status = wait_for_the_end(&place.point());
    assert_eq!(status["active_generation"], finished, "{status:#}");
    all_is_there(&place.point(), 1000);
    place
        .run(["umount".as_ref(), place.point().as_os_str()])
        .succeeded();
    check_is_clean(&place);
}

#[test]
fn a_mount_rotates_by_itself_when_it_is_due_and_not_before() {
    let place = Place::with_vault();
    place.mount(&["-o", "rotate-every=90d"]).succeeded();
    assert_eq!(status_of(&place.point())["active_generation"], 1);
    place
        .run(["umount".as_ref(), place.point().as_os_str()])
        .succeeded();
    assert_eq!(json(&place, "status")["active_generation"], 1);
    place.mount(&["-o", "rotate-every=2s"]).succeeded();
    let deadline = Instant::now() + Duration::from_secs(60);
    while status_of(&place.point())["active_generation"].as_u64() < Some(4) {
        assert!(Instant::now() < deadline, "{:#}", status_of(&place.point()));
        std::thread::sleep(Duration::from_millis(50));
    }
    place
        .run(["umount".as_ref(), place.point().as_os_str()])
        .succeeded();
    check_is_clean(&place);
}

#[test]
fn one_rotation_at_a_time_and_wrong_commands_are_told_apart() {
    let place = Place::with_vault();
    // The first one is under way for as long as it takes to ask for others.
    let _server = serve_with(&place, "migrate-before=1*sleep(4000)");
    let point = place.point();
    fill(&point, 10);
    let refused = |text: &str| command(&point, text).expect_err("refused").raw_os_error();
    assert_eq!(refused("nonsense"), Some(libc::EINVAL));
    assert_eq!(refused("rewrap not-a-uri"), Some(libc::EINVAL));
    let said = std::fs::read_to_string(point.join(".secretfs/control")).expect("readable");
    assert!(said.contains("refused"), "{said}");
    command(&point, "rotate").expect("begun");
    assert_eq!(refused("rotate"), Some(libc::EBUSY));
    let ran = place.run(["rotate".as_ref(), point.as_os_str()]);
    assert_eq!(ran.0.status.code(), Some(7), "{}", ran.stderr());
    assert!(
        ran.stderr().contains("rotate is under way"),
        "{}",
        ran.stderr()
    );
    wait_for_the_end(&point);
    // Asked of the vault, the mount that has it does it.
    let vault = place.vault();
    rotated(place.run(["rotate".as_ref(), vault.as_os_str(), "--wait".as_ref()]));
    assert_eq!(status_of(&point)["active_generation"], 3);
}

#[test]
fn rewrapping_moves_the_vault_to_another_kms_key() {
    let place = Place::with_vault();
    place.mount(&[]).succeeded();
    fill(&place.point(), 20);
    let other = place.path().join("other");
    let made = place.run([
        "init".as_ref(),
        other.as_os_str(),
        "--kms-key".as_ref(),
        "local-kms://b".as_ref(),
    ]);
    made.succeeded();
    let point = place.point();
    let args = [
        "rewrap".as_ref(),
        point.as_os_str(),
        "--kms-key".as_ref(),
        "local-kms://b".as_ref(),
        "--wait".as_ref(),
    ];
    rotated(place.run(args));
    assert_eq!(
        status_of(&point)["generations"][0]["wraps"][0]["kms_key"],
        "local-kms://b"
    );
    command(&point, "rotate").expect("begun");
    wait_for_the_end(&point);
    place
        .run(["umount".as_ref(), point.as_os_str()])
        .succeeded();
    // The old key is needed no more.
    std::fs::remove_file(place.path().join("kms/default.key"))
        .or_else(|_| std::fs::remove_dir_all(place.path().join("kms/default")))
        .expect("the old key removed");
    place.mount(&[]).succeeded();
    all_is_there(&point, 20);
    check_is_clean(&place);
    // A key that does not exist changes nothing.
    let before = status_of(&point);
    let args = [
        "rewrap".as_ref(),
        point.as_os_str(),
        "--kms-key".as_ref(),
        "local-kms://absent".as_ref(),
    ];
    let ran = place.run(args);
    assert_eq!(ran.0.status.code(), Some(4), "{}", ran.stderr());
    assert_eq!(
        status_of(&point)["keyring_sequence"],
        before["keyring_sequence"]
    );
}

#[test]
fn after_a_rotation_the_old_wraps_are_gone_from_the_raw_files() {
    let place = Place::with_vault();
    place.mount(&[]).succeeded();
    fill(&place.point(), 200);
    place
        .run(["umount".as_ref(), place.point().as_os_str()])
        .succeeded();
    let old = wrapped_keys(&place);
    assert!(old.len() >= 400, "{}", old.len());
    place.mount(&[]).succeeded();
    command(&place.point(), "rotate").expect("begun");
    wait_for_the_end(&place.point());
    let mut raw = Vec::new();
    for name in ["vault.db", "vault.db-wal"] {
        raw.push(std::fs::read(place.vault().join(name)).unwrap_or_default());
    }
    for key in &old {
        let found = raw.iter().any(|file| memchr(file, key));
        assert!(!found, "an old wrapped key is still there");
    }
}

/// 24 bytes of each wrapped key, from the records.
fn wrapped_keys(place: &Place) -> Vec<[u8; 24]> {
    let connection = rusqlite::Connection::open(place.vault().join("vault.db")).expect("open");
    let mut keys = Vec::new();
    for (sql, at) in [
        // Kind and revision come first in a node.
        ("SELECT value FROM node", 1 + 8),
        ("SELECT value FROM version", 0),
    ] {
        let mut statement = connection.prepare(sql).expect("prepared");
        let rows = statement
            .query_map([], |row| row.get::<_, Vec<u8>>(0))
            .expect("queried");
        for value in rows {
            let value = value.expect("a value");
            keys.push(value[at..at + 24].try_into().expect("24 bytes"));
        }
    }
    keys
}

fn memchr(haystack: &[u8], needle: &[u8; 24]) -> bool {
    haystack.windows(24).any(|window| window == needle)
}

#[test]
fn after_a_reencryption_no_data_key_is_the_old_one_and_no_old_ciphertext_is_left() {
    let place = Place::with_vault();
    place.mount(&[]).succeeded();
    fill(&place.point(), 200);
    // Open meanwhile: a snapshot in pieces, and one that is unlinked.
    let mut large = std::fs::File::open(secret(&place.point(), 50)).expect("open");
    let mut part = vec![0; 1000];
    std::io::Read::read_exact(&mut large, &mut part).expect("read");
    let mut unlinked = std::fs::File::open(secret(&place.point(), 100)).expect("open");
    std::fs::remove_file(secret(&place.point(), 100)).expect("removed");
    std::fs::write(secret(&place.point(), 50), "replaced").expect("written");
    place
        .run(["check".as_ref(), place.vault().as_os_str()])
        .succeeded();
    let old = raw_pieces(&place);
    let old_chunks = chunk_pieces(&place);
    assert!(old_chunks.len() > 300, "{}", old_chunks.len());
    command(&place.point(), "reencrypt").expect("begun");
    wait_for_the_end(&place.point());
    std::io::Read::read_to_end(&mut large, &mut part).expect("read on");
    assert!(part == content(50), "the snapshot is whole");
    let mut rest = Vec::new();
    std::io::Read::read_to_end(&mut unlinked, &mut rest).expect("read");
    assert!(rest == content(100), "what was unlinked is whole");
    drop((large, unlinked));
    let mut raw = std::fs::read(place.vault().join("vault.db")).expect("read");
    raw.extend(std::fs::read(place.vault().join("vault.db-wal")).unwrap_or_default());
    let chunks: std::collections::HashSet<&[u8]> = old_chunks.iter().map(|c| &c[..]).collect();
    let left = raw
        .windows(24)
        .filter(|window| chunks.contains(window))
        .count();
    assert_eq!(left, 0, "old ciphertext is in the raw files");
    let new = raw_pieces(&place);
    assert_eq!(
        old.intersection(&new).count(),
        0,
        "nothing stands as it stood"
    );
    for n in (0..200).filter(|n| ![50, 100].contains(n)) {
        assert!(std::fs::read(secret(&place.point(), n)).expect("readable") == content(n));
    }
    place
        .run(["umount".as_ref(), place.point().as_os_str()])
        .succeeded();
    check_is_clean(&place);
}

/// 24 bytes out of every 1,000 of the chunks of the contents that are current.
fn chunk_pieces(place: &Place) -> Vec<Vec<u8>> {
    let connection = rusqlite::Connection::open(place.vault().join("vault.db")).expect("open");
    let mut statement = connection
        .prepare("SELECT sealed FROM chunk")
        .expect("prepared");
    let rows = statement.query_map([], |row| row.get::<_, Vec<u8>>(0));
    let chunks = rows.expect("queried").map(|chunk| chunk.expect("a chunk"));
    let pieces = chunks.flat_map(|chunk| {
        let pieces = chunk.chunks(1000).filter(|piece| piece.len() >= 24);
        pieces.map(|piece| piece[..24].to_vec()).collect::<Vec<_>>()
    });
    pieces.collect()
}

/// 24 bytes out of everything that is sealed in the vault: nonces of wrapped keys, of attributes,
/// names, sums and chunks, and the tags under which names are filed.
fn raw_pieces(place: &Place) -> std::collections::BTreeSet<Vec<u8>> {
    let connection = rusqlite::Connection::open(place.vault().join("vault.db")).expect("open");
    let mut pieces = std::collections::BTreeSet::new();
    for sql in [
        "SELECT substr(value, 10, 24) FROM node",
        "SELECT substr(value, 100, 24) FROM node",
        "SELECT substr(value, 1, 24) FROM version",
        "SELECT substr(value, 90, 24) FROM version",
        "SELECT substr(value, 13, 24) FROM entry",
        "SELECT tag FROM entry",
        "SELECT substr(sealed, 1, 24) FROM chunk",
        "SELECT substr(value, 1, 24) FROM state",
    ] {
        let mut statement = connection.prepare(sql).expect("prepared");
        let rows = statement.query_map([], |row| row.get::<_, Vec<u8>>(0));
        pieces.extend(rows.expect("queried").map(|piece| piece.expect("a piece")));
    }
    assert!(pieces.len() > 1000, "{}", pieces.len());
    pieces
}

#[test]
fn the_history_is_shown_and_every_change_of_it_is_found() {
    let place = Place::with_vault();
    let vault = place.vault();
    rotated(place.run(["rotate".as_ref(), vault.as_os_str()]));
    let audit = |flag: &str| place.run(["audit".as_ref(), vault.as_os_str(), flag.as_ref()]);
    let lines = audit("--json").succeeded().stdout();
    let events: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let kinds: Vec<_> = events
        .iter()
        .map(|e| e["event"].as_str().unwrap_or_default())
        .collect();
    assert_eq!(
        kinds,
        [
            "created",
            "change-started",
            "activated",
            "retired",
            "change-finished"
        ]
    );
    audit("--verify").succeeded();
    let swap = |one: usize, other: usize| {
        format!(
            "UPDATE event SET sequence = -sequence WHERE sequence IN ({one}, {other}); \
             UPDATE event SET sequence = {one} + {other} + sequence WHERE sequence < 0"
        )
    };
    let mut edits = Vec::new();
    for at in 1..=events.len() {
        edits.push(format!("DELETE FROM event WHERE sequence = {at}"));
        // The tail from here on, however long.
        edits.push(format!("DELETE FROM event WHERE sequence >= {at}"));
        // Removed, and the rest moved up.
        edits.push(format!(
            "DELETE FROM event WHERE sequence = {at}; \
             UPDATE event SET sequence = sequence - 1 WHERE sequence > {at}"
        ));
        for other in at + 1..=events.len() {
            edits.push(swap(at, other));
            edits.push(format!(
                "UPDATE event SET value = (SELECT value FROM event WHERE sequence = {other}) \
                 WHERE sequence = {at}"
            ));
        }
        let value = format!("SELECT value FROM event WHERE sequence = {at}");
        for byte in (0..blob(&place, &value).len()).step_by(7) {
            let mut changed = blob(&place, &value);
            changed[byte] ^= 1 << (byte % 8);
            let hex: String = changed.iter().map(|b| format!("{b:02x}")).collect();
            edits.push(format!(
                "UPDATE event SET value = x'{hex}' WHERE sequence = {at}"
            ));
        }
    }
    for edit in edits {
        let saved = std::fs::read(vault.join("vault.db")).expect("read");
        let connection = rusqlite::Connection::open(vault.join("vault.db")).expect("open");
        connection.execute_batch(&edit).expect("edited");
        connection.close().expect("closed");
        let ran = audit("--verify");
        assert_eq!(ran.0.status.code(), Some(6), "{edit}: {}", ran.stderr());
        std::fs::write(vault.join("vault.db"), saved).expect("put back");
        for left in ["vault.db-wal", "vault.db-shm"] {
            let _ = std::fs::remove_file(vault.join(left));
        }
    }
    audit("--verify").succeeded();
}
