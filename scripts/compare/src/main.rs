//! Measures secretfs beside other encrypted file systems. Started by `scripts/bench`, which runs it as
//! the first process of a process namespace, in a mount namespace of its own: whatever way it ends,
//! daemons and mounts end with it.

mod bench;
mod content;
mod floor;
mod kind;
mod mounted;
mod noise;
mod page;
mod report;
mod signals;
mod stats;
mod systems;
mod work;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;

use bench::Bench;
use systems::Setting;
use work::fairness::load::Load;
use work::{drafts, fairness, fresh, large, programs, read, replace, scale, start};

/// Why the run ended, in words.
#[derive(Debug)]
pub struct Failure(pub String);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<nix::Error> for Failure {
    fn from(error: nix::Error) -> Self {
        Self(error.to_string())
    }
}

/// Measures secretfs beside other encrypted file systems, interleaved, and prints a table
#[derive(Debug, Parser)]
#[command(name = "scripts/bench", args_override_self = true)]
struct Arguments {
    /// Fewer rounds of smaller work: for development, not for figures
    #[arg(long)]
    quick: bool,
    /// Measure only the rows whose names begin so, as in `--only fairness` (what one user's load does
    /// to another user on the same mount); may be repeated
    #[arg(long, value_name = "ROW")]
    only: Vec<String>,
    /// Rounds of each row
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Write the table of a whole run into a page in Markdown, in the place of the one that is there; if no
    /// FILE is given, into scripts/compare/RESULTS.md
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true,
          default_missing_value = page::PAGE, conflicts_with_all = ["quick", "only"])]
    markdown: Option<PathBuf>,
    /// Write every sample as JSON to FILE, or to standard output in place of the table
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    json: Option<PathBuf>,
    /// Measure how secretfs grows with 1,000 to 1,000,000 secrets, and nothing else
    #[arg(long)]
    scale: bool,
    /// Where the vaults and mounts are made: a directory on a real disk; if not given, target/bench
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Use the vaults that the last run with this flag left in DIR, and leave them there
    #[arg(long)]
    keep: bool,
    /// The program that is measured; if not given, it is built
    #[arg(long, value_name = "PROGRAM")]
    secretfs: PathBuf,
    /// Another build of secretfs, measured beside it as `before`
    #[arg(long, value_name = "PROGRAM")]
    before: Option<PathBuf>,
    /// An option of `secretfs mount`, as in --option=--ttl=5s; may be repeated
    #[arg(long, value_name = "OPTION")]
    option: Vec<String>,
    /// Threads that read requests, of secretfs and of the floor
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

fn main() -> ExitCode {
    let given: Vec<_> = std::env::args_os().skip(1).collect();
    let result = match given.as_slice() {
        // Not for people: this program is the daemon of the floor, too.
        [what, source, point, threads, database @ ..] if what == floor::SERVE => {
            let threads = threads.to_str().and_then(|n| n.parse().ok()).unwrap_or(1);
            let database = database.first().map(Path::new);
            floor::serve(Path::new(source), Path::new(point), threads, database).map_err(Failure)
        }
        // Nor for people: what one user does to another on a mount.
        [what, load] if what == fairness::LOAD => fairness::load::run(&load.to_string_lossy()),
        [what, work, time] if what == fairness::WORK => {
            fairness::victim::run(&work.to_string_lossy(), &time.to_string_lossy())
        }
        _ => signals::end_on_them().and_then(|()| run(&Arguments::parse())),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

type Work = fn(&mut Bench) -> Result<(), Failure>;

/// The names that `--only` knows, in the order of the run, and what measures them.
const WORK: [(&str, Work); 22] = [
    ("read-pinned", |b| read::one_thread(b, true)),
    ("read", |b| read::one_thread(b, false)),
    ("read-8", |b| read::many_threads(b, 8)),
    ("read-32", |b| read::many_threads(b, 32)),
    ("first", fresh::first_reads),
    ("list", fresh::list),
    ("replace", |b| replace::measure(b, 1)),
    ("replace-8", |b| replace::measure(b, 8)),
    ("syncs", replace::count_syncs),
    ("large", large::measure),
    ("large-draft", drafts::measure),
    ("start-100", |b| start::first_secret(b, "start-100")),
    ("start-10000", |b| start::first_secret(b, "start-10000")),
    ("start-100000", |b| start::first_secret(b, "start-100000")),
    ("memory", start::memory),
    ("sqlite", programs::sqlite),
    ("append", programs::appends),
    ("fairness-opens", |b| fairness::measure(b, Load::Opens)),
    ("fairness-drafts", |b| fairness::measure(b, Load::Drafts)),
    ("fairness-syncs", |b| fairness::measure(b, Load::Syncs)),
    ("fairness-controls", |b| {
        fairness::measure(b, Load::Controls)
    }),
    ("fairness-attributes", |b| {
        fairness::measure(b, Load::Attributes)
    }),
];

fn run(arguments: &Arguments) -> Result<(), Failure> {
    for only in &arguments.only {
        if !WORK.iter().any(|(name, _)| name.starts_with(only.as_str())) {
            let names = WORK.map(|(name, _)| name);
            return Err(Failure(format!(
                "there is no row {only}; there are: {}",
                names.join(" ")
            )));
        }
    }
    let dir = prepare(&arguments.dir, arguments.keep)?;
    let setting = Setting {
        dir: dir.clone(),
        secretfs: arguments.secretfs.clone(),
        before: arguments.before.clone(),
        options: arguments.option.clone(),
        threads: arguments.threads,
        floor_threads: 1,
    };
    let rounds = if arguments.quick {
        3
    } else {
        arguments.rounds.into()
    };
    let mut bench = Bench::new(setting, rounds, arguments.quick)?;
    bench.learn_threads()?;
    let mut points = Vec::new();
    if arguments.scale {
        points = scale::measure(&mut bench)?;
    } else {
        for (name, measure) in WORK {
            let only = &arguments.only;
            if only.is_empty() || only.iter().any(|o| o == name || is_family(name, o)) {
                measure(&mut bench)?;
            }
        }
    }
    tell(arguments, &bench, &points)?;
    if !arguments.keep {
        fs::remove_dir_all(dir)?;
    }
    Ok(())
}

/// `list` is also asked for by `lis`, but `read` alone is not `read-8`.
fn is_family(name: &str, only: &str) -> bool {
    name.starts_with(only) && !WORK.iter().any(|(whole, _)| *whole == only)
}

fn tell(arguments: &Arguments, bench: &Bench, points: &[scale::Point]) -> Result<(), Failure> {
    if let Some(file) = &arguments.markdown {
        let (part, table) = match arguments.scale {
            true => ("growth", report::scale(points)),
            false => ("table", report::markdown(bench)),
        };
        let origin = page::origin(bench, &arguments.secretfs)?;
        page::replace(file, part, &origin, &table)?;
    }
    let mut table = match arguments.scale {
        true => report::scale(points),
        false => report::text(bench),
    };
    table.push_str(&format!("\n{}\n", bench.noise.words()?));
    let seconds = bench.started.elapsed().as_secs();
    if !arguments.scale {
        table.push_str(&format!("\n{} ({seconds} s)\n", report::tally(bench)));
    }
    let in_place = arguments.json.as_deref() == Some(Path::new("-"));
    match &arguments.json {
        None => {}
        Some(file) => {
            let json = format!("{:#}\n", report::json(bench, points)?);
            if in_place {
                print!("{json}");
            } else {
                fs::write(file, json)?;
            }
        }
    }
    if in_place {
        eprint!("{table}");
    } else {
        print!("{table}");
    }
    Ok(())
}

/// Makes the directory of the run. What an earlier run left in it is removed, unless it is to be used.
fn prepare(dir: &Path, keep: bool) -> Result<PathBuf, Failure> {
    // Only what was made here is ever removed.
    let dir = dir.join("secretfs-bench");
    if !keep {
        match fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
            _ => {}
        }
    }
    fs::create_dir_all(&dir)?;
    Ok(dir.canonicalize()?)
}
