//! The frame of a run: rows, targets, rounds.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::Failure;
use crate::content::Tree;
use crate::kind::Kind;
use crate::mounted::Mounted;
use crate::noise::Noise;
use crate::stats::{median, paired_ratio};
use crate::systems::{Setting, System};

/// In what samples are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Microseconds,
    Milliseconds,
    PerSecond,
    MegabytesPerSecond,
    Megabytes,
    Calls,
    Times,
}

impl Unit {
    pub fn name(self) -> &'static str {
        match self {
            Self::Microseconds => "µs",
            Self::Milliseconds => "ms",
            Self::PerSecond => "/s",
            Self::MegabytesPerSecond => "MB/s",
            Self::Megabytes => "MB",
            Self::Calls => "calls",
            Self::Times => "×",
        }
    }

    /// Whether more is better.
    pub fn is_rate(self) -> bool {
        matches!(self, Self::PerSecond | Self::MegabytesPerSecond)
    }
}

/// What secretfs is to reach.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// At least so many times as fast as another.
    TimesAsFast(Kind, f64),
    /// At most so many times the time of another.
    AtMostTimes(Kind, f64),
    /// At most so much.
    AtMost(f64),
}

/// One kind of work, and what was measured.
#[derive(Debug)]
pub struct Row {
    pub name: &'static str,
    pub what: String,
    pub unit: Unit,
    pub targets: Vec<Target>,
    /// One sample for each round.
    pub samples: BTreeMap<Kind, Vec<f64>>,
}

impl Row {
    pub fn new(name: &'static str, what: &str, unit: Unit, targets: &[Target]) -> Self {
        Self {
            name,
            what: what.to_owned(),
            unit,
            targets: targets.to_vec(),
            samples: BTreeMap::new(),
        }
    }

    pub fn add(&mut self, kind: Kind, sample: f64) {
        self.samples.entry(kind).or_default().push(sample);
    }

    /// How many times as fast as another secretfs is.
    pub fn times_as_fast(&self, other: Kind) -> Option<f64> {
        let ours = self.samples.get(&Kind::Secretfs)?;
        let theirs = self.samples.get(&other)?;
        Some(match self.unit.is_rate() {
            true => paired_ratio(ours, theirs),
            false => paired_ratio(theirs, ours),
        })
    }

    /// What was reached of a target, and whether that is enough.
    pub fn reached(&self, target: Target) -> Option<(f64, bool)> {
        match target {
            Target::TimesAsFast(other, least) => {
                let ratio = self.times_as_fast(other)?;
                Some((ratio, ratio >= least))
            }
            Target::AtMostTimes(other, most) => {
                let ours = self.samples.get(&Kind::Secretfs)?;
                let ratio = paired_ratio(ours, self.samples.get(&other)?);
                Some((ratio, ratio <= most))
            }
            Target::AtMost(most) => {
                let ours = median(self.samples.get(&Kind::Secretfs)?);
                Some((ours, ours <= most))
            }
        }
    }
}

/// A run.
pub struct Bench {
    pub setting: Setting,
    pub rounds: usize,
    pub quick: bool,
    pub noise: Noise,
    pub rows: Vec<Row>,
    pub started: Instant,
    watch: Watch,
}

impl Bench {
    pub fn new(setting: Setting, rounds: usize, quick: bool) -> Result<Self, Failure> {
        Ok(Self {
            setting,
            rounds,
            quick,
            noise: Noise::new()?,
            rows: Vec::new(),
            started: Instant::now(),
            watch: Watch::start(),
        })
    }

    /// Serves the floor with as many threads as secretfs has.
    pub fn learn_threads(&mut self) -> Result<(), Failure> {
        let mounted = self.empty(Kind::Secretfs, "threads")?.mount()?;
        mounted.settle()?;
        // All are started when one has answered, and name themselves at once.
        std::thread::sleep(Duration::from_millis(100));
        let servers = mounted.servers();
        mounted.unmount()?;
        if servers == 0 {
            return Err(Failure(
                "secretfs has no thread that is called as fuser calls them".into(),
            ));
        }
        self.setting.floor_threads = servers;
        Ok(())
    }

    /// A full run's number, or a smaller one.
    pub fn count(&self, full: u64, quick: u64) -> u64 {
        if self.quick { quick } else { full }
    }

    /// How long a sample of work without an end takes.
    pub fn while_(&self, full: u64) -> Duration {
        Duration::from_millis(if self.quick { full / 3 } else { full })
    }

    /// Says on standard error what is being done.
    pub fn say(&self, what: &str) {
        eprintln!("{:4} s  {what}", self.started.elapsed().as_secs());
        self.watch.set(|step| step.what = what.to_owned());
    }

    /// How long a step may take before it is taken to hang.
    pub fn patience(&self, seconds: u64) {
        self.watch
            .set(|step| step.patience = Duration::from_secs(seconds));
    }

    /// The kinds that take part, the other build of secretfs among them.
    pub fn kinds(&self, kinds: &[Kind]) -> Vec<Kind> {
        Kind::ALL
            .into_iter()
            .filter(|kind| match kind {
                Kind::Before => self.setting.before.is_some() && kinds.contains(&Kind::Secretfs),
                Kind::Securefs | Kind::Cryfs | Kind::Tmpfs if self.quick => false,
                kind => kinds.contains(kind),
            })
            .collect()
    }

    /// A file system with nothing but what earlier work left in it, made if there is none.
    pub fn empty(&self, kind: Kind, name: &str) -> Result<System<'_>, Failure> {
        let system = System::new(&self.setting, kind, name);
        system.prepare()?;
        Ok(system)
    }

    /// A file system with a tree in it. Made once, and then found.
    pub fn filled(&self, kind: Kind, name: &str, tree: Tree) -> Result<System<'_>, Failure> {
        let key = format!("{name}-{}x{}", tree.directories, tree.each);
        let system = System::new(&self.setting, kind, &key);
        let complete = system.home().join("complete");
        if !kind.keeps() && kind != Kind::Floor || complete.exists() {
            system.prepare()?;
            return Ok(system);
        }
        // What was begun and not finished is not used.
        let _ = std::fs::remove_dir_all(system.home());
        let start = Instant::now();
        // Every close of a file waits for the disk, and here nobody needs that.
        let in_memory = match kind {
            Kind::Secretfs | Kind::Before => Some(InMemory::at(&system.home())?),
            _ => None,
        };
        system.prepare()?;
        if matches!(kind, Kind::Bindfs | Kind::Floor) {
            tree.write(&system.backing(), 4)?;
        } else {
            let mounted = system.mount()?;
            tree.write(&mounted.point, 16)?;
            mounted.unmount()?;
        }
        std::fs::write(complete, "")?;
        if let Some(in_memory) = in_memory {
            in_memory.move_to_disk()?;
        }
        self.say(&format!(
            "wrote {} secrets through {} in {:.1} s",
            tree.secrets(),
            kind.name(),
            start.elapsed().as_secs_f64()
        ));
        Ok(system)
    }

    /// Mounts a file system with a tree in it, and waits until it has settled.
    pub fn mount_filled(&self, kind: Kind, name: &str, tree: Tree) -> Result<Mounted, Failure> {
        let mounted = self.filled(kind, name, tree)?.mount()?;
        if kind == Kind::Tmpfs {
            tree.write(&mounted.point, 4)?;
        }
        mounted.settle()?;
        Ok(mounted)
    }

    /// Does the work once for each system in each round, in an order that changes with the round.
    pub fn each_round<S>(
        &mut self,
        what: &str,
        rounds: usize,
        systems: &mut [S],
        mut work: impl FnMut(&Self, &mut S, usize) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        self.say(what);
        // What was written before is not to be written during the measurement.
        nix::unistd::sync();
        for round in 0..rounds {
            self.noise.probe()?;
            for place in 0..systems.len() {
                self.watch.set(|_| ());
                let turn = (place + round) % systems.len();
                work(self, &mut systems[turn], round)?;
            }
        }
        Ok(())
    }

    /// Where nothing is mounted.
    pub fn scratch(&self) -> PathBuf {
        self.setting.dir.join("scratch")
    }
}

/// A directory that is in memory while it is filled.
struct InMemory {
    directory: PathBuf,
}

impl InMemory {
    fn at(directory: &Path) -> Result<Self, Failure> {
        std::fs::create_dir_all(directory)?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(
            Some("tmpfs"),
            directory,
            Some("tmpfs"),
            flags,
            Some("mode=0700"),
        )?;
        Ok(Self {
            directory: directory.to_owned(),
        })
    }

    fn move_to_disk(self) -> Result<(), Failure> {
        let copy = self.directory.with_extension("copy");
        let _ = std::fs::remove_dir_all(&copy);
        let mut command = Command::new("cp");
        let status = command.arg("-a").arg(&self.directory).arg(&copy).status()?;
        if !status.success() {
            return Err(Failure(format!("cp -a to {} failed", copy.display())));
        }
        let directory = self.directory.clone();
        drop(self);
        std::fs::remove_dir(&directory)?;
        Ok(std::fs::rename(copy, directory)?)
    }
}

impl Drop for InMemory {
    fn drop(&mut self) {
        let _ = umount2(&self.directory, MntFlags::MNT_DETACH);
    }
}

/// Ends the program when one step of it hangs: no system call on a hung file system returns.
struct Watch(Arc<Mutex<Step>>);

struct Step {
    what: String,
    began: Instant,
    patience: Duration,
}

impl Watch {
    fn start() -> Self {
        let step = Arc::new(Mutex::new(Step {
            what: String::new(),
            began: Instant::now(),
            patience: Duration::from_secs(300),
        }));
        let watched = Arc::clone(&step);
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(Duration::from_secs(1));
                let step = watched.lock().unwrap_or_else(PoisonError::into_inner);
                if step.began.elapsed() > step.patience {
                    let seconds = step.patience.as_secs();
                    eprintln!("bench: this has hung for {seconds} s: {}", step.what);
                    // What was started ends with this, the first process of its namespace.
                    std::process::exit(1);
                }
            }
        });
        Self(step)
    }

    fn set(&self, change: impl FnOnce(&mut Step)) {
        let mut step = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        step.began = Instant::now();
        change(&mut step);
    }
}
