//! How noisy the machine was: the same work before each round, whose times should all be the same.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::time::Instant;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::Failure;
use crate::content::mixed;
use crate::stats::{median, variation};

const SPINS: u64 = 5_000_000;
const TURNS: usize = 400;

/// What the probes found.
#[derive(Debug)]
pub struct Noise {
    /// Milliseconds of the same arithmetic.
    pub spins: Vec<f64>,
    /// Microseconds for a byte to another CPU and back.
    pub turns: Vec<f64>,
    first: Times,
}

/// Ticks of all CPUs since boot.
#[derive(Clone, Copy, Debug)]
struct Times {
    all: f64,
    stolen: f64,
}

impl Times {
    fn now() -> Result<Self, Failure> {
        let stat = fs::read_to_string("/proc/stat")?;
        let line = stat.lines().next().unwrap_or_default();
        let numbers: Vec<f64> = line
            .split_whitespace()
            .skip(1)
            .take(8)
            .filter_map(|n| n.parse().ok())
            .collect();
        Ok(Self {
            all: numbers.iter().sum(),
            stolen: numbers.get(7).copied().unwrap_or_default(),
        })
    }
}

impl Noise {
    pub fn new() -> Result<Self, Failure> {
        Ok(Self {
            spins: Vec::new(),
            turns: Vec::new(),
            first: Times::now()?,
        })
    }

    /// Before each round.
    pub fn probe(&mut self) -> Result<(), Failure> {
        let start = Instant::now();
        let mut number = 1;
        for _ in 0..SPINS {
            number = mixed(number);
        }
        std::hint::black_box(number);
        self.spins.push(start.elapsed().as_secs_f64() * 1e3);
        self.turns.push(ping_pong()?);
        Ok(())
    }

    /// The share of time that the hypervisor gave to others.
    pub fn stolen(&self) -> Result<f64, Failure> {
        let now = Times::now()?;
        Ok((now.stolen - self.first.stolen) / (now.all - self.first.all).max(1.0))
    }

    /// In words.
    pub fn words(&self) -> Result<String, Failure> {
        let (spin, stolen) = (variation(&self.spins), self.stolen()?);
        let verdict = match spin.max(stolen) {
            v if v < 0.03 => "quiet: differences of 5 % mean something",
            v if v < 0.10 => "somewhat noisy: differences below 15 % mean nothing",
            v if v < 0.30 => {
                "noisy: only ratios of the same round, and only those far apart, mean something"
            }
            _ => "so noisy that this run should be repeated",
        };
        Ok(format!(
            "The machine was {verdict}. The same arithmetic took {:.1} ms, with a coefficient of \
             variation of {:.1} %; a byte to the other CPU and back took {:.1} µs, varying by {:.0} \
             %; {:.1} % of the time was stolen by the hypervisor.",
            median(&self.spins),
            spin * 100.0,
            median(&self.turns),
            variation(&self.turns) * 100.0,
            stolen * 100.0
        ))
    }
}

fn ping_pong() -> Result<f64, Failure> {
    let (mut to, from) = pipe()?;
    let (back, returned) = pipe()?;
    let other = std::thread::spawn(move || {
        let (mut from, mut back) = (from, back);
        let mut byte = [0];
        pin(Pid::from_raw(0), Some(1));
        while from.read_exact(&mut byte).is_ok() && back.write_all(&byte).is_ok() {}
    });
    pin(Pid::from_raw(0), Some(0));
    let mut returned = returned;
    let mut byte = [0];
    let start = Instant::now();
    for _ in 0..TURNS {
        to.write_all(&byte)?;
        returned.read_exact(&mut byte)?;
    }
    let took = start.elapsed();
    pin(Pid::from_raw(0), None);
    drop(to);
    other
        .join()
        .map_err(|_| Failure("a thread of the probe panicked".into()))?;
    Ok(took.as_secs_f64() * 1e6 / TURNS as f64)
}

/// The end to write to, and the end to read from.
fn pipe() -> Result<(File, File), Failure> {
    let (read, write) = nix::unistd::pipe()?;
    Ok((write.into(), read.into()))
}

/// Binds a thread (0: this one) to a CPU, or sets it free. A machine with one CPU is what it is.
pub fn pin(thread: Pid, cpu: Option<usize>) {
    let mut set = CpuSet::new();
    let cpus = match cpu {
        Some(cpu) => cpu..cpu + 1,
        None => 0..CpuSet::count(),
    };
    for cpu in cpus {
        let _ = set.set(cpu);
    }
    let _ = sched_setaffinity(thread, &set);
}

/// Binds this thread, and all threads of the processes, to one CPU, or sets them free.
pub fn pin_all(processes: &[Pid], cpu: Option<usize>) {
    pin(Pid::from_raw(0), cpu);
    for process in processes {
        let tasks = fs::read_dir(format!("/proc/{process}/task"));
        let names = tasks.into_iter().flatten().flatten();
        for task in names.filter_map(|e| e.file_name().to_str()?.parse().ok()) {
            pin(Pid::from_raw(task), cpu);
        }
    }
}
