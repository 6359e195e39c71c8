//! How memory, time and the vault grow with the number of secrets. secretfs alone.

use std::path::Path;
use std::time::Instant;

use super::fresh::ls;
use crate::Failure;
use crate::bench::Bench;
use crate::content::{Random, Tree, read_secret};
use crate::kind::Kind;
use crate::stats::median;

/// Secrets in each directory, and thus in the one that is listed.
const EACH: u64 = 1000;
const READS: u64 = 10_000;

/// What was found for one number of secrets.
#[derive(Debug)]
pub struct Point {
    pub secrets: u64,
    /// Columns of the table, in the order of [`COLUMNS`].
    pub figures: Vec<f64>,
}

pub const COLUMNS: [&str; 9] = [
    "mount to first read, ms",
    "the same to the end of the count, ms",
    "first read of a random secret, µs",
    "`ls -l` of 1,000 first, ms",
    "repeated, ms",
    "resident after mount, MB",
    "after the count, MB",
    "after 10,000 reads, MB",
    "vault, bytes for each secret",
];

pub fn measure(bench: &mut Bench) -> Result<Vec<Point>, Failure> {
    bench.patience(3600);
    let numbers: &[u64] = match bench.quick {
        true => &[1000, 10_000],
        false => &[1000, 10_000, 100_000, 1_000_000],
    };
    let mut points = Vec::new();
    for secrets in numbers {
        let tree = Tree {
            directories: secrets / EACH,
            each: EACH,
        };
        points.push(one(bench, tree)?);
    }
    Ok(points)
}

fn one(bench: &mut Bench, tree: Tree) -> Result<Point, Failure> {
    bench.say(&format!("scale: {} secrets", tree.secrets()));
    let mut random = Random::new(11);
    let mut found = vec![Vec::new(); COLUMNS.len()];
    for _ in 0..bench.count(5, 2) {
        bench.noise.probe()?;
        let system = bench.filled(Kind::Secretfs, "scale", tree)?;
        let secret = random.below(tree.secrets());
        let path = system.point().join(tree.path(secret));
        let start = Instant::now();
        let mounted = system.mount()?;
        read_secret(&path, secret)?;
        let mut figures = vec![start.elapsed().as_secs_f64() * 1e3];
        let resident = mounted.resident()?;
        mounted.settle()?;
        figures.push(start.elapsed().as_secs_f64() * 1e3);
        let settled = mounted.resident()?;
        let mut order: Vec<u64> = (0..tree.secrets()).collect();
        random.shuffle(&mut order);
        order.truncate(READS as usize);
        let mut times = Vec::new();
        for secret in order {
            let path = mounted.point.join(tree.path(secret));
            let start = Instant::now();
            read_secret(&path, secret)?;
            times.push(start.elapsed().as_secs_f64() * 1e6);
        }
        figures.push(median(&times));
        let resident_after = mounted.resident()?;
        mounted.unmount()?;
        // On a mount that knows no names.
        let mounted = system.mount()?;
        let directory = mounted.point.join(tree.directory(0));
        figures.push(ls(&directory)?);
        figures.push(ls(&directory)?);
        mounted.unmount()?;
        let bytes = bytes_in(&system.backing())? as f64 / tree.secrets() as f64;
        figures.extend([resident, settled, resident_after, bytes]);
        for (column, figure) in found.iter_mut().zip(figures) {
            column.push(figure);
        }
    }
    Ok(Point {
        secrets: tree.secrets(),
        figures: found.iter().map(|column| median(column)).collect(),
    })
}

fn bytes_in(directory: &Path) -> Result<u64, Failure> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(directory)? {
        bytes += entry?.metadata()?.len();
    }
    Ok(bytes)
}
