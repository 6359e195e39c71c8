//! The daemon is killed under load and nothing acknowledged is lost.
//!
//! `SECRETFS_STRESS_ROUNDS=10` for ten times as many kills.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::support::load::{Dice, Tally, Writer, rounds};
use crate::support::process::{OnFailure, Place, detach, kill, wait_for};

const SOON: Duration = Duration::from_secs(30);
/// Vaults at once, kills of each one's daemon, and writers in each.
const VAULTS: u64 = 4;
const KILLS: u64 = 50;
const WRITERS: u32 = 3;

#[track_caller]
fn check(place: &Place) {
    place
        .run(["check".as_ref(), place.vault().as_os_str()])
        .succeeded();
}

/// Kills the daemon of one vault again and again, at whatever point of the load.
fn kill_and_compare(seed: u64, kills: u64) {
    let place = Place::with_vault();
    let mut dice = Dice(seed);
    let mut writers: Vec<Writer> = Vec::new();
    for _ in 0..kills {
        let mut server = place.serve(&[]);
        if writers.is_empty() {
            let made = (0..WRITERS).map(|number| Writer::new(&place.point(), number, seed));
            writers = made.collect();
        }
        for writer in &mut writers {
            writer.expect_what_was_acknowledged();
        }
        let tally = Tally::default();
        let pid = server.pid();
        std::thread::scope(|scope| {
            let _release = OnFailure(|| {
                tally.stop.store(true, Ordering::SeqCst);
                tally.ending.store(true, Ordering::SeqCst);
                kill(pid, libc::SIGKILL);
            });
            let threads: Vec<_> = writers
                .iter_mut()
                .map(|writer| scope.spawn(|| writer.run(&tally)))
                .collect();
            let enough = dice.roll(40);
            wait_for("the writers", SOON, || {
                tally.deeds() >= enough || threads.iter().any(|thread| thread.is_finished())
            });
            // Sleeping is not deciding: whatever is going on by then is cut off.
            std::thread::sleep(Duration::from_micros(dice.roll(5_000)));
            tally.ending.store(true, Ordering::SeqCst);
            server.signal(libc::SIGKILL);
            wait_for("the daemon's end", SOON, || !server.is_running());
        });
        detach(&place.point());
        check(&place);
    }
    place.mount(&[]).succeeded();
    for writer in &mut writers {
        writer.expect_what_was_acknowledged();
    }
    detach(&place.point());
    wait_for("the daemon's end", SOON, || place.daemons().is_empty());
    check(&place);
}

#[test]
fn a_killed_daemon_loses_nothing_that_was_acknowledged() {
    std::thread::scope(|scope| {
        for vault in 0..VAULTS {
            scope.spawn(move || kill_and_compare(vault + 1, KILLS * rounds() as u64));
        }
    });
}
