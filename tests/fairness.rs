//! Shares of the disk's time: what one user makes the disk do delays others by little, and order is
//! kept where programs can tell.

mod support;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, chown};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use secretfs::fs::{Caller, Errno};
use secretfs::vault::{Kind, NewNode, RenameMode};
use support::failing_disk::Disk;
use support::layer::{Layer, Served, caller_as};
use support::process::wait_for;
use support::tree::as_user;

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
fn alone() -> MutexGuard<'static, ()> {
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
    assert!(!order.has("renamed at version 0"));
    drop(syncs);
    let has_both = |seen: &[String]| {
        ["renamed", "synced"].map(|what| seen.iter().any(|seen| seen.starts_with(what)))
            == [true; 2]
    };
    wait_for("both", SOON, || has_both(&order.seen()));
    let seen = order.seen();
    assert!(
        order.has("renamed at version 1") && order.has("synced at version 1"),
        "{seen:?}"
    );
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
