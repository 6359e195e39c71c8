//! However a mount ends: what a close acknowledged is there afterwards, nothing half done is, and
//! no mount point stays behind.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::support::process::{Place, Server, abort, system, wait_for};
use crate::support::tree::closed;

const SOON: Duration = Duration::from_secs(30);

/// Writers that replace files of their own until an error tells them that the mount is gone. What
/// a close acknowledged is noted; what was under way when it ended may be there or not.
struct Load {
    rounds: Arc<AtomicU64>,
    writers: Vec<JoinHandle<HashMap<PathBuf, Vec<u32>>>>,
}

fn secret(round: u32) -> Vec<u8> {
    let size = [1, 500, 5_000, 150_000][round as usize % 4];
    format!("{round:08}").repeat(size / 8 + 1).into_bytes()
}

/// `close` that tells.
impl Load {
    fn of(writers: usize, point: &Path) -> Self {
        let rounds = Arc::new(AtomicU64::new(0));
        let device = std::fs::metadata(point).expect("stat").dev();
        let writers = (0..writers).map(|writer| {
            let (rounds, point) = (Arc::clone(&rounds), point.to_owned());
            std::thread::spawn(move || {
                // The rounds whose content may be found: the last acknowledged and those since.
                let mut possible: HashMap<PathBuf, Vec<u32>> = HashMap::new();
                for round in 0.. {
                    let name = PathBuf::from(format!("secret-{writer}-{}", round % 5));
                    let Ok(mut file) = File::create(point.join(&name)) else {
                        break;
                    };
                    if file.metadata().is_ok_and(|file| file.dev() != device) {
                        // The mount is gone; this went into the directory below.
                        std::fs::remove_file(point.join(&name)).expect("removed");
                        break;
                    }
                    let candidates = possible.entry(name).or_default();
                    candidates.push(round);
                    let written = file.write_all(&secret(round));
                    if written.and_then(|()| closed(file)).is_err() {
                        break;
                    }
                    *candidates = vec![round];
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
                possible
            })
        });
        Self {
            writers: writers.collect(),
            rounds,
        }
    }

    fn has_written(&self, rounds: u64) {
        let before = self.rounds.load(Ordering::Relaxed);
        wait_for("the writers", SOON, || {
            self.rounds.load(Ordering::Relaxed) >= before + rounds
        });
    }

    /// Waits for the writers' end, which the mount's end brings about; what may be in each file.
    fn ended(self) -> HashMap<PathBuf, Vec<u32>> {
        let writers = self.writers.into_iter();
        writers
            .flat_map(|writer| writer.join().expect("a writer"))
            .collect()
    }
}

/// Mounts again and compares, then unmounts and verifies everything.
#[track_caller]
fn nothing_was_lost(place: &Place, possible: &HashMap<PathBuf, Vec<u32>>) {
    place.mount(&[]).succeeded();
    for (name, rounds) in possible {
        let found = std::fs::read(place.point().join(name));
        let found = found.expect("a name that was there is there");
        // A file that was made but never written to.
        let is_new = found.is_empty() && rounds.len() == 1 && rounds[0] < 5;
        assert!(
            is_new || rounds.iter().any(|round| found == secret(*round)),
            "{name:?}: {} bytes, not one of {rounds:?}",
            found.len()
        );
    }
    unmounted_and_clean(place);
}

#[track_caller]
fn unmounted_and_clean(place: &Place) {
    place
        .run(["umount".as_ref(), place.point().as_os_str()])
        .succeeded();
    place
        .run(["check".as_ref(), place.vault().as_os_str()])
        .succeeded();
    assert!(!place.is_mounted());
}

#[track_caller]
fn ended_well(server: Server, place: &Place) -> String {
    let (code, log) = server.ended(SOON);
    assert_eq!(code, Some(0), "{log}");
    assert!(!place.is_mounted());
    log
}

#[test]
fn sigterm_under_writes_loses_nothing_that_a_close_acknowledged() {
    let place = Place::with_vault();
    for _ in 0..3 {
        let server = place.serve(&["-o", "drain-timeout=60s"]);
        let load = Load::of(4, &place.point());
        load.has_written(60);
        server.signal(libc::SIGTERM);
        let possible = load.ended();
        let log = ended_well(server, &place);
        assert!(!log.contains("cut off"), "{log}");
        nothing_was_lost(&place, &possible);
    }
}

#[test]
fn umount_under_writes_is_refused_or_loses_nothing() {
    let place = Place::with_vault();
    for _ in 0..5 {
        let server = place.serve(&[]);
        let load = Load::of(1, &place.point());
        load.has_written(20);
        // Sometimes it finds the moment in which nothing is open.
        wait_for("a moment without open files", SOON, || {
            nix::mount::umount(&place.point()).is_ok()
        });
        let possible = load.ended();
        ended_well(server, &place);
        nothing_was_lost(&place, &possible);
    }
}

#[test]
fn a_lazy_umount_under_writes_loses_nothing() {
    let place = Place::with_vault();
    for _ in 0..3 {
        let server = place.serve(&[]);
        let load = Load::of(4, &place.point());
        load.has_written(40);
        system("umount", &["-l".as_ref(), place.point().as_os_str()]);
        let possible = load.ended();
        ended_well(server, &place);
        nothing_was_lost(&place, &possible);
    }
}

#[test]
fn every_way_to_end_a_busy_mount_lets_writers_finish() {
    type End = fn(&Server, &Place);
    let ends: [(&str, End); 2] = [
        ("SIGTERM", |server, _| server.signal(libc::SIGTERM)),
        ("umount -l", |_, place| {
            system("umount", &["-l".as_ref(), place.point().as_os_str()]);
        }),
    ];
    for (what, end) in ends {
        let place = Place::with_vault();
        let server = place.serve(&["-o", "drain-timeout=60s"]);
        let path = place.point().join("replaced");
        std::fs::write(&path, "old").expect("written");
        let mut replacer = File::create(&path).expect("open");
        replacer.write_all(b"ne").expect("written");
        let mut maker = File::create(place.point().join("made")).expect("open");
        let emptier = {
            std::fs::write(place.point().join("emptied"), "old").expect("written");
            File::create(place.point().join("emptied")).expect("open")
        };
        end(&server, &place);
        wait_for("the mount to go", SOON, || !place.is_mounted());
        replacer.write_all(b"w").expect("served on");
        maker.write_all(b"made").expect("served on");
        closed(replacer).expect("acknowledged");
        closed(maker).expect("acknowledged");
        closed(emptier).expect("acknowledged");
        let log = ended_well(server, &place);
        assert!(!log.contains("cut off"), "{what}: {log}");
        place.mount(&[]).succeeded();
        for (name, content) in [("replaced", "new"), ("made", "made"), ("emptied", "")] {
            let found = std::fs::read_to_string(place.point().join(name));
            assert_eq!(found.expect("readable"), content, "{what}: {name}");
        }
        unmounted_and_clean(&place);
    }
}

#[test]
fn a_replacement_that_is_cut_off_does_not_take_the_place_of_the_secret() {
    let place = Place::with_vault();
    let server = place.serve(&["-o", "drain-timeout=300ms"]);
    let path = |name: &str| place.point().join(name);
    for name in ["replaced", "emptied", "edited", "flushed", "untouched"] {
        std::fs::write(path(name), "old content").expect("written");
    }
    let mut replacer = File::create(path("replaced")).expect("open");
    replacer.write_all(b"half of the").expect("written");
    let mut editor = File::options()
        .write(true)
        .open(path("edited"))
        .expect("open");
    editor.write_all(b"new").expect("written");
    let mut emptied = File::options()
        .write(true)
        .open(path("emptied"))
        .expect("open");
    emptied.set_len(0).expect("cut");
    emptied.write_all(b"half of the").expect("written");
    let mut flushed = File::create(path("flushed")).expect("open");
    flushed.write_all(b"flushed").expect("written");
    flushed.sync_all().expect("published");
    flushed.write_all(b" and more").expect("written");
    server.signal(libc::SIGTERM);
    let log = ended_well(server, &place);
    assert!(
        log.contains("cut off") && log.contains("open_files=4"),
        "{log}"
    );
    drop((replacer, editor, emptied, flushed));
    place.mount(&[]).succeeded();
    let expected = [
        ("replaced", "old content"),
        ("emptied", "old content"),
        ("edited", "new content"),
        ("flushed", "flushed"),
        ("untouched", "old content"),
    ];
    for (name, content) in expected {
        assert_eq!(
            std::fs::read_to_string(path(name)).expect("readable"),
            content,
            "{name}"
        );
    }
    unmounted_and_clean(&place);
}

#[test]
fn after_an_abort_only_what_was_flushed_is_there() {
    let place = Place::with_vault();
    let server = place.serve(&[]);
    let path = |name: &str| place.point().join(name);
    for name in ["closed", "synced", "half", "emptied"] {
        std::fs::write(path(name), "old").expect("written");
    }
    std::fs::write(path("closed"), "new").expect("acknowledged");
    let mut synced = File::create(path("synced")).expect("open");
    synced.write_all(b"synced").expect("written");
    synced.sync_all().expect("acknowledged");
    synced.write_all(b" and more").expect("written");
    let mut half = File::create(path("half")).expect("open");
    half.write_all(b"half").expect("written");
    let emptied = File::create(path("emptied")).expect("open");
    abort(&place);
    let (code, log) = server.ended(SOON);
    assert_eq!(code, Some(1), "{log}");
    assert!(!place.is_mounted());
    drop((synced, half, emptied));
    place.mount(&[]).succeeded();
    for (name, content) in [
        ("closed", "new"),
        ("synced", "synced"),
        ("half", "old"),
        ("emptied", "old"),
    ] {
        assert_eq!(
            std::fs::read_to_string(path(name)).expect("readable"),
            content,
            "{name}"
        );
    }
    unmounted_and_clean(&place);
}

#[test]
fn an_abort_under_writes_loses_nothing_that_a_close_acknowledged() {
    let place = Place::with_vault();
    for _ in 0..3 {
        let server = place.serve(&[]);
        let load = Load::of(4, &place.point());
        load.has_written(60);
        abort(&place);
        let (code, log) = server.ended(SOON);
        assert_eq!(code, Some(1), "{log}");
        let possible = load.ended();
        nothing_was_lost(&place, &possible);
    }
}
