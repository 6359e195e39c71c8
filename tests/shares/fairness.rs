//! Shares of the disk's time: what one user makes the disk do delays others by little, and order is
//! kept where programs can tell.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, chown};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use crate::support::failing_disk::Disk;
use crate::support::layer::{Layer, Served, caller_as};
use crate::support::process::wait_for;
use crate::support::tree::as_user;
use secretfs::fs::{Attr, Caller, Ending, Errno, Opened};
use secretfs::vault::{Kind, NewNode, RenameMode};

const SOON: Duration = Duration::from_secs(60);
const ROOT: u64 = 1;
const LOADER: u32 = 65534;
const OTHER: u32 = 1000;

/// Files of the user who keeps the disk busy, each larger than what is stored together.
const FILES: usize = 8;
const LARGE: usize = 2 << 20;

/// A disk that stores nothing while this lives.
struct Frozen(File);

// _IOWR('X', 119, int) and _IOWR('X', 120, int).
const FIFREEZE: libc::c_ulong = 0xc004_5877;
const FITHAW: libc::c_ulong = 0xc004_5878;

impl Frozen {
    fn new(directory: &Path) -> Self {
        let directory = File::open(directory).expect("open");
        // SAFETY: the call takes nothing by address.
        let outcome = unsafe { libc::ioctl(directory.as_raw_fd(), FIFREEZE, 0) };
        assert_eq!(outcome, 0, "{}", std::io::Error::last_os_error());
        Self(directory)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { libc::ioctl(self.0.as_raw_fd(), FITHAW, 0) };
    }
}

/// Whether a thread of this process waits in fsync(2).
fn syncs(thread: i32) -> bool {
    let call = std::fs::read_to_string(format!("/proc/self/task/{thread}/syscall"));
    let call = call.unwrap_or_default();
    call.split(' ').next() == Some(&libc::SYS_fsync.to_string())
}

#[test]
fn a_small_file_is_stored_before_the_large_ones_that_another_user_waits_for() {
    let disk = Disk::with_vault(128);
    // One thread takes the requests, in their order.
    let options = ["--allow-other", "-o", "threads=1"];
    disk.place.mount(&options).succeeded();
    let root = disk.place.point();
    let written = |name: &str, user: u32, content: &[u8]| {
        let path = root.join(name);
        File::create(&path).expect("made");
        chown(&path, Some(user), Some(user)).expect("given away");
        as_user(user, &[], || {
            let file = File::options().write(true).open(&path).expect("open");
            file.write_all_at(content, 0).expect("written");
            file
        })
    };
    let large = vec![b'x'; LARGE];
    let loads: Vec<_> = (0..=FILES)
        .map(|number| written(&format!("large-{number}"), LOADER, &large))
        .collect();
    let small = written("small", OTHER, b"small");
    let frozen = Frozen::new(&disk.place.vault());
    // The first is being stored, the others wait; the small one comes last.
    let mut waiting = Vec::new();
    for file in loads.into_iter().chain([small]) {
        let (sender, receiver) = mpsc::channel();
        waiting.push(std::thread::spawn(move || {
            sender
                .send(nix::unistd::gettid().as_raw())
                .expect("awaited");
            file.sync_all().expect("stored");
        }));
        let thread = receiver.recv().expect("told");
        wait_for("the fsync", SOON, || syncs(thread));
        // Answered once the thread that takes requests has dealt with the fsync.
        nix::sys::statvfs::statvfs(&root).expect("told");
    }
    assert!(waiting.iter().all(|thread| !thread.is_finished()));
    drop(frozen);
    for thread in waiting {
        thread.join().expect("stored");
    }
    // When the transaction began that stored it.
    let stored = |name: &str| {
        let known = std::fs::metadata(root.join(name)).expect("there");
        (known.ctime(), known.ctime_nsec())
    };
    let small = stored("small");
    let before = (0..=FILES).filter(|number| stored(&format!("large-{number}")) <= small);
    let before: Vec<_> = before.collect();
    assert!(
        before.len() <= 1,
        "{before:?} were stored before, or with it"
    );
    disk.umount().succeeded();
    disk.check();
}

/// Fail points are the whole process's: one test at a time.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has whoever comes to a point wait there until this is dropped.
struct Held(&'static str);

impl Held {
    fn at(point: &'static str) -> Self {
        fail::cfg(point, "pause").expect("a point");
        Self(point)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        fail::remove(self.0);
    }
}

/// Lets those who come to a point go on one by one, and all of them when this is dropped.
struct Gate {
    point: &'static str,
    /// How many have come, and how many may go on.
    counts: Arc<(Mutex<(usize, usize)>, Condvar)>,
}

impl Gate {
    fn at(point: &'static str) -> Self {
        let counts = Arc::<(Mutex<(usize, usize)>, Condvar)>::default();
        let shared = Arc::clone(&counts);
        fail::cfg_callback(point, move || {
            let (counts, changed) = &*shared;
            let mut counted = counts.lock().expect("no panic");
            counted.0 += 1;
            let number = counted.0;
            changed.notify_all();
            let waited = changed.wait_while(counted, |counted| counted.1 < number);
            drop(waited.expect("no panic"));
        })
        .expect("a point");
        Self { point, counts }
    }

    fn await_arrival(&self, number: usize) {
        let (counts, changed) = &*self.counts;
        let counted = counts.lock().expect("no panic");
        let waited = changed.wait_timeout_while(counted, SOON, |counted| counted.0 < number);
        let (counted, _) = waited.expect("no panic");
        assert!(counted.0 >= number, "nobody comes to {}", self.point);
    }

    /// Holds nobody else.
    fn hold_no_more(&self) {
        fail::remove(self.point);
    }

    fn open_for(&self, number: usize) {
        let (counts, changed) = &*self.counts;
        counts.lock().expect("no panic").1 = number;
        changed.notify_all();
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.hold_no_more();
        self.open_for(usize::MAX);
    }
}

/// What was done, in its order.
#[derive(Clone, Default)]
struct Order(Arc<Mutex<Vec<String>>>);

impl Order {
    fn note<T>(&self, what: &str) -> Box<dyn FnOnce(Result<T, Errno>) + Send> {
        let (order, what) = (self.clone(), what.to_owned());
        Box::new(move |outcome| {
            assert!(outcome.is_ok(), "{what} failed");
            order.0.lock().expect("no panic").push(what);
        })
    }

    fn seen(&self) -> Vec<String> {
        self.0.lock().expect("no panic").clone()
    }

    fn has(&self, what: &str) -> bool {
        self.seen().iter().any(|seen| seen == what)
    }
}

fn user(uid: u32) -> Caller {
    caller_as(std::process::id(), uid)
}

/// A new file with something written to it that is not published.
fn written(served: &Served, caller: Caller, name: &str, content: &[u8]) -> (u64, u64) {
    let (attr, fh) = served
        .create_as(caller, (ROOT, name.as_bytes()), 0o666, libc::O_RDWR)
        .expect("made");
    served.write(fh, 0, content).expect("written");
    (attr.ino, fh)
}

/// A large file, whose transaction is held once the writer's thread has come to it.
fn occupied(served: &Served, order: &Order) -> Held {
    let (_, fh) = written(served, user(LOADER), "occupies", &vec![b'o'; LARGE]);
    let held = Held::at("writer-commits");
    served.0.fsync(fh, order.note("occupies"));
    held
}

fn make(served: &Served, caller: Caller, name: &str, order: &Order) {
    let new = NewNode {
        kind: Kind::Directory,
        mode: 0o755,
        uid: caller.uid,
        gid: 0,
        device: 0,
        target: Vec::new(),
    };
    served
        .0
        .make(caller, ROOT, name.as_bytes(), new, order.note(name));
}

/// The name of a directory that waits for the transaction that is held, which has begun by then. Those
/// that are made before it are in no transaction's way.
fn one_that_waits(served: &Served, caller: Caller, order: &Order) -> String {
    let mut made = 0;
    wait_for("the transaction", SOON, || {
        made += 1;
        let name = format!("made-{made}");
        make(served, caller, &name, order);
        !order.has(&name)
    });
    format!("made-{made}")
}

#[test]
fn a_small_file_is_stored_between_the_pieces_of_a_large_one_of_another_user() {
    let _alone = alone();
    let layer = Layer::new();
    let served = layer.open();
    let order = Order::default();
    let (_, fh) = written(&served, user(OTHER), "small", b"small");
    // Held once the writer's thread has come to its first piece.
    let commits = occupied(&served, &order);
    one_that_waits(&served, user(0), &order);
    served.0.fsync(fh, order.note("small"));
    drop(commits);
    wait_for("both", SOON, || order.has("occupies") && order.has("small"));
    let seen = order.seen();
    let place = |what: &str| seen.iter().position(|seen| seen == what);
    assert!(place("small") < place("occupies"), "{seen:?}");
    served.finish();
    assert_eq!(layer.check().problem_count, 0);
}

#[test]
fn a_name_is_changed_while_the_disk_is_waited_for_on_behalf_of_another_user() {
    let _alone = alone();
    let layer = Layer::new();
    let served = layer.open();
    let order = Order::default();
    let commits = occupied(&served, &order);
    let waited = one_that_waits(&served, user(OTHER), &order);
    let syncs = Held::at("writer-syncs");
    drop(commits);
    // Neither by those whom it has not come to yet.
    make(&served, user(OTHER), "afterwards", &order);
    wait_for("the directory", SOON, || {
        order.has(&waited) && order.has("afterwards")
    });
    assert!(!order.has("occupies"));
    drop(syncs);
    wait_for("the large one", SOON, || order.has("occupies"));
    served.finish();
}

#[test]
fn what_a_program_does_after_a_close_that_nobody_awaits_is_not_done_before_it() {
    let _alone = alone();
    let layer = Layer::new();
    let served = layer.open();
    let order = Order::default();
    let (ino, fh) = written(&served, user(OTHER), "new", &vec![b'n'; LARGE]);
    let commits = occupied(&served, &order);
    one_that_waits(&served, user(0), &order);
    // As a child's last close does.
    served.release(fh);
    let fs = Arc::clone(&served.0);
    let version_then = |order: Order, what: &'static str| {
        let fs = Arc::clone(&fs);
        Box::new(move |outcome: Result<(), Errno>| {
            assert!(outcome.is_ok(), "{what} failed");
            let version = fs.get_xattr(ino, b"user.secretfs.version").expect("known");
            let version = String::from_utf8(version).expect("a number");
            let mut seen = order.0.lock().expect("no panic");
            seen.push(format!("{what} at version {version}"));
        })
    };
    let (from, to) = ((ROOT, &b"new"[..]), (ROOT, &b"old"[..]));
    let rename = version_then(order.clone(), "renamed");
    served
        .0
        .rename(user(OTHER), from, to, RenameMode::Replace, rename);
    served
        .0
        .barrier(user(OTHER), version_then(order.clone(), "synced"));
    // Another user waits for none of that.
    make(&served, user(7), "beside", &order);
    let syncs = Held::at("writer-syncs");
    drop(commits);
    wait_for("the other user's directory", SOON, || order.has("beside"));
    drop(syncs);
    let has_both = |seen: &[String]| {
        ["renamed", "synced"].map(|what| seen.iter().any(|seen| seen.starts_with(what)))
            == [true; 2]
    };
    wait_for("both", SOON, || has_both(&order.seen()));
    let seen = order.seen();
    // What was closed is published by then.
    let at_first = |seen: &String| seen.ends_with("at version 0");
    assert!(!seen.iter().any(at_first), "{seen:?}");
    served.finish();
}

#[test]
fn of_two_users_who_publish_one_file_the_later_one_stays() {
    let _alone = alone();
    let layer = Layer::new();
    let served = layer.open();
    let order = Order::default();
    let (ino, fh) = written(&served, user(LOADER), "both", b"first");
    served.fsync(fh).expect("stored");
    served.release(fh);
    let replace = |caller: Caller, content: &[u8]| {
        let fh = served
            .open_as(caller, ino, libc::O_WRONLY | libc::O_TRUNC)
            .expect("open");
        served.write(fh, 0, content).expect("written");
        fh
    };
    let more: Vec<_> = (0..FILES)
        .map(|number| {
            let name = format!("large-{number}");
            written(&served, user(LOADER), &name, &vec![b'x'; LARGE]).1
        })
        .collect();
    let older = replace(user(LOADER), &vec![b'o'; LARGE]);
    let newer = replace(user(OTHER), b"newer");
    let commits = occupied(&served, &order);
    for fh in more {
        served.0.fsync(fh, order.note("large"));
    }
    served.0.fsync(older, order.note("older"));
    served.0.fsync(newer, order.note("newer"));
    drop(commits);
    wait_for("both", SOON, || order.has("older") && order.has("newer"));
    let seen = order.seen();
    let place = |what: &str| seen.iter().position(|seen| seen == what);
    assert!(place("older") < place("newer"), "{seen:?}");
    assert_eq!(served.read_all(ino).expect("readable"), b"newer");
    served.finish();
}

/// Whether a thread of this process waits for another.
fn waits(thread: i32) -> bool {
    let call = std::fs::read_to_string(format!("/proc/self/task/{thread}/syscall"));
    call.unwrap_or_default().split(' ').next() == Some(&libc::SYS_futex.to_string())
}

#[test]
fn of_two_contents_of_one_draft_that_are_published_at_once_the_later_one_stays() {
    let _alone = alone();
    let layer = Layer::new();
    let served = layer.open();
    let (ino, fh) = written(&served, user(OTHER), "both", b"older");
    let gate = Gate::at("publication-queues");
    std::thread::scope(|scope| {
        scope.spawn(|| served.fsync(fh).expect("stored"));
        gate.await_arrival(1);
        gate.hold_no_more();
        // Comes when the older one is on its way, and may overtake nothing.
        let (sender, receiver) = mpsc::channel();
        let served = &served;
        let newer = scope.spawn(move || {
            sender
                .send(nix::unistd::gettid().as_raw())
                .expect("awaited");
            served.write(fh, 0, b"newer").expect("written");
            served.flush(fh).expect("stored");
        });
        let thread = receiver.recv().expect("told");
        wait_for("the newer one", SOON, || {
            newer.is_finished() || waits(thread)
        });
        drop(gate);
    });
    // Or the last close would store the newer one once more.
    served.abort();
    let served = layer.open();
    assert_eq!(served.read_all(ino).expect("readable"), b"newer");
    served.finish();
}

#[test]
fn who_publishes_without_pause_keeps_nobody_waiting() {
    let _alone = alone();
    let layer = Layer::new();
    let served = layer.open();
    let order = Order::default();
    let (ino, fh) = written(&served, user(LOADER), "busy", b"first");
    let gate = Gate::at("writer-commits");
    served.0.fsync(fh, order.note("first"));
    gate.await_arrival(1);
    let opened = order.note::<Opened>("opened");
    served.0.open(user(OTHER), ino, libc::O_RDONLY, opened);
    let told = order.note::<Attr>("told");
    served.0.getattr(user(OTHER), ino, None, told);
    // The next one is asked for before the first is over, and so on for ever.
    served.write(fh, 0, b"other").expect("written");
    let pid = std::process::id();
    served.0.flush(fh, pid, 1, order.note("second"));
    assert_eq!(order.seen(), Vec::<String>::new());
    gate.open_for(1);
    gate.await_arrival(2);
    wait_for("those who waited for the first", SOON, || {
        order.has("opened") && order.has("told")
    });
    assert!(!order.has("second"));
    drop(gate);
    wait_for("the second", SOON, || order.has("second"));
    served.finish();
}

#[test]
fn what_nobody_awaits_is_not_tried_again_over_what_somebody_was_told_is_stored() {
    let _alone = alone();
    let layer = Layer::new();
    let served = layer.open();
    let order = Order::default();
    let (ino, fh) = written(&served, user(OTHER), "both", b"first");
    served.fsync(fh).expect("stored");
    served.release(fh);
    let replaced = |caller: Caller, content: &[u8]| {
        let flags = libc::O_WRONLY | libc::O_TRUNC;
        let fh = served.open_as(caller, ino, flags).expect("open");
        served.write(fh, 0, content).expect("written");
        fh
    };
    let older = replaced(user(LOADER), b"older");
    let newer = replaced(user(OTHER), b"newer");
    let (_, fh) = written(&served, user(LOADER), "occupies", b"small");
    let commits = Gate::at("writer-commits");
    served.0.fsync(fh, order.note("occupies"));
    commits.await_arrival(1);
    // After the one that is being stored: the older one, which goes along with the newer one.
    fail::cfg("publication-fails", "1*off->1*return->off").expect("a point");
    served.release(older);
    served.0.fsync(newer, order.note("newer"));
    drop(commits);
    wait_for("the newer one", SOON, || order.has("newer"));
    // Waits for what is tried again.
    served.finish();
    fail::remove("publication-fails");
    let served = layer.open();
    assert_eq!(served.read_all(ino).expect("readable"), b"newer");
    served.finish();
}

/// Closes of some files are under way when a mount ends; others are written until their turn comes.
#[test]
fn what_is_stored_while_a_mount_ends_is_not_replaced_by_what_was_there_when_the_end_began() {
    let _alone = alone();
    let layer = Layer::new();
    let served = layer.open();
    let files = ["one", "other"].map(|name| written(&served, user(OTHER), name, b"older"));
    let gate = Gate::at("publication-queues");
    let ino = std::thread::scope(|scope| {
        let ends = scope.spawn(|| served.0.finish(Ending::Orderly).expect("ended"));
        gate.await_arrival(1);
        gate.hold_no_more();
        // The end is at one of the files, whose lock it holds. The other one is still to come.
        let (sender, receiver) = mpsc::channel();
        for (ino, fh) in files {
            let (served, sender) = (&served, sender.clone());
            scope.spawn(move || {
                served.getattr(ino, Some(fh)).expect("told");
                // Nobody asks for the second.
                let _ = sender.send((ino, fh));
            });
        }
        let (ino, fh) = receiver.recv_timeout(SOON).expect("one is free");
        served.write(fh, 0, b"newer").expect("written");
        served.fsync(fh).expect("stored");
        assert!(receiver.try_recv().is_err(), "the end waits at no file");
        drop(gate);
        ends.join().expect("no panic");
        ino
    });
    drop(served);
    let served = layer.open();
    assert_eq!(served.read_all(ino).expect("readable"), b"newer");
    served.finish();
}
