//! Open, read and close of a random secret, again and again: with one thread, and with many.

use std::path::PathBuf;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use crate::Failure;
use crate::bench::{Bench, Row, Target, Unit};
use crate::content::{Random, Tree, read_secret};
use crate::kind::Kind;
use crate::mounted::Mounted;
use crate::noise::pin_all;
use crate::stats::quantile;

const TREE: Tree = Tree {
    directories: 10,
    each: 100,
};

/// Secrets are read for so long, by so many threads; returns the microseconds of each reading.
fn read(paths: &[PathBuf], threads: u64, how_long: Duration) -> Result<(Vec<f64>, f64), Failure> {
    let barrier = Barrier::new(threads as usize);
    let reader = |thread: u64| -> Result<(Vec<f64>, f64), Failure> {
        let mut random = Random::new(thread);
        let mut times = Vec::with_capacity(100_000);
        barrier.wait();
        let start = Instant::now();
        let mut last = start;
        while last - start < how_long {
            let secret = random.below(paths.len() as u64);
            read_secret(&paths[secret as usize], secret)?;
            let now = Instant::now();
            times.push((now - last).as_secs_f64() * 1e6);
            last = now;
        }
        Ok((times, (last - start).as_secs_f64()))
    };
    if threads == 1 {
        return reader(0);
    }
    std::thread::scope(|scope| {
        let reader = &reader;
        let workers: Vec<_> = (0..threads)
            .map(|thread| scope.spawn(move || reader(thread)))
            .collect();
        let (mut times, mut longest) = (Vec::new(), 0.0_f64);
        for worker in workers {
            let (more, took) = worker
                .join()
                .map_err(|_| Failure("a reader panicked".into()))??;
            times.extend(more);
            longest = longest.max(took);
        }
        Ok((times, longest))
    })
}

/// A sample begins when everything was read once, so that the kernel knows all names again.
fn sample(
    bench: &Bench,
    mounted: &Mounted,
    threads: u64,
    pinned: bool,
) -> Result<(Vec<f64>, f64), Failure> {
    let paths = TREE.paths(&mounted.point);
    for (secret, path) in paths.iter().enumerate() {
        read_secret(path, secret as u64)?;
    }
    if pinned {
        pin_all(&mounted.pids, Some(1));
    }
    let result = read(&paths, threads, bench.while_(300));
    if pinned {
        pin_all(&mounted.pids, None);
    }
    result
}

const SYSTEMS: [Kind; 7] = [
    Kind::Secretfs,
    Kind::Gocryptfs,
    Kind::Securefs,
    Kind::Cryfs,
    Kind::Bindfs,
    Kind::Tmpfs,
    Kind::Floor,
];

fn mount_all(bench: &Bench) -> Result<Vec<Mounted>, Failure> {
    let kinds = bench.kinds(&SYSTEMS);
    let mounts = kinds
        .iter()
        .map(|kind| bench.mount_filled(*kind, "reads", TREE));
    mounts.collect()
}

pub fn one_thread(bench: &mut Bench, pinned: bool) -> Result<(), Failure> {
    let what = "open, read, close a random secret of 1 KiB of 1,000";
    let mut row = if pinned {
        let targets = [Target::TimesAsFast(Kind::Gocryptfs, 2.0)];
        let what = format!("{what}; client and daemon on one CPU");
        Row::new("read-pinned", &what, Unit::Microseconds, &targets)
    } else {
        let targets = [
            Target::TimesAsFast(Kind::Gocryptfs, 1.5),
            Target::AtMostTimes(Kind::Floor, 1.6),
        ];
        Row::new("read", what, Unit::Microseconds, &targets)
    };
    if pinned {
        row.targets.push(Target::AtMostTimes(Kind::Floor, 1.6));
    }
    let mut mounts = mount_all(bench)?;
    bench.each_round(row.name, bench.rounds, &mut mounts, |bench, mounted, _| {
        let (times, seconds) = sample(bench, mounted, 1, pinned)?;
        row.add(mounted.kind, seconds * 1e6 / times.len() as f64);
        Ok(())
    })?;
    bench.rows.push(row);
    end(mounts)
}

pub fn many_threads(bench: &mut Bench, threads: u64) -> Result<(), Failure> {
    let what = format!("open, read, close of a random secret, {threads} threads");
    let targets = [Target::TimesAsFast(Kind::Gocryptfs, 3.0)];
    let name = if threads == 8 { "read-8" } else { "read-32" };
    let mut rate = Row::new(name, &what, Unit::PerSecond, &targets);
    let (latest, targets) = match threads {
        32 => (
            "read-32-p99",
            vec![Target::TimesAsFast(Kind::Gocryptfs, 2.0)],
        ),
        _ => ("read-8-p99", Vec::new()),
    };
    let what = format!("the same, time below which 99 % of them take, {threads} threads");
    let mut late = Row::new(latest, &what, Unit::Microseconds, &targets);
    let mut mounts = mount_all(bench)?;
    bench.each_round(name, bench.rounds, &mut mounts, |bench, mounted, _| {
        let (times, seconds) = sample(bench, mounted, threads, false)?;
        rate.add(mounted.kind, times.len() as f64 / seconds);
        late.add(mounted.kind, quantile(&times, 0.99));
        Ok(())
    })?;
    bench.rows.extend([rate, late]);
    end(mounts)
}

/// Unmounts, and is no success if that fails.
pub fn end(mounts: Vec<Mounted>) -> Result<(), Failure> {
    mounts.into_iter().try_for_each(Mounted::unmount)
}
