//! Everything at once for as long as one likes: writers, readers and checks, while the mount is
//! ended in every way there is and mounted again. Whatever was acknowledged is there afterwards.
//!
//! `scripts/soak` runs it by time (`SECRETFS_SOAK_SECONDS`), the suite for a few rounds.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::support::at_work::Load;
use crate::support::load::{Dice, Tally, Writer};
use crate::support::process::{Place, Server, system, wait_for};
use crate::support::watching::{Beside, Bind, Watcher, all_end_with_the_last_value};

const WRITERS: u32 = 4;
const READERS: u32 = 3;
/// Of the suite.
const ROUNDS: u64 = 12;
const PATIENCE: Duration = Duration::from_secs(120);
const PROGRESS_EVERY: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Umount,
    LazyUmount,
    Terminated,
    Killed,
}

const ENDS: [End; 4] = [End::Umount, End::LazyUmount, End::Terminated, End::Killed];

/// All that was done so far.
struct Soak {
    began: Instant,
    dice: Dice,
    writers: Vec<Writer>,
    earlier: Vec<(&'static str, u64)>,
    ends: [u64; ENDS.len()],
    checks: u64,
    reads: u64,
    compared: u64,
}

impl Soak {
    fn new(seed: u64) -> Self {
        println!("soak: seed {seed}");
        Self {
            began: Instant::now(),
            dice: Dice(seed),
            writers: Vec::new(),
            earlier: Vec::new(),
            ends: [0; ENDS.len()],
            checks: 0,
            reads: 0,
            compared: 0,
        }
    }

    /// From a mount to its end.
    fn round(&mut self, place: &Place, end: End) {
        let log = place.path().join("log");
        let log = log.to_str().expect("UTF-8");
        let server = place.serve(&["--log-file", log, "-o", "drain-timeout=600s"]);
        if self.writers.is_empty() {
            let writers = (0..WRITERS)
                .map(|number| Writer::new(&place.point(), number, self.dice.roll(u64::MAX)));
            self.writers = writers.collect();
        }
        for writer in &mut self.writers {
            self.compared += writer.expect_what_was_acknowledged();
        }
        let tally = Arc::new(Tally::default());
        let writers = std::mem::take(&mut self.writers);
        let load = Load::start(place, writers, READERS, &mut self.dice, &tally);
        load.has_done(self.dice.roll(60), &tally);
        if self.dice.roll(2) == 0 {
            self.check(place);
        }
        load.has_done(self.dice.roll(120), &tally);
        self.writers = self.end(place, server, end, load, &tally);
        self.ends[end as usize] += 1;
        self.reads += tally.reads();
        let earlier = std::mem::take(&mut self.earlier)
            .into_iter()
            .map(|(_, n)| n);
        let counts = tally.by_kind().zip(earlier.chain(std::iter::repeat(0)));
        self.earlier = counts
            .map(|((name, now), before)| (name, before + now))
            .collect();
        self.check(place);
    }

    fn end(
        &self,
        place: &Place,
        mut server: Server,
        end: End,
        load: Load,
        tally: &Tally,
    ) -> Vec<Writer> {
        if end == End::Umount {
            // A mount in use would not let itself be unmounted.
            tally.stop.store(true, Ordering::Relaxed);
            let writers = load.ended(tally);
            umount(place);
            self.ended(server, place, Some(0));
            return writers;
        }
        tally.ending.store(true, Ordering::SeqCst);
        match end {
            End::Umount => {}
            End::LazyUmount => system("umount", &["-l".as_ref(), place.point().as_os_str()]),
            End::Terminated => server.signal(libc::SIGTERM),
            End::Killed => {
                server.signal(libc::SIGKILL);
                wait_for("the daemon's end", PATIENCE, || !server.is_running());
            }
        }
        // Readers would go on where a detached mount is not.
        let writers = load.ended(tally);
        if end == End::Killed {
            umount(place);
            self.ended(server, place, None);
        } else {
            self.ended(server, place, Some(0));
        }
        writers
    }

    fn ended(&self, server: Server, place: &Place, expected: Option<i32>) {
        let (code, said) = server.ended(PATIENCE);
        assert_eq!(code, expected, "{said}");
        assert!(!place.is_mounted());
        let log = std::fs::read_to_string(place.path().join("log")).expect("a log");
        for bad in [" ERROR ", "panic", "internal error"] {
            assert!(!log.contains(bad), "the log tells of an error");
        }
    }

    fn check(&mut self, place: &Place) {
        place
            .run(["check".as_ref(), place.vault().as_os_str()])
            .succeeded();
        self.checks += 1;
    }

    fn deeds(&self) -> u64 {
        self.earlier.iter().map(|(_, count)| count).sum()
    }

    fn progress(&self) {
        println!(
            "soak: {} s, {} mounts ended, {} operations, {} reads, {} checks",
            self.began.elapsed().as_secs(),
            self.ends.iter().sum::<u64>(),
            self.deeds(),
            self.reads,
            self.checks,
        );
    }

    fn summary(&self, faults: u32) {
        println!("soak: over after {} s", self.began.elapsed().as_secs());
        println!("operations: {}", self.deeds());
        for (name, count) in &self.earlier {
            println!("  {name}: {count}");
        }
        println!("remounts: {}", self.ends.iter().sum::<u64>());
        let names = ["umount", "umount -l", "SIGTERM", "kill -9"];
        for (name, count) in names.iter().zip(self.ends) {
            println!("  after {name}: {count}");
        }
        println!("reads verified while writing: {}", self.reads);
        println!("files compared after a mount: {}", self.compared);
        println!("checks, all clean: {}", self.checks);
        println!("faults: {faults}");
    }
}

fn umount(place: &Place) {
    place
        .run(["umount".as_ref(), place.point().as_os_str()])
        .succeeded();
}

#[test]
fn whatever_happens_to_a_mount_nothing_acknowledged_is_lost_and_nothing_torn_is_read() {
    let seconds = std::env::var("SECRETFS_SOAK_SECONDS").ok();
    let seconds = seconds.map(|text| text.parse().expect("a number of seconds"));
    let mut place = Place::with_vault();
    let mut soak = Soak::new(match seconds {
        Some(_) => {
            let mut seed = [0; 8];
            getrandom::fill(&mut seed).expect("random");
            u64::from_le_bytes(seed)
        }
        None => 1,
    });
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut told = Instant::now();
        for round in 0.. {
            let over = match seconds {
                Some(seconds) => soak.began.elapsed() >= Duration::from_secs(seconds),
                None => round >= ROUNDS,
            };
            if over {
                break;
            }
            let end = match seconds {
                Some(_) => soak.dice.pick(&ENDS),
                None => ENDS[round as usize % ENDS.len()],
            };
            soak.round(&place, end);
            if told.elapsed() >= PROGRESS_EVERY {
                told = Instant::now();
                soak.progress();
            }
        }
        let server = place.serve(&[]);
        for writer in &mut soak.writers {
            soak.compared += writer.expect_what_was_acknowledged();
        }
        umount(&place);
        soak.ended(server, &place, Some(0));
        soak.check(&place);
    }));
    match outcome {
        Ok(()) => soak.summary(0),
        Err(fault) => {
            place.keep();
            soak.summary(1);
            println!(
                "the vault (v), its keys (kms), anchors and the daemon's log are kept in {}",
                place.path().display()
            );
            resume_unwind(fault);
        }
    }
}

#[test]
fn every_watcher_ends_with_the_last_value_however_often_it_changes() {
    let seconds = std::env::var("SECRETFS_SOAK_SECONDS").ok();
    let seconds = seconds.map(|text| text.parse().expect("a number of seconds"));
    // A round of all kinds takes about a second.
    let rounds = seconds.map_or(5, |seconds: u32| seconds.clamp(5, 1000));
    let place = Place::with_vault();
    let _server = place.serve(&[]);
    let file = place.point().join("d/f");
    std::fs::create_dir(place.point().join("d")).expect("made");
    std::fs::write(&file, "first").expect("written");
    let beside = Beside::of(&place);
    let bind = Bind::of(&place.point(), place.path().join("b"), true);
    let watchers: Vec<_> = [place.point(), bind.0.clone(), beside.point.clone()]
        .iter()
        .map(|point| point.join("d/f"))
        .flat_map(|file| [Watcher::of_file(&file), Watcher::of_directory(&file)])
        .collect();
    all_end_with_the_last_value(&file, &watchers, rounds);
}
