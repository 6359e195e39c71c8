//! Directories whose names are being filed under another key: whatever is done with them meanwhile is
//! as it is with others.
//!
//! The program moves a few names at a time, and takes its time, as fail points tell it to.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::support::damaged::{SECRETS, World, all_but, wait_until_blocked};
use crate::support::layer::{Layer, new_node};
use crate::support::listing::Slow;
use crate::support::load::Dice;
use crate::support::process::{Place, Server, status, wait_for};
use crate::support::rotating::{
    check_is_clean, command, content, secret, serve_with, wait_for_the_end,
};
use secretfs::keyring::RotationKind;
use secretfs::store::Durability;
use secretfs::vault::{Kind, Outcome, Phase, ROOT, Request, Tx, Vault};

/// In one directory.
const NAMES: usize = 2500;
const SOON: Duration = Duration::from_secs(60);
/// That many listings are made of it while its names move.
const LISTINGS: u64 = 6;

/// A vault that is served, with a directory of many names.
fn large_directory(fail_points: &str) -> (Place, Server) {
    let place = Place::with_vault();
    let server = serve_with(&place, fail_points);
    let directory = place.point().join("large");
    std::fs::create_dir(&directory).expect("made");
    for n in 0..NAMES {
        let name = directory.join(n.to_string());
        match n % 10 {
            0 => std::fs::create_dir(name).expect("made"),
            _ => std::fs::write(name, "").expect("written"),
        }
    }
    (place, server)
}

/// Unmounts.
fn ended(place: &Place, server: Server) {
    let point = place.point();
    place
        .run(["umount".as_ref(), point.as_os_str()])
        .succeeded();
    assert_eq!(server.ended(Duration::from_secs(30)).0, Some(0));
}

/// That every name is shown, and none twice.
#[track_caller]
fn each_once(names: Vec<String>) {
    let mut times: HashMap<String, u32> = HashMap::new();
    for name in names {
        *times.entry(name).or_default() += 1;
    }
    for n in 0..NAMES {
        assert_eq!(times.remove(&n.to_string()), Some(1), "name {n}");
    }
    assert_eq!(times.remove("."), Some(1));
    assert_eq!(times.remove(".."), Some(1));
    // Of others that come and go nothing is promised but that they are not made up.
    assert!(
        times.keys().all(|name| name.starts_with("other-")),
        "{times:?}"
    );
}

/// Whether a directory's names are being moved, as far as that can be seen from outside.
fn is_moving(point: &Path) -> bool {
    status(point)["rotation"]["phase"] == "migrating"
}

#[test]
fn a_listing_shows_every_name_once_while_all_of_them_move() {
    let (place, server) = large_directory("names-at-a-time=return(20);names-before=sleep(20)");
    let point = place.point();
    let reader_at = place.path().join("r");
    std::fs::create_dir(&reader_at).expect("made");
    let vault = place.vault();
    let mount = ["mount".as_ref(), vault.as_os_str(), reader_at.as_os_str()];
    let read_only = ["-o".as_ref(), "ro,ttl=0".as_ref()];
    place.run(mount.into_iter().chain(read_only)).succeeded();
    let stop = Arc::new(AtomicBool::new(false));
    let meanwhile = Arc::new(AtomicU64::new(0));
    let mut threads = Vec::new();
    // Of the size of one name and of many; of the writer and of a reader beside; with and without
    // going back.
    for (at, room, goes_back) in [
        (&point, 600, false),
        (&point, 40_000, false),
        (&point, 5_000, true),
        (&reader_at, 600, false),
        (&reader_at, 40_000, true),
    ] {
        let (stop, meanwhile) = (Arc::clone(&stop), Arc::clone(&meanwhile));
        let (at, point) = (at.join("large"), point.clone());
        threads.push(std::thread::spawn(move || {
            let mut dice = Dice(room as u64);
            let pieces = (NAMES * 40 / room).max(1) as u32;
            let pause = Duration::from_millis(300) / pieces;
            while !stop.load(Ordering::SeqCst) {
                let began = is_moving(&point);
                let mut back = || goes_back && dice.roll(15) == 0;
                each_once(Slow::open(&at, room).all(pause, &mut back));
                meanwhile.fetch_add(u64::from(began && is_moving(&point)), Ordering::SeqCst);
            }
        }));
    }
    {
        let (stop, directory) = (Arc::clone(&stop), point.join("large"));
        threads.push(std::thread::spawn(move || {
            for n in 0.. {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let [one, other] =
                    ["one", "two"].map(|name| directory.join(format!("other-{name}")));
                std::fs::write(&one, n.to_string()).expect("written");
                std::fs::rename(&one, &other).expect("renamed");
                assert_eq!(
                    std::fs::read(&other).expect("read"),
                    n.to_string().as_bytes()
                );
                std::fs::remove_file(&other).expect("removed");
                // They are there under whichever key.
                let known = directory.join((n % NAMES).to_string());
                assert!(
                    std::fs::symlink_metadata(&known).is_ok(),
                    "{}",
                    known.display()
                );
                let taken = std::fs::create_dir(&known).expect_err("it is there");
                assert_eq!(taken.raw_os_error(), Some(libc::EEXIST));
            }
        }));
    }
    while meanwhile.load(Ordering::SeqCst) < LISTINGS {
        command(&point, "reencrypt").expect("begun");
        wait_for_the_end(&point);
        let failed = threads.iter().position(|thread| thread.is_finished());
        assert_eq!(failed, None, "a thread has ended");
    }
    stop.store(true, Ordering::SeqCst);
    for thread in threads {
        thread.join().expect("every name was shown once");
    }
    let _ = nix::mount::umount(&reader_at);
    ended(&place, server);
    check_is_clean(&place);
}

// --- records that are not what was stored ---------------------------------------------------------

/// Rows of `entry` of a directory by the epoch that they say they are of, first the older ones.
fn by_epoch(world: &World, directory: u64) -> Vec<(u32, Vec<Row>)> {
    let mut found: BTreeMap<u32, Vec<Row>> = BTreeMap::new();
    for (tag, value) in rows(world, directory) {
        let epoch = u32::from_le_bytes(value[..4].try_into().expect("4 bytes"));
        found.entry(epoch).or_default().push((tag, value));
    }
    found.into_iter().collect()
}

/// Tag and value.
type Row = (Vec<u8>, Vec<u8>);

fn rows(world: &World, directory: u64) -> Vec<Row> {
    let database = world.database();
    let sql = "SELECT tag, value FROM entry WHERE directory = ?1 ORDER BY tag";
    let mut statement = database.prepare(sql).expect("prepared");
    let rows = statement.query_map([directory as i64], |row| Ok((row.get(0)?, row.get(1)?)));
    rows.expect("queried")
        .map(|row| row.expect("a row"))
        .collect()
}

/// Puts a row where it was, or in the place of what is there.
fn put(world: &World, directory: u64, (tag, value): &Row) {
    let sql = "INSERT OR REPLACE INTO entry (directory, tag, value) VALUES (?1, ?2, ?3)";
    let put = world
        .database()
        .execute(sql, (directory as i64, tag, value));
    assert_eq!(put.expect("put"), 1);
}

/// A mounted vault in which one name of directory `d1` does not open, so that the directory keeps
/// both keys: the world, the directory, all its rows from before, and the one that was damaged.
fn stuck() -> (World, u64, Vec<Row>, Row) {
    let world = World::new();
    let directory = world.directories[1];
    let before = rows(&world, directory);
    let (tag, value) = before[5].clone();
    let mut damaged = value.clone();
    damaged[60] ^= 1;
    put(&world, directory, &(tag.clone(), damaged));
    command(&world.place.point(), "reencrypt").expect("begun");
    let blocked = wait_until_blocked(&world.place.point());
    let named = format!("node {directory}");
    assert_eq!(
        blocked["records"],
        serde_json::json!([named]),
        "{blocked:#}"
    );
    assert_eq!(blocked["damaged"], 1);
    let epochs = by_epoch(&world, directory);
    let counts: Vec<_> = epochs
        .iter()
        .map(|(epoch, rows)| (*epoch, rows.len()))
        .collect();
    assert_eq!(counts, [(1, 1), (2, before.len() - 1)]);
    // Nothing but this directory, and the vault's own node, which is replaced last.
    let sql = "SELECT id FROM node WHERE generation = 1 ORDER BY id";
    let database = world.database();
    let mut statement = database.prepare(sql).expect("prepared");
    let left = statement.query_map([], |row| row.get(0)).expect("queried");
    let left: Vec<i64> = left.map(|id| id.expect("a number")).collect();
    assert_eq!(left, [0, directory as i64]);
    (world, directory, before, (tag, value))
}

/// The secrets of `d1`.
fn below() -> impl Iterator<Item = usize> {
    (0..SECRETS).filter(|n| n % 4 == 1)
}

/// The secret whose name is not there.
#[track_caller]
fn missing(world: &World) -> usize {
    let mut gone = Vec::new();
    // The kernel knows names for a second.
    wait_for("the name to be missed", SOON, || {
        let left = world.in_place();
        gone = (0..SECRETS).filter(|n| !left.contains(n)).collect();
        !gone.is_empty()
    });
    assert_eq!(gone.len(), 1, "{gone:?}");
    assert!(below().any(|n| n == gone[0]));
    gone[0]
}

#[test]
fn a_name_that_does_not_open_holds_up_no_other_and_is_repaired_or_given_up() {
    for way in ["restored", "repaired", "given up"] {
        let (world, directory, _, row) = stuck();
        let point = world.place.point();
        let gone = missing(&world);
        // The others can be used, and there can be more and fewer.
        let name = |n: usize| secret(&point, n);
        let [first, second] = [0, 1].map(|at| below().filter(|n| *n != gone).nth(at).expect("one"));
        std::fs::rename(name(first), point.join("d1/renamed")).expect("renamed");
        std::fs::rename(point.join("d1/renamed"), name(first)).expect("renamed");
        std::fs::remove_file(name(second)).expect("removed");
        std::fs::write(name(second), content(second)).expect("written");
        assert_eq!(world.in_place(), all_but(&[gone]));
        match way {
            "restored" => {
                put(&world, directory, &row);
                command(&point, "reencrypt").expect_err("it is under way");
                world.umount();
                world.run(&["check"]).succeeded();
                world.place.mount(&[]).succeeded();
            }
            "repaired" => {
                world.umount();
                let checked = world.run(&["check"]);
                assert_eq!(checked.0.status.code(), Some(6));
                let said = checked.stdout();
                assert!(said.contains(&format!("directory {directory}")), "{said}");
                world.run(&["check", "--repair"]).succeeded();
                // It has both keys still, and all fits.
                check_is_clean(&world.place);
                world.place.mount(&[]).succeeded();
            }
            _ => {
                let ran = world.run(&["reencrypt", "--retire-despite", "--wait"]);
                assert!(ran.0.status.success(), "{}", ran.stderr());
                world.umount();
                assert_eq!(world.run(&["check"]).0.status.code(), Some(6));
                world.run(&["check", "--repair"]).succeeded();
                world.place.mount(&[]).succeeded();
            }
        }
        let after = wait_for_the_end(&point);
        assert_eq!(after["active_generation"], 2, "{way}");
        assert_eq!(after["generations"].as_array().map(Vec::len), Some(1));
        let lost = world.lost();
        match way {
            "restored" => assert_eq!(world.in_place(), all_but(&[])),
            _ => {
                assert_eq!(world.in_place(), all_but(&[gone]), "{way}");
                let contents: Vec<_> = lost.into_values().collect();
                assert_eq!(contents, [content(gone)], "{way}");
            }
        }
        world.umount();
        check_is_clean(&world.place);
        assert_eq!(by_epoch(&world, directory).len(), 1, "{way}");
    }
}

#[test]
fn a_row_that_is_none_costs_those_who_insist_no_name_that_has_moved() {
    let world = World::new();
    let directory = world.directories[1];
    let (last, _) = rows(&world, directory).pop().expect("rows");
    put(&world, directory, &(last, vec![0; 20_000]));
    let point = world.place.point();
    command(&point, "reencrypt").expect("begun");
    wait_until_blocked(&point);
    let ran = world.run(&["reencrypt", "--retire-despite", "--wait"]);
    assert!(ran.0.status.success(), "{}", ran.stderr());
    let gone = missing(&world);
    assert_eq!(world.in_place(), all_but(&[gone]));
    world.umount();
    let database = world.database();
    let sql = "DELETE FROM entry WHERE length(value) = 20000";
    assert_eq!(database.execute(sql, []).expect("removed"), 1);
    drop(database);
    world.run(&["check", "--repair"]).succeeded();
    world.place.mount(&[]).succeeded();
    assert_eq!(world.in_place(), all_but(&[gone]));
    assert_eq!(
        world.lost().into_values().collect::<Vec<_>>(),
        [content(gone)]
    );
    world.umount();
    check_is_clean(&world.place);
}

#[test]
fn who_insists_in_the_middle_of_a_run_loses_no_more_than_who_insists_before_it() {
    let layer = Layer::new();
    let open = || Vault::open(&layer.vault(), &layer.options()).expect("opened");
    let names: Vec<String> = (0..20).map(|n| n.to_string()).collect();
    let directory = {
        let vault = open();
        let mut directory = 0;
        // It is looked at first, and others after it.
        let mut fill = |tx: &mut Tx<'_>| {
            directory = tx.create(ROOT, b"first", &new_node(Kind::Directory, 0o700))?;
            for name in &names {
                tx.create(directory, name.as_bytes(), &new_node(Kind::File, 0o600))?;
            }
            for n in 0..2_000 {
                let name = format!("other-{n}");
                tx.create(ROOT, name.as_bytes(), &new_node(Kind::File, 0o600))?;
            }
            Ok(())
        };
        let filled = vault.transact(Durability::Now, &mut [&mut fill]);
        filled.expect("filled").remove(0).expect("filled");
        directory
    };
    let database = rusqlite::Connection::open(layer.vault().join("vault.db")).expect("open");
    let sql = "UPDATE entry SET value = CAST(value || x'00' AS BLOB) WHERE (directory, tag) IN \
               (SELECT directory, tag FROM entry WHERE directory = ?1 LIMIT 1)";
    assert_eq!(
        database.execute(sql, [directory as i64]).expect("damaged"),
        1
    );
    drop(database);
    let vault = Vault::open_to_repair(&layer.vault(), &layer.options()).expect("opened");
    vault.begin(&Request::Reencrypt).expect("begun");
    let insisted = Cell::new(false);
    let go_on = || {
        let progress = vault.progress().expect("under way");
        if progress.done > 1 && !insisted.get() {
            assert_eq!(progress.phase, Phase::Migrating);
            insisted.set(true);
            let insist = Request::Despite(RotationKind::Reencrypt);
            vault.begin(&insist).expect("joined");
        }
        ControlFlow::Continue(())
    };
    assert_eq!(vault.drive(&go_on).expect("driven"), Outcome::Done);
    assert!(insisted.get());
    let there = |name: &&String| vault.lookup(directory, name.as_bytes()).is_ok();
    assert_eq!(names.iter().filter(there).count(), names.len() - 1);
}

#[test]
fn what_was_put_back_into_a_directory_whose_names_move_is_noticed() {
    // A name that has moved, under its former key once more; one that was removed since.
    for removed in [false, true] {
        let (world, directory, before, row) = stuck();
        let point = world.place.point();
        let gone = missing(&world);
        let others = below().filter(|n| *n != gone);
        let mut all = all_but(&[]);
        if removed {
            for n in others {
                std::fs::remove_file(secret(&point, n)).expect("removed");
                all.retain(|left| *left != n);
            }
        }
        let old = before.iter().find(|(tag, _)| *tag != row.0).expect("one");
        put(&world, directory, old);
        put(&world, directory, &row);
        // It is tried again: what was damaged moves, and the other does not make itself at home.
        command(&point, "reencrypt").expect_err("it is under way");
        let left = || {
            let epochs = by_epoch(&world, directory);
            epochs
                .first()
                .is_some_and(|(epoch, rows)| (*epoch, &rows[..]) == (1, std::slice::from_ref(old)))
        };
        wait_for("the others to move", SOON, left);
        let blocked = wait_until_blocked(&point);
        let named = serde_json::json!([format!("node {directory}")]);
        assert_eq!(blocked["records"], named, "{blocked:#}");
        world.umount();
        let checked = world.run(&["check"]);
        assert_eq!(checked.0.status.code(), Some(6), "{}", checked.stdout());
        let said = checked.stdout();
        assert!(said.contains(&format!("directory {directory}")), "{said}");
        world.run(&["check", "--repair"]).succeeded();
        check_is_clean(&world.place);
        world.place.mount(&[]).succeeded();
        wait_for_the_end(&point);
        assert_eq!(world.in_place(), all);
        assert!(world.lost().is_empty(), "{:?}", world.lost().keys());
        world.umount();
        check_is_clean(&world.place);
    }
}
