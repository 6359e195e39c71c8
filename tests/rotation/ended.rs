//! Mounts that end, and disks that are full, in the middle of a rotation; and those who read beside.

use std::io::{Read, Seek, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::support::failing_disk::Disk;
use crate::support::process::{Place, Server, detach, status, wait_for};
use crate::support::rotating::{
    all_is_there, check_is_clean, command, content, fill, json, secret, serve_with,
    wait_for_the_end, wait_for_the_middle,
};

const SECRETS: usize = 1000;
/// Between the transactions of a rotation, so that it can be met in its middle.
const SLOWLY: &str = "migrate-before=sleep(150)";
const SOON: Duration = Duration::from_secs(60);

/// A vault with secrets that nobody has mounted.
fn filled() -> Place {
    let place = Place::with_vault();
    let server = place.serve(&[]);
    fill(&place.point(), SECRETS);
    umount(&place);
    server.ended(SOON);
    place
}

fn umount(place: &Place) {
    place
        .run(["umount".as_ref(), place.point().as_os_str()])
        .succeeded();
}

/// A mount, of which nothing is asked, ends the rotation that is under way.
fn a_mount_finishes_it(place: &Place, generation: u64) {
    let before = json(place, "status");
    assert_eq!(before["rotation"]["phase"], "migrating", "{before:#}");
    let server = place.serve(&[]);
    let after = wait_for_the_end(&place.point());
    assert_eq!(after["active_generation"], generation, "{after:#}");
    assert_eq!(after["generations"].as_array().map(Vec::len), Some(1));
    all_is_there(&place.point(), SECRETS);
    umount(place);
    server.ended(SOON);
    check_is_clean(place);
}

#[test]
fn unmounted_in_its_middle_a_rotation_is_finished_by_the_next_mount() {
    let place = filled();
    for (what, generation) in [("rotate", 2), ("reencrypt", 3)] {
        let server = serve_with(&place, SLOWLY);
        command(&place.point(), what).expect("begun");
        wait_for_the_middle(&place.point());
        umount(&place);
        assert_eq!(server.ended(SOON).0, Some(0));
        a_mount_finishes_it(&place, generation);
    }
}

#[test]
fn detached_in_its_middle_while_files_are_open_a_rotation_is_finished_by_the_next_mount() {
    let place = filled();
    for (what, generation) in [("rotate", 2), ("reencrypt", 3)] {
        let server = serve_with(&place, "migrate-before=sleep(600)");
        let mut open = std::fs::File::open(secret(&place.point(), 50)).expect("open");
        let written = secret(&place.point(), 3);
        let mut draft = std::fs::File::create(&written).expect("open");
        command(&place.point(), what).expect("begun");
        wait_for_the_middle(&place.point());
        detach(&place.point());
        // What is open goes on, under whichever keys.
        let mut found = Vec::new();
        open.read_to_end(&mut found).expect("read");
        assert!(found == content(50));
        open.rewind().expect("rewound");
        draft.write_all(&content(3)).expect("written");
        drop((open, draft));
        assert_eq!(server.ended(SOON).0, Some(0));
        a_mount_finishes_it(&place, generation);
    }
}

#[test]
fn a_rotation_whose_disk_is_full_in_its_middle_goes_on_by_itself_when_there_is_room() {
    let disk = Disk::with_vault(96);
    let place = &disk.place;
    let large = content(50).repeat(50);
    let point = place.point();
    let server = place.serve(&[]);
    fill(&point, SECRETS);
    // More than may be free within the files.
    std::fs::write(point.join("large"), &large).expect("written");
    assert_eq!(disk.umount().0.status.code(), Some(0));
    drop(server);
    for (what, generation) in [("rotate", 2), ("reencrypt", 3)] {
        let server = serve_with(place, SLOWLY);
        command(&point, what).expect("begun");
        wait_for_the_middle(&point);
        disk.fill(0);
        let mut full = status(&point);
        wait_for("the disk to be in the way", SOON, || {
            full = status(&point);
            assert!(!full["rotation"].is_null(), "it ended: {full:#}");
            !full["rotation"]["trouble"].is_null()
        });
        assert_eq!(full["rotation"]["blocked"], false, "{full:#}");
        assert_eq!(full["generations"].as_array().map(Vec::len), Some(2));
        // Secrets are read as ever.
        all_is_there(&point, SECRETS);
        disk.free();
        let after = wait_for_the_end(&point);
        assert_eq!(after["active_generation"], generation, "{after:#}");
        all_is_there(&point, SECRETS);
        assert!(std::fs::read(point.join("large")).expect("readable") == large);
        assert_eq!(disk.umount().0.status.code(), Some(0));
        drop(server);
        disk.check();
    }
}

#[test]
fn a_rotation_that_cannot_begin_on_a_full_disk_changes_nothing() {
    let disk = Disk::with_vault(32);
    let place = &disk.place;
    let server = place.serve(&[]);
    fill(&place.point(), 50);
    let before = status(&place.point());
    disk.fill(0);
    for what in ["rotate", "reencrypt", "rewrap"] {
        let error = command(&place.point(), what).expect_err("refused");
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{what}");
        let now = status(&place.point());
        assert_eq!(now["keyring_sequence"], before["keyring_sequence"]);
        assert!(now["rotation"].is_null(), "{now:#}");
    }
    disk.free();
    command(&place.point(), "rotate").expect("begun");
    wait_for_the_end(&place.point());
    all_is_there(&place.point(), 50);
    assert_eq!(disk.umount().0.status.code(), Some(0));
    drop(server);
    disk.check();
}

/// A read-only mount in a process of its own, and somebody who reads all of it all the time.
struct Beside {
    point: PathBuf,
    server: Server,
    reader: std::thread::JoinHandle<()>,
    ending: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
}

impl Beside {
    fn start(place: &Place, number: usize) -> Self {
        let point = place.path().join(format!("r{number}"));
        std::fs::create_dir(&point).expect("made");
        let mut mount = place.command();
        mount.arg("mount").arg(place.vault()).arg(&point);
        let server = Server::start({
            mount.args(["-f", "-o", "ro"]);
            mount
        });
        let ending = Arc::new(AtomicBool::new(false));
        let rounds = Arc::new(AtomicU64::new(0));
        let reader = {
            let (point, ending, rounds) = (point.clone(), Arc::clone(&ending), Arc::clone(&rounds));
            std::thread::spawn(move || {
                for n in (0..SECRETS).cycle() {
                    if ending.load(Ordering::SeqCst) {
                        return;
                    }
                    match std::fs::read(secret(&point, n)) {
                        Ok(found) => assert!(found == content(n), "secret {n}"),
                        Err(_) if ending.load(Ordering::SeqCst) => return,
                        Err(error) => panic!("secret {n}: {error}"),
                    }
                    if n == SECRETS - 1 {
                        rounds.fetch_add(1, Ordering::SeqCst);
                    }
                }
            })
        };
        Self {
            point,
            server,
            reader,
            ending,
            rounds,
        }
    }

    /// All of it was read once more, from here on.
    fn reads_on(&self) {
        let before = self.rounds.load(Ordering::SeqCst);
        wait_for("all to be read", SOON, || {
            assert!(!self.reader.is_finished(), "it read on without a failure");
            self.rounds.load(Ordering::SeqCst) > before + 1
        });
    }

    /// It holds one master key, that of `generation`.
    fn holds_only(&self, generation: u64) {
        let mut now = status(&self.point);
        wait_for("the old key to be let go", SOON, || {
            now = status(&self.point);
            now["active_generation"] == generation
                && now["generations"].as_array().map(Vec::len) == Some(1)
        });
    }

    fn kill(mut self) {
        self.ending.store(true, Ordering::SeqCst);
        self.server.signal(libc::SIGKILL);
        wait_for("its end", SOON, || !self.server.is_running());
        self.reader.join().expect("it read without a failure");
        detach(&self.point);
    }
}

#[test]
fn a_killed_writer_is_replaced_and_killed_readers_are_missed_by_nobody() {
    let place = filled();
    let (first, second) = (Beside::start(&place, 0), Beside::start(&place, 1));
    let die = |mut server: Server| {
        server.signal(libc::SIGKILL);
        wait_for("its end", SOON, || !server.is_running());
        detach(&place.point());
    };
    for (what, generation) in [("rotate", 2), ("reencrypt", 3)] {
        let writer = serve_with(&place, SLOWLY);
        command(&place.point(), what).expect("begun");
        wait_for_the_middle(&place.point());
        die(writer);
        // Nobody writes; both have the keys of both generations by then.
        for beside in [&first, &second] {
            beside.reads_on();
            let now = status(&beside.point);
            assert_eq!(now["active_generation"], generation, "{now:#}");
            assert_eq!(now["generations"].as_array().map(Vec::len), Some(2));
        }
        let writer = place.serve(&[]);
        wait_for_the_end(&place.point());
        first.holds_only(generation);
        second.holds_only(generation);
        umount(&place);
        writer.ended(SOON);
    }
    let writer = serve_with(&place, SLOWLY);
    command(&place.point(), "rotate").expect("begun");
    wait_for_the_middle(&place.point());
    first.kill();
    second.reads_on();
    wait_for_the_end(&place.point());
    second.holds_only(4);
    second.reads_on();
    umount(&place);
    writer.ended(SOON);
    second.kill();
    check_is_clean(&place);
}
