//! Atomic replacement of a secret: create a temporary file, write 1 KiB, fsync, rename it over. The
//! directory is not synced.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::read::end;
use crate::Failure;
use crate::bench::{Bench, Row, Target, Unit};
use crate::content::{SECRET, fill, read_secret};
use crate::kind::Kind;
use crate::mounted::Mounted;

/// Secrets that each thread replaces in turn.
const NAMES: u64 = 8;

/// When to stop.
#[derive(Clone, Copy)]
enum Until {
    Time(Duration),
    Count(u64),
}

/// Each thread has a directory of its own: the kernel makes and renames one name at a time in one.
fn replace(directory: &Path, thread: u64, until: Until) -> Result<u64, Failure> {
    let directory = directory.join(format!("of-{thread}"));
    fs::create_dir_all(&directory)?;
    let path = |secret: u64| directory.join(format!("secret-{thread}-{secret}"));
    let temporary = directory.join(format!(".new-{thread}"));
    let start = Instant::now();
    let mut done = 0;
    let mut buffer = [0; SECRET];
    while match until {
        Until::Time(time) => start.elapsed() < time,
        Until::Count(count) => done < count,
    } {
        fill(done, &mut buffer);
        let mut file = File::create(&temporary)?;
        file.write_all(&buffer)?;
        file.sync_all()?;
        drop(file);
        fs::rename(&temporary, path(done % NAMES))?;
        done += 1;
    }
    let last = done - 1;
    read_secret(&path(last % NAMES), last)?;
    Ok(done)
}

/// How many were replaced, and in how many seconds.
fn replace_with(mounted: &Mounted, threads: u64, until: Until) -> Result<(u64, f64), Failure> {
    let directory = mounted.point.join("replaced");
    fs::create_dir_all(&directory)?;
    let barrier = Barrier::new(threads as usize);
    std::thread::scope(|scope| {
        let (barrier, directory) = (&barrier, &directory);
        let workers: Vec<_> = (0..threads)
            .map(|thread| {
                scope.spawn(move || {
                    barrier.wait();
                    let start = Instant::now();
                    replace(directory, thread, until)
                        .map(|done| (done, start.elapsed().as_secs_f64()))
                })
            })
            .collect();
        let (mut done, mut longest) = (0, 0.0_f64);
        for worker in workers {
            let (more, took) = worker
                .join()
                .map_err(|_| Failure("a writer panicked".into()))??;
            done += more;
            longest = longest.max(took);
        }
        Ok((done, longest))
    })
}

const SYSTEMS: [Kind; 8] = [
    Kind::Secretfs,
    Kind::Gocryptfs,
    Kind::Securefs,
    Kind::Cryfs,
    Kind::Bindfs,
    Kind::Tmpfs,
    Kind::Floor,
    Kind::FloorSqlite,
];

fn mount_all(bench: &Bench, systems: &[Kind]) -> Result<Vec<Mounted>, Failure> {
    let kinds = bench.kinds(systems);
    let mounts = kinds.iter().map(|kind| {
        let mounted = bench.empty(*kind, "replacing")?.mount()?;
        mounted.settle()?;
        Ok(mounted)
    });
    mounts.collect()
}

pub fn measure(bench: &mut Bench, threads: u64) -> Result<(), Failure> {
    let what = "replace 1 KiB: create, write, fsync, rename";
    let mut row = if threads == 1 {
        let targets = [Target::TimesAsFast(Kind::Gocryptfs, 1.5)];
        Row::new("replace", what, Unit::Microseconds, &targets)
    } else {
        let what = format!("{what}; {threads} threads");
        let targets = [Target::TimesAsFast(Kind::Gocryptfs, 4.0)];
        Row::new("replace-8", &what, Unit::PerSecond, &targets)
    };
    let mut mounts = mount_all(bench, &SYSTEMS)?;
    bench.each_round(row.name, bench.rounds, &mut mounts, |bench, mounted, _| {
        let until = Until::Time(bench.while_(500));
        let (done, seconds) = replace_with(mounted, threads, until)?;
        row.add(
            mounted.kind,
            match row.unit {
                Unit::PerSecond => done as f64 / seconds,
                _ => seconds * 1e6 / done as f64,
            },
        );
        Ok(())
    })?;
    bench.rows.push(row);
    end(mounts)
}

const SYNCS: &str = "fsync,fdatasync,sync_file_range,msync";

/// How often each daemon syncs for a replacement. In a run of its own, for tracing takes time.
pub fn count_syncs(bench: &mut Bench) -> Result<(), Failure> {
    let mut mounts = mount_all(bench, &SYSTEMS)?;
    mounts.retain(|mounted| !mounted.pids.is_empty());
    let mut rows = [("syncs", 1), ("syncs-8", 8)].map(|(name, threads)| {
        let what = format!("{SYNCS} for each replacement, {threads} threads (traced, once)");
        (
            threads,
            Row::new(
                name,
                &what.replace("1 threads", "1 thread"),
                Unit::Calls,
                &[],
            ),
        )
    });
    for (threads, row) in &mut rows {
        bench.say(row.name);
        for mounted in &mounts {
            let trace = Trace::start(&mounted.pids, bench.scratch())?;
            let (done, _) = replace_with(mounted, *threads, Until::Count(200 / *threads))?;
            let calls: u64 = trace.stop()?.values().sum();
            row.add(mounted.kind, calls as f64 / done as f64);
        }
    }
    bench.rows.extend(rows.map(|(_, row)| row));
    end(mounts)
}

/// A running strace.
struct Trace {
    strace: std::process::Child,
    output: PathBuf,
}

impl Trace {
    /// Attaches strace once the processes rest: it stops their threads one by one, and never ends
    /// with a thread that waits for an answer from one that it has stopped.
    fn start(pids: &[Pid], output: PathBuf) -> Result<Self, Failure> {
        let mut rests = 0;
        while rests < 10 {
            rests = if pids.iter().all(|pid| rests_now(*pid)) {
                rests + 1
            } else {
                0
            };
            std::thread::sleep(Duration::from_millis(10));
        }
        let mut command = Command::new("strace");
        command.args(["-f", "-c", "-e", &format!("trace={SYNCS}"), "-o"]);
        command.arg(&output);
        for pid in pids {
            command.args(["-p", &pid.to_string()]);
        }
        let strace = command.stderr(Stdio::null()).spawn()?;
        let mut trace = Self { strace, output };
        while !pids.iter().all(|pid| is_traced(*pid)) {
            if trace.strace.try_wait()?.is_some() {
                return Err(Failure(format!("strace cannot be attached to {pids:?}")));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(trace)
    }

    /// The number of calls, by name.
    fn stop(mut self) -> Result<BTreeMap<String, u64>, Failure> {
        kill(
            Pid::from_raw(self.strace.id().cast_signed()),
            Signal::SIGINT,
        )?;
        self.strace.wait()?;
        let mut calls = BTreeMap::new();
        // % time, seconds, usecs/call, calls, errors (or nothing), syscall
        for line in fs::read_to_string(&self.output)?.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            if let (Some(count), Some(name)) = (words.get(3), words.last())
                && let Ok(count) = count.parse()
                && *name != "total"
            {
                calls.insert((*name).to_owned(), count);
            }
        }
        Ok(calls)
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = self.strace.kill();
        let _ = self.strace.wait();
    }
}

/// Whether all threads of a process sleep until something wakes them.
fn rests_now(pid: Pid) -> bool {
    every_task(pid, |status| status.contains("State:\tS"))
}

/// Whether all threads of a process are traced.
fn is_traced(pid: Pid) -> bool {
    every_task(pid, |status| !status.contains("TracerPid:\t0\n"))
}

/// Whether `holds` of the `/proc/PID/task/TID/status` of each thread.
fn every_task(pid: Pid, holds: impl Fn(&str) -> bool) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    tasks.into_iter().flatten().flatten().all(|task| {
        fs::read_to_string(task.path().join("status")).is_ok_and(|status| holds(&status))
    })
}
