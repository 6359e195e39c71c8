//! What one user may do to a mount, for as long as it likes. What is refused is no matter: that is
//! how a load is kept within bounds.

use std::collections::VecDeque;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::{LARGE, LARGE_NAME, LOADED, LOADER, become_user, is_over, say_begun};
use crate::Failure;

/// How long a load may take to reach its height before the victim begins.
const RISE: Duration = Duration::from_secs(2);
/// Files that are written and synced, each by a thread of its own.
const SYNCED: usize = 8;
const DRAFTS: usize = 24;
const OPENS: usize = 10_000;
/// In each of two processes: many systems let one have no more than that open.
const CONTROLS: usize = 10_000;
/// What a process needs to have open for that.
const FILES: u64 = 10_100;
const ATTRIBUTED: usize = 300;
const ATTRIBUTE: usize = 60_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    Opens,
    Drafts,
    Syncs,
    Controls,
    Attributes,
}

impl Load {
    const ALL: [Self; 5] = [
        Self::Opens,
        Self::Drafts,
        Self::Syncs,
        Self::Controls,
        Self::Attributes,
    ];

    /// What `--only` knows it by.
    pub fn row(self) -> &'static str {
        match self {
            Self::Opens => "fairness-opens",
            Self::Drafts => "fairness-drafts",
            Self::Syncs => "fairness-syncs",
            Self::Controls => "fairness-controls",
            Self::Attributes => "fairness-attributes",
        }
    }

    pub fn what(self) -> &'static str {
        match self {
            Self::Opens => "10,000 opens of a file of 16 MiB",
            Self::Drafts => "24 drafts of 16 MiB",
            Self::Syncs => "one byte written and fsync of 16 MiB, again and again, in 8 files",
            Self::Controls => "20,000 opens of .secretfs/status",
            Self::Attributes => "300 extended attributes of 60 KB",
        }
    }

    /// How many processes it takes.
    pub fn processes(self) -> usize {
        match self {
            Self::Controls => 2,
            _ => 1,
        }
    }

    /// Whether there is no such load on a mount that is read only.
    pub fn writes(self) -> bool {
        matches!(self, Self::Drafts | Self::Syncs | Self::Attributes)
    }
}

/// The load, as a process in the top directory of a mount, until its input ends.
pub fn run(row: &str) -> Result<(), Failure> {
    let load = Load::ALL.into_iter().find(|load| load.row() == row);
    let load = load.ok_or_else(|| Failure(format!("there is no load {row}")))?;
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if most < FILES {
        return Err(Failure(format!(
            "a process may have {most} files open here, and {FILES} are needed: raise the limit \
             (ulimit -Hn)"
        )));
    }
    setrlimit(Resource::RLIMIT_NOFILE, FILES, most)?;
    become_user(LOADER)?;
    // Detached: where they are refused everything they may be at it for a while, and end with this.
    let stop: &'static AtomicBool = Box::leak(Box::default());
    let risen: &'static AtomicBool = Box::leak(Box::default());
    let workers = match load {
        Load::Syncs => SYNCED,
        _ => 1,
    };
    let workers: Vec<_> = (0..workers)
        .map(|number| std::thread::spawn(move || work(load, number, risen, stop)))
        .collect();
    let start = Instant::now();
    while !risen.load(Ordering::Relaxed) && !is_over(start, RISE) {
        std::thread::sleep(Duration::from_millis(1));
    }
    say_begun()?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    stop.store(true, Ordering::Relaxed);
    for worker in workers {
        worker
            .join()
            .map_err(|_| Failure("a thread of the load panicked".into()))?;
    }
    Ok(())
}

fn work(load: Load, number: usize, risen: &AtomicBool, stop: &AtomicBool) {
    match load {
        Load::Opens => keep_open(Path::new(LARGE_NAME), OPENS, risen, stop),
        Load::Controls => keep_open(Path::new(".secretfs/status"), CONTROLS, risen, stop),
        Load::Drafts => keep_drafts(risen, stop),
        Load::Syncs => sync_again_and_again(number, risen, stop),
        Load::Attributes => set_attributes(risen, stop),
    }
}

fn goes_on(stop: &AtomicBool) -> bool {
    !stop.load(Ordering::Relaxed)
}

/// So many are open, and the oldest is opened anew.
fn keep_open(path: &Path, most: usize, risen: &AtomicBool, stop: &AtomicBool) {
    let mut open = VecDeque::new();
    while goes_on(stop) {
        match File::open(path) {
            Ok(mut file) => {
                let mut beginning = [0; 4096];
                let _ = file.read(&mut beginning);
                open.push_back(file);
            }
            Err(_) => risen.store(true, Ordering::Relaxed),
        }
        if open.len() >= most {
            risen.store(true, Ordering::Relaxed);
            open.pop_front();
        }
    }
}

fn own(name: &str, number: usize) -> PathBuf {
    Path::new(LOADED).join(format!("{name}-{number}"))
}

/// Written and not closed; nothing of it is ever published.
fn keep_drafts(risen: &AtomicBool, stop: &AtomicBool) {
    let piece = vec![b'x'; 128 << 10];
    let mut drafts = Vec::new();
    for number in 0..DRAFTS {
        let Ok(file) = File::create(own("draft", number)) else {
            continue;
        };
        for at in (0..LARGE).step_by(piece.len()) {
            if !goes_on(stop) || file.write_all_at(&piece, at as u64).is_err() {
                break;
            }
        }
        drafts.push(file);
    }
    risen.store(true, Ordering::Relaxed);
    // Written over here and there.
    let mut turn = 0;
    while goes_on(stop) {
        let at = turn * piece.len() % LARGE;
        for draft in &drafts {
            let _ = draft.write_all_at(&piece, at as u64);
        }
        turn += 1;
    }
    // Removed first: then closing them stores nothing.
    for number in 0..DRAFTS {
        let _ = fs::remove_file(own("draft", number));
    }
}

fn sync_again_and_again(number: usize, risen: &AtomicBool, stop: &AtomicBool) {
    let path = own("synced", number);
    let written = File::create(&path).and_then(|mut file| {
        file.write_all(&vec![b'x'; LARGE])?;
        file.sync_all()?;
        Ok(file)
    });
    let mut turn = 0_u64;
    while goes_on(stop)
        && let Ok(file) = &written
    {
        let _ = file.write_all_at(b"y", turn * 4099 % LARGE as u64);
        let _ = file.sync_all();
        turn += 1;
        risen.store(true, Ordering::Relaxed);
    }
    let _ = fs::remove_file(path);
}

fn set_attributes(risen: &AtomicBool, stop: &AtomicBool) {
    let files = (0..ATTRIBUTED).map(|number| own("attributed", number));
    let files: Vec<_> = files.filter(|path| File::create(path).is_ok()).collect();
    let mut value = vec![b'x'; ATTRIBUTE];
    while goes_on(stop) {
        value[0] = value[0].wrapping_add(1);
        for file in files.iter().filter(|_| goes_on(stop)) {
            set_attribute(file, &value);
        }
        risen.store(true, Ordering::Relaxed);
    }
    for file in files {
        let _ = fs::remove_file(file);
    }
}

fn set_attribute(path: &Path, value: &[u8]) {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else {
        return;
    };
    let name = c"user.load".as_ptr();
    // SAFETY: both names end with a NUL, and the value is as long as it is said to be.
    unsafe {
        libc::setxattr(path.as_ptr(), name, value.as_ptr().cast(), value.len(), 0);
    }
}
