//! The first work after mounting: every secret once, and `ls -l`. The files of the vaults are in the
//! page cache of the host; nothing is known to FUSE.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::Failure;
use crate::bench::{Bench, Row, Target, Unit};
use crate::content::{Random, Tree, read_secret};
use crate::kind::Kind;

/// Reads each secret once, in an order that has nothing to do with where it lies.
pub fn read_each(paths: &[std::path::PathBuf]) -> Result<(), Failure> {
    let mut order: Vec<usize> = (0..paths.len()).collect();
    Random::new(7).shuffle(&mut order);
    for secret in order {
        read_secret(&paths[secret], secret as u64)?;
    }
    Ok(())
}

pub fn first_reads(bench: &mut Bench) -> Result<(), Failure> {
    let each = bench.count(1000, 200);
    let what = format!("first read of each of {} secrets after mounting", 10 * each);
    let targets = [Target::TimesAsFast(Kind::Gocryptfs, 2.0)];
    let mut row = Row::new("first", &what, Unit::Microseconds, &targets);
    let mut kinds = bench.kinds(&[
        Kind::Secretfs,
        Kind::Gocryptfs,
        Kind::Securefs,
        Kind::Cryfs,
        Kind::Bindfs,
        Kind::Floor,
    ]);
    let tree = |kind: Kind| Tree {
        directories: 10,
        // These take long to fill, and what a read takes does not depend on the number.
        each: match kind {
            Kind::Securefs => each / 5,
            Kind::Cryfs => each / 20,
            _ => each,
        },
    };
    for kind in &kinds {
        bench.filled(*kind, "first", tree(*kind))?;
    }
    bench.each_round("first", bench.rounds, &mut kinds, |bench, kind, _| {
        let tree = tree(*kind);
        let system = bench.filled(*kind, "first", tree)?;
        let mounted = system.mount()?;
        let paths = tree.paths(&mounted.point);
        let start = Instant::now();
        read_each(&paths)?;
        let took = start.elapsed().as_secs_f64();
        row.add(*kind, took * 1e6 / paths.len() as f64);
        mounted.unmount()
    })?;
    bench.rows.push(row);
    Ok(())
}

/// Milliseconds that `ls -l` of a directory takes.
pub fn ls(directory: &Path) -> Result<f64, Failure> {
    let start = Instant::now();
    let status = Command::new("/bin/ls")
        .arg("-l")
        .arg(directory)
        .env("LC_ALL", "C")
        .stdout(Stdio::null())
        .status()?;
    let took = start.elapsed().as_secs_f64() * 1e3;
    if !status.success() {
        let directory = directory.display();
        return Err(Failure(format!("ls -l {directory} failed: {status}")));
    }
    Ok(took)
}

/// Nobody is fast by leaving something out.
fn is_complete(directory: &Path, entries: u64) -> Result<(), Failure> {
    let seen = std::fs::read_dir(directory)?.count() as u64;
    if seen != entries {
        return Err(Failure(format!(
            "{} shows {seen} entries of {entries}",
            directory.display()
        )));
    }
    Ok(())
}

pub fn list(bench: &mut Bench) -> Result<(), Failure> {
    let tree = Tree {
        directories: 1,
        each: bench.count(10_000, 2000),
    };
    let mut rows = [
        ("list-first", "first after mounting", 2.0),
        ("list-again", "repeated", 4.0),
    ]
    .map(|(name, when, least)| {
        let what = format!("ls -l of a directory of {} secrets, {when}", tree.each);
        let targets = [Target::TimesAsFast(Kind::Gocryptfs, least)];
        Row::new(name, &what, Unit::Milliseconds, &targets)
    });
    let mut kinds = bench.kinds(&[Kind::Secretfs, Kind::Gocryptfs, Kind::Bindfs, Kind::Floor]);
    for kind in &kinds {
        bench.filled(*kind, "list", tree)?;
    }
    bench.each_round("list", bench.rounds, &mut kinds, |bench, kind, _| {
        let mounted = bench.filled(*kind, "list", tree)?.mount()?;
        let directory = mounted.point.join(tree.directory(0));
        for row in &mut rows {
            row.add(*kind, ls(&directory)?);
        }
        is_complete(&directory, tree.each)?;
        mounted.unmount()
    })?;
    bench.rows.extend(rows);
    Ok(())
}
