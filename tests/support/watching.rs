//! Programs that watch files, and programs that change them in one of the usual ways.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent};

use super::process::{Place, Server, system, wait_for};

/// How long a change may take to be noticed.
pub const SOON: Duration = Duration::from_secs(20);

/// What Go's fsnotify asks for, which is not told of a close.
pub fn mask() -> AddWatchFlags {
    AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_MODIFY
        | AddWatchFlags::IN_ATTRIB
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_MOVE_SELF
}

/// A program that reads a file whenever it is told of a change, and at no other time.
pub struct Watcher {
    what: String,
    stop: Arc<AtomicBool>,
    last: Arc<Mutex<Vec<u8>>>,
    events: Arc<Mutex<Vec<InotifyEvent>>>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Watches `file` itself.
    pub fn of_file(file: &Path) -> Self {
        Self::start(file, file)
    }

    /// Watches its directory.
    pub fn of_directory(file: &Path) -> Self {
        Self::start(file, file.parent().expect("a directory"))
    }

    fn start(file: &Path, watched: &Path) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let last = Arc::<Mutex<Vec<u8>>>::default();
        let events = Arc::<Mutex<Vec<InotifyEvent>>>::default();
        let what = format!("a watcher of {}", watched.display());
        let thread = {
            let (file, watched) = (file.to_owned(), watched.to_owned());
            let (stop, last, events) = (stop.clone(), last.clone(), events.clone());
            let (ready, is_ready) = std::sync::mpsc::channel();
            let thread = std::thread::spawn(move || {
                let inotify = Inotify::init(InitFlags::IN_NONBLOCK).expect("inotify");
                inotify.add_watch(&watched, mask()).expect("watched");
                *last.lock().expect("a value") = fs::read(&file).expect("read");
                ready.send(()).expect("awaited");
                while !stop.load(Ordering::Relaxed) {
                    let mut polled = [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)];
                    poll(&mut polled, PollTimeout::from(50u8)).expect("polled");
                    let Ok(new) = inotify.read_events() else {
                        continue;
                    };
                    let gone = AddWatchFlags::IN_DELETE_SELF
                        | AddWatchFlags::IN_MOVE_SELF
                        | AddWatchFlags::IN_IGNORED;
                    let of_it = |event: &InotifyEvent| {
                        let name = event.name.as_deref();
                        watched == file || name.is_none() || name == file.file_name()
                    };
                    let is_gone = new.iter().any(|event| event.mask.intersects(gone));
                    let is_of_it = new.iter().any(of_it);
                    events.lock().expect("events").extend(new);
                    // What has that name now, before it is read. It may be away for a moment.
                    while is_gone
                        && inotify.add_watch(&watched, mask()).is_err()
                        && !stop.load(Ordering::Relaxed)
                    {
                        std::thread::yield_now();
                    }
                    if is_of_it && let Ok(bytes) = fs::read(&file) {
                        *last.lock().expect("a value") = bytes;
                    }
                }
            });
            is_ready.recv().expect("it watches");
            thread
        };
        Self {
            what,
            stop,
            last,
            events,
            thread: Some(thread),
        }
    }

    /// What it has read last.
    pub fn last(&self) -> Vec<u8> {
        self.last.lock().expect("a value").clone()
    }

    /// How many events of these kinds it was told of, about this name if there is one.
    pub fn count(&self, kinds: AddWatchFlags, name: Option<&str>) -> usize {
        let events = self.events.lock().expect("events");
        let about = |event: &&InotifyEvent| {
            name.is_none() || event.name.as_deref() == name.map(AsRef::as_ref)
        };
        let such = events.iter().filter(|event| event.mask.intersects(kinds));
        such.filter(about).count()
    }

    /// It comes to have read `value`.
    #[track_caller]
    pub fn ends_with(&self, value: &[u8], after: &str) {
        wait_for(&format!("{} after {after}", self.what), SOON, || {
            self.last() == value
        });
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("{} has failed", self.what);
        }
    }
}

/// A way to change a file.
pub type Change = (&'static str, fn(&Path, u32));

/// The ways in which programs change files.
pub const CHANGES: [Change; 9] = [
    ("write, 2 ms, close", |file, n| write_slowly(file, n, 2)),
    ("write, 10 ms, close", |file, n| write_slowly(file, n, 10)),
    ("write, 200 ms, close", |file, n| write_slowly(file, n, 200)),
    ("openssl", |file, _| {
        shell("openssl rand -hex 40 > $f", file)
    }),
    ("python", |file, n| {
        let code = format!("open('{}','w').write('{n} by python')", file.display());
        system("python3", &["-c".as_ref(), code.as_ref()]);
    }),
    ("cat", |file, n| {
        shell(
            &format!("echo {n} > $t.a; echo b > $t.b; cat $t.a $t.b > $f"),
            file,
        );
    }),
    ("cp", |file, n| {
        shell(&format!("echo {n} > $t.a; cp $t.a $f"), file)
    }),
    ("sed -i", |file, n| {
        shell(&format!("sed -i 's/.*/{n} by sed/' $f"), file)
    }),
    ("rename", |file, n| {
        let new = file.with_extension("new");
        fs::write(&new, format!("{n} by rename")).expect("written");
        fs::rename(&new, file).expect("renamed");
    }),
];

fn write_slowly(file: &Path, n: u32, pause: u64) {
    let mut open = File::create(file).expect("opened");
    write!(open, "{n} after {pause} ms").expect("written");
    // Those who are told of the write have read by then, and too early.
    std::thread::sleep(Duration::from_millis(pause));
}

fn shell(script: &str, file: &Path) {
    let beside = std::env::temp_dir().join(format!("watching-{}", std::process::id()));
    let ran = Command::new("sh")
        .args(["-ec", &format!("{script}; rm -f $t.a $t.b")])
        .env("f", file)
        .env("t", beside)
        .status();
    assert!(ran.expect("a shell").success(), "{script}");
}

/// Every watcher ends with the last value, after each of so many changes of every kind to `file`.
#[track_caller]
pub fn all_end_with_the_last_value(file: &Path, watchers: &[Watcher], rounds: u32) {
    for (what, change) in CHANGES {
        let rounds = if what.contains("200") {
            rounds.min(10.max(rounds / 5))
        } else {
            rounds
        };
        for n in 0..rounds {
            change(file, n);
            let value = fs::read(file).expect("read");
            for watcher in watchers {
                watcher.ends_with(&value, what);
            }
        }
    }
}

/// A mount that only reads, beside the one that writes.
pub struct Beside {
    pub point: PathBuf,
    _server: Server,
}

impl Beside {
    pub fn of(place: &Place) -> Self {
        let point = place.path().join("r");
        fs::create_dir_all(&point).expect("a mount point");
        let mut command = place.command();
        command.arg("mount").arg(place.vault()).arg(&point);
        command.args(["-f", "-o", "ro"]);
        Self {
            _server: Server::start(command),
            point,
        }
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.point, nix::mount::MntFlags::MNT_DETACH);
    }
}

/// A bind mount, for as long as this is there.
pub struct Bind(pub PathBuf);

impl Bind {
    pub fn of(source: &Path, point: PathBuf, read_only: bool) -> Self {
        use nix::mount::{MsFlags, mount};
        fs::create_dir_all(&point).expect("a mount point");
        let none = None::<&str>;
        mount(Some(source), &point, none, MsFlags::MS_BIND, none).expect("bound");
        let bind = Self(point);
        let mut flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT;
        flags.set(MsFlags::MS_RDONLY, read_only);
        mount(none, &bind.0, none, flags, none).expect("remounted");
        bind
    }
}

impl Drop for Bind {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}
