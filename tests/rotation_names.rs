//! Directories whose names are being filed under another key: whatever is done with them meanwhile is
//! as it is with others.
//!
//! The program moves a few names at a time, and takes its time, as fail points tell it to.

mod support;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use support::listing::Slow;
use support::load::Dice;
use support::process::{Place, Server, status};
use support::rotating::{check_is_clean, command, serve_with, wait_for_the_end};

/// In one directory.
const NAMES: usize = 2500;
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
