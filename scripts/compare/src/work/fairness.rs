//! What one user's load does to another user: the same work beside the load on the same mount, and
//! beside it on the mount of a second vault, where nothing is shared but the machine. The other user
//! must never be refused anything.

pub mod load;
pub mod victim;

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

use super::read::end;
use crate::Failure;
use crate::bench::{Bench, Row, Target, Unit};
use crate::content::{Tree, fill};
use crate::kind::Kind;
use crate::mounted::Mounted;
use crate::stats::{median, quantile};
use crate::systems::System;
use load::Load;
use victim::OPERATIONS;

/// What the victim reads and lists.
const TREE: Tree = Tree {
    directories: 1,
    each: 100,
};
/// What a load opens, writes and syncs.
const LARGE: usize = 16 << 20;
const LARGE_NAME: &str = "large";
/// Where the load writes, and where the victim does.
const LOADED: &str = "loaded";
const REPLACED: &str = "replaced";
/// Their users.
const LOADER: u32 = 65534;
const VICTIM: u32 = 1000;

/// The argument that makes this program the load, or the victim.
pub const LOAD: &str = "load-mount";
pub const WORK: &str = "work-on-mount";

/// How often the time with the load on the same mount may be that with the load elsewhere.
const MOST: f64 = 3.0;

/// Two vaults with the same in them.
const VAULTS: [&str; 2] = ["fair-loaded", "fair-other"];

pub fn measure(bench: &mut Bench, load: Load) -> Result<(), Failure> {
    for read_only in [false, true] {
        if !read_only || !load.writes() {
            measure_on(bench, load, read_only)?;
        }
    }
    Ok(())
}

fn measure_on(bench: &mut Bench, load: Load, read_only: bool) -> Result<(), Failure> {
    // Each kind has two mounts: that of the victim, and the other one.
    let mut pairs = Vec::new();
    for kind in bench.kinds(&[Kind::Secretfs]) {
        let [victims, other] = VAULTS.map(|name| mount(bench, kind, name, read_only));
        pairs.push((victims?, other?));
    }
    let mode = if read_only { "ro" } else { "rw" };
    let operations = OPERATIONS.iter().filter(|o| !read_only || !o.writes);
    let mut rows: Vec<_> = operations
        .map(|operation| {
            let row = Row::new(load.row(), "", Unit::Times, &[Target::AtMost(MOST)]);
            (operation.name, row, Vec::new(), Vec::new())
        })
        .collect();
    let what = format!("{} on {mode} mounts", load.row());
    bench.each_round(&what, bench.rounds, &mut pairs, |bench, pair, round| {
        let (victims, other) = &*pair;
        let how_long = bench.while_(3000);
        let mut measured = [Vec::new(), Vec::new()];
        for turn in [round % 2, 1 - round % 2] {
            let loaded = if turn == 0 { victims } else { other };
            measured[turn] = beside(load, loaded, victims, read_only, how_long)?;
        }
        let [same, elsewhere] = measured;
        for (name, row, with, without) in &mut rows {
            let times = |all: &[(String, Vec<f64>)]| {
                let found = all.iter().find(|(operation, _)| operation == name);
                found.map_or(f64::NAN, |(_, times)| quantile(times, 0.99))
            };
            let (one, two) = (times(&same), times(&elsewhere));
            row.add(victims.kind, one / two);
            if victims.kind == Kind::Secretfs {
                with.push(one);
                without.push(two);
            }
        }
        Ok(())
    })?;
    for (name, mut row, with, without) in rows {
        let mut text = format!(
            "{name}, time below which 99 % of them take, beside {} by another user on the same {mode} \
             mount, to that beside the same on another vault's",
            load.what()
        );
        // The times themselves: what the ratio is of.
        let (with, without) = (median(&with), median(&without));
        let _ = write!(text, " ({with:.0} to {without:.0} µs)");
        row.what = text;
        bench.rows.push(row);
    }
    let (victims, others): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
    end(victims)?;
    end(others)
}

/// A mounted vault with everything in it that load and victim need.
fn mount(bench: &Bench, kind: Kind, name: &str, read_only: bool) -> Result<Mounted, Failure> {
    let system = bench.empty(kind, name)?;
    fill_once(&system)?;
    let mounted = match read_only {
        true => system.mount_with(&["--allow-other", "-o", "ro"])?,
        false => system.mount_with(&["--allow-other"])?,
    };
    mounted.settle()?;
    Ok(mounted)
}

fn fill_once(system: &System<'_>) -> Result<(), Failure> {
    let complete = system.home().join("complete");
    if complete.exists() {
        return Ok(());
    }
    let mounted = system.mount()?;
    let root = &mounted.point;
    fs::set_permissions(root, fs::Permissions::from_mode(0o755))?;
    TREE.write(root, 4)?;
    let mut content = vec![0; LARGE];
    fill(0, &mut content);
    File::create(root.join(LARGE_NAME))?.write_all(&content)?;
    for (directory, user) in [(LOADED, LOADER), (REPLACED, VICTIM)] {
        fs::create_dir(root.join(directory))?;
        chown(root.join(directory), Some(user), Some(user))?;
    }
    for directory in [TREE.directory(0).as_str(), LOADED, REPLACED] {
        fs::set_permissions(root.join(directory), fs::Permissions::from_mode(0o755))?;
    }
    let mut readable: Vec<_> = TREE.paths(root);
    readable.push(root.join(LARGE_NAME));
    for path in readable {
        fs::set_permissions(path, fs::Permissions::from_mode(0o644))?;
    }
    mounted.unmount()?;
    fs::write(complete, "")?;
    Ok(())
}

/// What the victim measures on its mount, with the load on `loaded`.
fn beside(
    load: Load,
    loaded: &Mounted,
    victims: &Mounted,
    read_only: bool,
    how_long: Duration,
) -> Result<Vec<(String, Vec<f64>)>, Failure> {
    let loaders = (0..load.processes()).map(|_| Helper::start(&[LOAD, load.row()], loaded));
    let loaders = loaders.collect::<Result<Vec<_>, _>>()?;
    let work = if read_only { "ro" } else { "rw" };
    let milliseconds = how_long.as_millis().to_string();
    let victim = Helper::start(&[WORK, work, &milliseconds], victims)?;
    let lines = victim.ended()?;
    for loader in loaders {
        loader.ended()?;
    }
    let mut measured = Vec::new();
    for line in lines {
        let (name, times) = line.split_once(':').unwrap_or_default();
        let times = times.split_whitespace().map(str::parse::<f64>);
        let times = times.collect::<Result<Vec<_>, _>>();
        let times = times.map_err(|e| Failure(format!("the victim said {line:?}: {e}")))?;
        if times.is_empty() {
            return Err(Failure(format!("the victim was never through with {name}")));
        }
        measured.push((name.to_owned(), times));
    }
    Ok(measured)
}

/// This program as somebody else: ends with its standard input, and says on its standard output that
/// it has begun.
struct Helper {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

const BEGUN: &str = "begun";

impl Helper {
    /// In the top directory of a mount, whoever may go to where that is.
    fn start(arguments: &[&str], mounted: &Mounted) -> Result<Self, Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(arguments).current_dir(&mounted.point);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let output = child.stdout.take();
        let output = output.ok_or_else(|| Failure("a helper has no output".into()))?;
        let mut helper = Self {
            child,
            output: BufReader::new(output),
        };
        let mut line = String::new();
        helper.output.read_line(&mut line)?;
        match line.trim_end() {
            BEGUN => Ok(helper),
            _ => Err(Failure(format!("{arguments:?} did not begin: {line}"))),
        }
    }

    /// What it has said at its end, to which its input comes now.
    fn ended(mut self) -> Result<Vec<String>, Failure> {
        drop(self.child.stdin.take());
        let lines = (&mut self.output).lines().collect::<Result<_, _>>()?;
        match self.child.wait()? {
            status if status.success() => Ok(lines),
            status => Err(Failure(format!(
                "somebody was refused what he may do, see above ({status})"
            ))),
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// This process becomes another user, for good.
fn become_user(user: u32) -> Result<(), Failure> {
    let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
    setgroups(&[])?;
    setresgid(gid, gid, gid)?;
    Ok(setresuid(uid, uid, uid)?)
}

fn say_begun() -> Result<(), Failure> {
    println!("{BEGUN}");
    Ok(std::io::stdout().flush()?)
}

/// Whether so much time has passed since.
fn is_over(start: Instant, how_long: Duration) -> bool {
    start.elapsed() >= how_long
}
