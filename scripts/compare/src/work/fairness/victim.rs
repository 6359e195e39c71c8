//! The user beside the load: reads, lists and replaces small secrets, and tells how long each took.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use super::{REPLACED, TREE, VICTIM, become_user, is_over, say_begun};
use crate::Failure;
use crate::content::{Random, SECRET, fill, read_secret};

/// One thing that the victim does again and again.
pub struct Operation {
    pub name: &'static str,
    pub writes: bool,
    /// How often for each time that the rarest is done.
    often: u32,
    work: fn(u64) -> Result<(), Failure>,
}

pub const OPERATIONS: [Operation; 3] = [
    Operation {
        name: "open, read, close 1 KiB",
        writes: false,
        often: 10,
        work: read,
    },
    Operation {
        name: "replace 1 KiB",
        writes: true,
        often: 1,
        work: replace,
    },
    Operation {
        name: "list a directory of 100",
        writes: false,
        often: 1,
        work: list,
    },
];

fn read(turn: u64) -> Result<(), Failure> {
    let secret = Random::new(turn).below(TREE.secrets());
    read_secret(Path::new(&TREE.path(secret)), secret)
}

fn replace(turn: u64) -> Result<(), Failure> {
    let directory = Path::new(REPLACED);
    let (temporary, path) = (
        directory.join(".new"),
        directory.join(format!("{}", turn % 8)),
    );
    let mut buffer = [0; SECRET];
    fill(turn, &mut buffer);
    let replace = || -> std::io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(&buffer)?;
        file.sync_all()?;
        drop(file);
        fs::rename(&temporary, &path)
    };
    replace().map_err(|e| Failure(format!("{}: {e}", path.display())))?;
    read_secret(&path, turn)
}

fn list(_: u64) -> Result<(), Failure> {
    let directory = TREE.directory(0);
    let fail = |e| Failure(format!("{directory}: {e}"));
    let mut seen = 0;
    for entry in fs::read_dir(&directory).map_err(fail)? {
        let known = entry.and_then(|entry| entry.metadata()).map_err(fail)?;
        seen += u64::from(known.is_file());
    }
    match seen == TREE.each {
        true => Ok(()),
        false => Err(Failure(format!("{directory} shows {seen} entries"))),
    }
}

/// The victim, as a process in the top directory of a mount: `rw` or `ro`, and for how many
/// milliseconds.
pub fn run(work: &str, milliseconds: &str) -> Result<(), Failure> {
    become_user(VICTIM)?;
    let milliseconds = milliseconds
        .parse()
        .map_err(|_| Failure(format!("{milliseconds} is no number of milliseconds")))?;
    let how_long = Duration::from_millis(milliseconds);
    let operations = OPERATIONS.iter().filter(|o| work == "rw" || !o.writes);
    let mut measured: Vec<_> = operations.map(|o| (o, Vec::new())).collect();
    say_begun()?;
    let (start, mut turn) = (Instant::now(), 0);
    while !is_over(start, how_long) {
        for (operation, times) in &mut measured {
            for _ in 0..operation.often {
                turn += 1;
                let begun = Instant::now();
                (operation.work)(turn)?;
                times.push(begun.elapsed().as_secs_f64() * 1e6);
            }
        }
    }
    for (operation, times) in measured {
        let times: Vec<_> = times.iter().map(|time| format!("{time:.1}")).collect();
        println!("{}:{}", operation.name, times.join(" "));
    }
    Ok(())
}
