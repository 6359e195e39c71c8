//! Rotations of a vault in use whose daemon is killed at any moment: they end by themselves.
//!
//! `SECRETFS_ROTATION_KILLS` makes it a campaign of as many kills as one likes.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::support::at_work::Load;
use crate::support::load::{Dice, Tally, Writer};
use crate::support::process::{Place, Server, detach, status, wait_for};
use crate::support::rotating::{
    all_is_there, check_is_clean, command, content, fill, json, secret, wait_for_the_end,
};

const SECRETS: usize = 5000;
const WRITERS: u32 = 4;
const READERS: u32 = 3;
/// Of the suite.
const KILLS: u64 = 12;
const COMMANDS: [&str; 3] = [
    "rotate",
    "reencrypt",
    "rewrap local-kms://b local-kms://default",
];

/// What was done so far.
#[derive(Default)]
struct Counts {
    begun: BTreeMap<&'static str, u64>,
    /// Kills by what was under way, and where that was.
    killed: BTreeMap<String, u64>,
}

/// Begins a rotation, if none is under way, and lets it come anywhere; what it was doing then.
fn somewhere(point: &Path, what: &'static str, dice: &mut Dice, counts: &mut Counts) -> String {
    // One that an earlier mount left is killed once more, or waited for.
    if dice.roll(3) > 0 {
        wait_for_the_end(point);
    }
    match command(point, what) {
        Ok(()) => *counts.begun.entry(what).or_default() += 1,
        Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EBUSY), "{what}"),
    }
    let share = dice.roll(1000);
    let by_time = dice.roll(3) == 0;
    if by_time {
        std::thread::sleep(Duration::from_micros(dice.roll(1_500_000)));
    }
    loop {
        let status = status(point);
        let rotation = &status["rotation"];
        let Some(change) = rotation["change"].as_str() else {
            return "nothing".into();
        };
        let number = |name: &str| rotation[name].as_u64().expect("a number");
        let (done, total) = (number("done"), number("total"));
        if by_time || total > 0 && done * 1000 >= total * share {
            std::thread::sleep(Duration::from_micros(dice.roll(20_000)));
            return format!("{change}, {}", rotation["phase"].as_str().expect("a phase"));
        }
    }
}

fn kill(place: &Place, mut server: Server) {
    server.signal(libc::SIGKILL);
    wait_for("the daemon's end", Duration::from_secs(30), || {
        !server.is_running()
    });
    detach(&place.point());
}

#[test]
fn rotations_under_load_whose_daemon_is_killed_at_any_moment_end_and_nothing_is_lost() {
    let kills = std::env::var("SECRETFS_ROTATION_KILLS").ok();
    let campaign = kills.is_some();
    let kills = kills.map_or(KILLS, |kills| kills.parse().expect("a number of kills"));
    let place = Place::with_vault();
    let other = place.path().join("other");
    let init = ["init".as_ref(), other.as_os_str()];
    let other_key = ["--kms-key".as_ref(), "local-kms://b".as_ref()];
    place.run(init.into_iter().chain(other_key)).succeeded();
    let mut dice = Dice(7);
    let mut counts = Counts::default();
    let server = place.serve(&[]);
    fill(&place.point(), SECRETS);
    let mut writers: Vec<_> = (0..WRITERS)
        .map(|number| Writer::new(&place.point(), number, dice.roll(u64::MAX)))
        .collect();
    kill(&place, server);
    for round in 1..=kills {
        // Through the mount, a vault goes to keys only that the mount names.
        let named = "kms-key=local-kms://default,kms-key=local-kms://b";
        let server = place.serve(&["-o", named]);
        for writer in &mut writers {
            writer.expect_what_was_acknowledged();
        }
        for _ in 0..50 {
            let n = dice.roll(SECRETS as u64) as usize;
            let found = std::fs::read(secret(&place.point(), n)).expect("readable");
            assert!(found == content(n), "secret {n} after kill {round}");
        }
        let tally = Arc::new(Tally::default());
        let load = Load::start(&place, writers, READERS, &mut dice, &tally);
        load.has_done(20, &tally);
        let what = COMMANDS[round as usize % COMMANDS.len()];
        let doing = somewhere(&place.point(), what, &mut dice, &mut counts);
        *counts.killed.entry(doing).or_default() += 1;
        tally.ending.store(true, Ordering::SeqCst);
        kill(&place, server);
        writers = load.ended(&tally);
        if campaign && round % 20 == 0 {
            println!("{round} kills: {:?}", counts.killed);
        }
    }
    let _server = place.serve(&[]);
    // Nobody asks for anything.
    let last = wait_for_the_end(&place.point());
    assert_eq!(last["generations"].as_array().map(Vec::len), Some(1));
    for writer in &mut writers {
        writer.expect_what_was_acknowledged();
    }
    all_is_there(&place.point(), SECRETS);
    detach(&place.point());
    check_is_clean(&place);
    let after = json(&place, "status");
    assert_eq!(after["generations"].as_array().map(Vec::len), Some(1));
    println!("begun: {:?}\nkilled in: {:?}", counts.begun, counts.killed);
    for kind in ["rotate", "reencrypt"] {
        let in_it = |(doing, _): &(&String, &u64)| doing.starts_with(kind);
        assert!(counts.killed.iter().any(|k| in_it(&k)), "{kind} was killed");
    }
}
