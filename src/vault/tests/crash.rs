//! Power cuts: seeded schedules of writers and a rotation on a store in memory, each of which ends
//! with a power cut, and the vault that is opened from what was on disk then.
//!
//! Threads take turns as the seed says, so a seed gives the same schedule each time. The promises:
//! each acknowledged change is there; the others are there whole or not at all, in the order of
//! their commits; a check finds no defect; and the rotation goes on to its end, after which no
//! record is left under the old master key. To show that a broken promise is found, other schedules
//! run on a store that breaks one.
//!
//! `SECRETFS_CRASH_SEED` runs one schedule, `SECRETFS_CRASH_SCHEDULES` so many.

mod deeds;
mod ground;
mod schedule;
mod turns;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use crate::store::memory::Flaw;

use ground::Template;
use schedule::Schedule;

/// Schedules of a normal run, in all parts together.
const SCHEDULES: u64 = 2_000;
/// Number of parts: each is a test of its own, for a processor of its own.
const PARTS: u64 = 4;
/// Limit on the time in which a flaw is found.
const MINUTE: Duration = Duration::from_secs(60);

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable} is {text}, which is no number")),
    )
}

/// Runs the schedule of a seed. An error describes the broken promise.
fn run(template: &Template, seed: u64, flaw: Option<Flaw>) -> Result<Schedule, String> {
    let run = || Schedule::run(template, seed, flaw);
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        Err(text.unwrap_or_else(|| "a panic".into()))
    })
}

/// Threads decide nothing that a seed does not: neither the clock, nor the number of processors.
fn only_the_seed_decides() -> fail::FailScenario<'static> {
    let scenario = fail::FailScenario::setup();
    fail::cfg("crew", "return(1)").expect("a fail point");
    fail::cfg("slice", "return").expect("a fail point");
    scenario
}

fn run_part(part: u64) {
    let _scenario = only_the_seed_decides();
    let template = Template::new();
    let (mut rotations, mut in_rotation) = (0, 0);
    let seeds = match number("SECRETFS_CRASH_SEED") {
        Some(seed) => seed..seed + 1,
        None => {
            let all = number("SECRETFS_CRASH_SCHEDULES").unwrap_or(SCHEDULES);
            all * part / PARTS..all * (part + 1) / PARTS
        }
    };
    let number = seeds.end - seeds.start;
    for seed in seeds {
        match run(&template, seed, None) {
            Ok(schedule) => {
                assert!(schedule.changes >= 10, "seed {seed}: {schedule:?}");
                rotations += u64::from(schedule.has_rotated);
                in_rotation += u64::from(schedule.was_rotating);
            }
            Err(broken) => panic!("SECRETFS_CRASH_SEED={seed}: {broken}"),
        }
    }
    println!("{number} schedules, {rotations} with a rotation, cut off in {in_rotation}");
    assert!(number < 100 || in_rotation * 4 > number && rotations * 4 > number * 3);
}

#[test]
fn what_was_acknowledged_outlives_a_power_cut_first_part() {
    run_part(0);
}

#[test]
fn what_was_acknowledged_outlives_a_power_cut_second_part() {
    run_part(1);
}

#[test]
fn what_was_acknowledged_outlives_a_power_cut_third_part() {
    run_part(2);
}

#[test]
fn what_was_acknowledged_outlives_a_power_cut_fourth_part() {
    run_part(3);
}

#[test]
fn a_store_that_breaks_a_promise_is_found_within_a_minute() {
    let _scenario = only_the_seed_decides();
    let template = Template::new();
    for flaw in Flaw::ALL {
        let begun = Instant::now();
        let mut broken = None;
        let mut seeds = 0..;
        while broken.is_none() && begun.elapsed() < MINUTE {
            let seed = seeds.next().unwrap_or_default();
            broken = run(&template, seed, Some(flaw)).err();
        }
        let broken = broken.unwrap_or_else(|| panic!("{flaw:?} is not found"));
        println!("{flaw:?} is found by seed {}: {broken}", seeds.start - 1);
    }
}

#[test]
fn writers_and_a_rotation_leave_in_files_what_they_leave_in_memory() {
    let _scenario = only_the_seed_decides();
    for seed in 0..10 {
        let schedule = Schedule::run_in_files(&Template::new(), seed).expect("no broken promise");
        assert!(
            schedule.changes == 24 && schedule.has_rotated,
            "{schedule:?}"
        );
    }
}

#[test]
fn a_seed_gives_the_same_schedule_each_time() {
    let _scenario = only_the_seed_decides();
    let template = Template::new();
    let trace = |seed| run(&template, seed, None).expect("no broken promise").trace;
    for seed in 0..20 {
        assert_eq!(trace(seed), trace(seed), "seed {seed}");
        assert_ne!(trace(seed), trace(seed + 1), "seed {seed}");
    }
}
