//! Who reads and writes while keys are replaced is served meanwhile, and reads whole contents only.
//!
//! The suite does it for a moment. `scripts/rotation-latency` does it for long, and shows how long
//! reads took without and during each of the rotations, by turns, so that a machine that others use
//! treats both alike.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::load::Dice;
use crate::support::process::{Place, status};
use crate::support::rotating::{command, wait_for_the_end};

const READERS: u64 = 8;
const WRITERS: u64 = 4;
const IN_A_DIRECTORY: u64 = 100;
/// What goes on, and what is asked for meanwhile.
const PHASES: [(&str, Option<&str>); 4] = [
    ("without", None),
    ("rotate", Some("rotate")),
    ("rewrap", Some("rewrap")),
    ("reencrypt", Some("reencrypt")),
];
/// Nothing is counted.
const BETWEEN: usize = PHASES.len();
/// Reads that a phase has at least.
const READS: u64 = 50;

fn number(name: &str, otherwise: u64) -> u64 {
    let value = std::env::var(name).ok();
    value.map_or(otherwise, |value| value.parse().expect("a number"))
}

fn secret(point: &Path, n: u64) -> PathBuf {
    point.join(format!("d{}/s{n}", n / IN_A_DIRECTORY))
}

/// The content number `edition` of a secret: its beginning, again and again.
fn content(n: u64, edition: u64) -> Vec<u8> {
    format!("{n} {edition};")
        .into_bytes()
        .repeat(20 + (edition % 20) as usize)
}

#[track_caller]
fn must_be_whole(n: u64, found: &[u8]) {
    let end = found.iter().position(|byte| *byte == b';').expect("an end") + 1;
    let piece = &found[..end];
    assert!(piece.starts_with(format!("{n} ").as_bytes()), "secret {n}");
    assert!(found.len().is_multiple_of(end), "secret {n} is torn");
    assert!(found.chunks(end).all(|chunk| chunk == piece), "secret {n}");
}

/// What is going on, and how many reads it has seen.
struct Stage {
    phase: AtomicUsize,
    reads: AtomicU64,
    over: AtomicU64,
}

impl Stage {
    fn enter(&self, phase: usize) {
        self.phase.store(phase, Ordering::SeqCst);
        self.reads.store(0, Ordering::SeqCst);
    }

    fn goes_on(&self) -> bool {
        self.over.load(Ordering::Relaxed) == 0
    }
}

/// Ends the load, also when the test fails.
struct Over<'s>(&'s Stage);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.over.store(1, Ordering::SeqCst);
    }
}

/// How long something took in each phase, in microseconds.
type Samples = [Vec<u32>; PHASES.len()];

fn read(point: &Path, secrets: u64, seed: u64, stage: &Stage) -> Samples {
    let mut dice = Dice(seed);
    let mut samples = Samples::default();
    while stage.goes_on() {
        let n = dice.roll(secrets);
        let path = secret(point, n);
        let phase = stage.phase.load(Ordering::SeqCst);
        let began = Instant::now();
        let found = fs::read(path).expect("read");
        note(&mut samples, phase, began);
        must_be_whole(n, &found);
        stage.reads.fetch_add(1, Ordering::Relaxed);
    }
    samples
}

fn write(point: &Path, secrets: u64, seed: u64, stage: &Stage) -> Samples {
    let mut dice = Dice(seed);
    let mut samples = Samples::default();
    while stage.goes_on() {
        let n = dice.roll(secrets);
        let (path, content) = (secret(point, n), content(n, dice.roll(1 << 40)));
        let phase = stage.phase.load(Ordering::SeqCst);
        let began = Instant::now();
        fs::write(path, content).expect("written");
        note(&mut samples, phase, began);
    }
    samples
}

fn note(samples: &mut Samples, phase: usize, began: Instant) {
    let took = u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX);
    if let Some(samples) = samples.get_mut(phase) {
        samples.push(took);
    }
}

fn fill(point: &Path, secrets: u64) {
    for directory in 0..secrets.div_ceil(IN_A_DIRECTORY) {
        fs::create_dir(point.join(format!("d{directory}"))).expect("made");
    }
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            scope.spawn(move || {
                for n in (writer..secrets).step_by(WRITERS as usize) {
                    fs::write(secret(point, n), content(n, 0)).expect("written");
                }
            });
        }
    });
}

/// One after the other, for `time` at least and until there are reads enough.
fn go_through(phase: usize, point: &Path, time: Duration, stage: &Stage) -> u32 {
    let (_, asked) = PHASES[phase];
    let mut ended = 0;
    stage.enter(phase);
    let began = Instant::now();
    while began.elapsed() < time || stage.reads.load(Ordering::SeqCst) < READS {
        match asked {
            None => std::thread::sleep(Duration::from_millis(5)),
            Some(asked) => {
                command(point, asked).expect("begun");
                wait_for_the_end(point);
                ended += 1;
            }
        }
    }
    stage.enter(BETWEEN);
    ended
}

/// Shows how long they took without and during each rotation.
fn tell(what: &str, samples: &mut Samples, ended: &[u32; PHASES.len()]) {
    samples
        .iter_mut()
        .for_each(|samples| samples.sort_unstable());
    let of = |phase: usize, part| f64::from(quantile(&samples[phase], part)) / 1000.0;
    for (phase, (name, _)) in PHASES.iter().enumerate() {
        println!(
            "{what} {:9} ({} times): {:6} of them, p50 {:.2} ms, p99 {:.2} ms, {:.2} times",
            name,
            ended[phase],
            samples[phase].len(),
            of(phase, 0.5),
            of(phase, 0.99),
            of(phase, 0.99) / of(0, 0.99),
        );
    }
}

fn quantile(sorted: &[u32], of: f64) -> u32 {
    let last = sorted.len().checked_sub(1);
    last.map_or(0, |last| sorted[(last as f64 * of) as usize])
}

#[test]
fn reads_and_writes_go_on_while_keys_are_replaced() {
    let secrets = number("SECRETFS_LATENCY_SECRETS", 300);
    let rounds = number("SECRETFS_LATENCY_ROUNDS", 1);
    let time = Duration::from_millis(number("SECRETFS_LATENCY_MILLIS", 300));
    let place = Place::with_vault();
    let server = place.serve(&[]);
    let point = place.point();
    fill(&point, secrets);
    let stage = Stage {
        phase: AtomicUsize::new(BETWEEN),
        reads: AtomicU64::new(0),
        over: AtomicU64::new(0),
    };
    let mut ended = [0; PHASES.len()];
    let (mut reads, mut writes) = (Samples::default(), Samples::default());
    std::thread::scope(|scope| {
        let (point, stage) = (point.as_path(), &stage);
        let readers: Vec<_> = (0..READERS)
            .map(|seed| scope.spawn(move || read(point, secrets, seed, stage)))
            .collect();
        let writers: Vec<_> = (READERS..READERS + WRITERS)
            .map(|seed| scope.spawn(move || write(point, secrets, seed, stage)))
            .collect();
        let over = Over(stage);
        for _ in 0..rounds {
            for phase in 1..PHASES.len() {
                ended[0] += go_through(0, point, time, stage);
                ended[phase] += go_through(phase, point, time, stage);
            }
        }
        drop(over);
        for (threads, samples) in [(readers, &mut reads), (writers, &mut writes)] {
            for thread in threads {
                let took = thread.join().expect("none failed");
                for (all, some) in samples.iter_mut().zip(took) {
                    all.extend(some);
                }
            }
        }
    });
    let generation = &status(&point)["active_generation"];
    assert_eq!(
        generation.as_u64(),
        Some(u64::from(1 + ended[1] + ended[3]))
    );
    println!("{secrets} secrets, {READERS} readers, {WRITERS} writers");
    tell("reads", &mut reads, &ended);
    tell("writes", &mut writes, &ended);
    place
        .run(["umount".as_ref(), point.as_os_str()])
        .succeeded();
    assert_eq!(server.ended(Duration::from_secs(60)).0, Some(0));
}
