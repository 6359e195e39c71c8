//! From the start of the mounting program to the bytes of a secret; and what memory a daemon holds
//! when everything was read.

use std::time::Instant;

use super::fresh::read_each;
use crate::Failure;
use crate::bench::{Bench, Row, Target, Unit};
use crate::content::{Random, Tree, read_secret};
use crate::kind::Kind;

fn huge(bench: &Bench) -> Tree {
    Tree {
        directories: bench.count(100, 5),
        each: 1000,
    }
}

pub fn first_secret(bench: &mut Bench, name: &'static str) -> Result<(), Failure> {
    let in_directories = |directories, each| Tree { directories, each };
    // The whole vault is counted before a mount is announced.
    let (tree, at_most) = match name {
        "start-100000" => (huge(bench), 300.0),
        "start-10000" => (in_directories(10, bench.count(1000, 100)), 50.0),
        _ => (in_directories(1, 100), 50.0),
    };
    let what = format!(
        "from `mount` to the bytes of a secret, of {}",
        tree.secrets()
    );
    let mut row = Row::new(name, &what, Unit::Milliseconds, &[Target::AtMost(at_most)]);
    let mut kinds = bench.kinds(&[Kind::Secretfs, Kind::Gocryptfs]);
    for kind in &kinds {
        bench.filled(*kind, "start", tree)?;
    }
    let mut random = Random::new(3);
    bench.each_round(name, bench.rounds, &mut kinds, |bench, kind, _| {
        let system = bench.filled(*kind, "start", tree)?;
        let secret = random.below(tree.secrets());
        let path = system.point().join(tree.path(secret));
        let start = Instant::now();
        let mounted = system.mount()?;
        read_secret(&path, secret)?;
        row.add(*kind, start.elapsed().as_secs_f64() * 1e3);
        mounted.unmount()
    })?;
    bench.rows.push(row);
    Ok(())
}

pub fn memory(bench: &mut Bench) -> Result<(), Failure> {
    let tree = huge(bench);
    let what = format!(
        "resident memory when {} secrets were read once (once)",
        tree.secrets()
    );
    let mut row = Row::new("memory", &what, Unit::Megabytes, &[Target::AtMost(40.0)]);
    let mut kinds = bench.kinds(&[Kind::Secretfs, Kind::Gocryptfs]);
    for kind in &kinds {
        bench.filled(*kind, "start", tree)?;
    }
    bench.each_round("memory", 1, &mut kinds, |bench, kind, _| {
        let mounted = bench.filled(*kind, "start", tree)?.mount()?;
        mounted.settle()?;
        read_each(&tree.paths(&mounted.point))?;
        row.add(*kind, mounted.resident()?);
        mounted.unmount()
    })?;
    bench.rows.push(row);
    Ok(())
}
