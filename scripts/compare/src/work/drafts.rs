//! Small reads beside a program that writes and reads a new file at once: what they take must not
//! depend on how large it is.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::read::end;
use crate::Failure;
use crate::bench::{Bench, Row, Target, Unit};
use crate::content::{Random, Tree, read_secret};
use crate::kind::Kind;
use crate::mounted::Mounted;
use crate::stats::quantile;

const TREE: Tree = Tree {
    directories: 1,
    each: 100,
};
const LARGE: u64 = 128 << 20;
const SMALL: u64 = 1 << 20;
const PIECE: usize = 128 * 1024;

pub fn measure(bench: &mut Bench) -> Result<(), Failure> {
    let what = "open, read, close a secret of 1 KiB, time below which 99 % of them take, beside a \
                program that writes and reads a new file of";
    let mut large = Row::new(
        "large-draft",
        &format!("{what} 128 MiB"),
        Unit::Microseconds,
        &[],
    );
    let mut small = Row::new(
        "small-draft",
        &format!("{what} 1 MiB"),
        Unit::Microseconds,
        &[],
    );
    let what = "the first of these to the second, in the same round";
    let mut ratio = Row::new("draft-ratio", what, Unit::Times, &[Target::AtMost(2.0)]);
    let kinds = bench.kinds(&[Kind::Secretfs]);
    let mut mounts = Vec::new();
    for kind in kinds {
        let mounted = bench.empty(kind, "drafts")?.mount_for(true)?;
        if !mounted.point.join(TREE.directory(0)).exists() {
            TREE.write(&mounted.point, 4)?;
        }
        mounted.settle()?;
        mounts.push(mounted);
    }
    bench.each_round(
        large.name,
        bench.rounds,
        &mut mounts,
        |bench, mounted, _| {
            let how_long = bench.while_(1500);
            let one = beside(mounted, SMALL, how_long)?;
            let other = beside(mounted, LARGE, how_long)?;
            small.add(mounted.kind, one);
            large.add(mounted.kind, other);
            ratio.add(mounted.kind, other / one);
            Ok(())
        },
    )?;
    bench.rows.extend([large, small, ratio]);
    end(mounts)
}

/// The microseconds below which 99 % of the small reads take.
fn beside(mounted: &Mounted, size: u64, how_long: Duration) -> Result<f64, Failure> {
    let path = mounted.point.join("new");
    let done = AtomicBool::new(false);
    let times = std::thread::scope(|scope| {
        let busy = scope.spawn(|| write_and_read(&path, size, &done));
        let times = read_secrets(mounted, how_long);
        done.store(true, Ordering::Relaxed);
        let busy = busy.join();
        busy.map_err(|_| Failure("the writer panicked".into()))??;
        times
    })?;
    fs::remove_file(&path)?;
    Ok(quantile(&times, 0.99))
}

fn read_secrets(mounted: &Mounted, how_long: Duration) -> Result<Vec<f64>, Failure> {
    let paths = TREE.paths(&mounted.point);
    let mut random = Random::new(1);
    let mut times = Vec::with_capacity(100_000);
    let start = Instant::now();
    let mut last = start;
    while last - start < how_long {
        let secret = random.below(paths.len() as u64);
        read_secret(&paths[secret as usize], secret)?;
        let now = Instant::now();
        times.push((now - last).as_secs_f64() * 1e6);
        last = now;
    }
    Ok(times)
}

/// Fills a new file, and then writes here and there, while another thread reads what is written.
fn write_and_read(path: &Path, size: u64, done: &AtomicBool) -> Result<(), Failure> {
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)?;
    let filled = AtomicU64::new(0);
    let pieces = size / PIECE as u64;
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| -> std::io::Result<()> {
            let mut buffer = vec![0; PIECE];
            let mut random = Random::new(2);
            while !done.load(Ordering::Relaxed) {
                let there = filled.load(Ordering::Acquire);
                if there == 0 {
                    std::thread::yield_now();
                    continue;
                }
                let place = random.below(there) * PIECE as u64;
                file.read_exact_at(&mut buffer, place)?;
            }
            Ok(())
        });
        let buffer = vec![b'x'; PIECE];
        let mut random = Random::new(3);
        let mut written = 0;
        while !done.load(Ordering::Relaxed) || written < pieces {
            let place = match written < pieces {
                true => written,
                false => random.below(pieces),
            };
            file.write_all_at(&buffer, place * PIECE as u64)?;
            written += 1;
            filled.store(written.min(pieces), Ordering::Release);
        }
        let reader = reader.join();
        Ok(reader.map_err(|_| Failure("a reader panicked".into()))??)
    })
}
