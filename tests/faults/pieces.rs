//! A large content is stored in pieces, between which others write. Until it is whole nothing of it is
//! to be seen, and whatever comes in between leaves it whole, or nothing of it.

use std::fs::File;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use crate::support::failing_disk::Disk;
use crate::support::layer::{Layer, Served};
use crate::support::process::{Place, detach, wait_for};
use crate::support::rotating::{json, reencrypt};
use secretfs::fs::{Ending, Errno};
use secretfs::vault::{Request, VaultError};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);
const ROOT: u64 = 1;
/// What is stored at once, and a content of five such pieces.
const PIECE: usize = 1 << 20;
const LARGE: usize = 4 * PIECE + 5;
const CHUNK: usize = 64 << 10;

fn content(word: u8, length: usize) -> Vec<u8> {
    (0..length).map(|at| (at / 7) as u8 ^ word).collect()
}

/// Chunks of contents that are there, and versions.
fn there(report: &Value) -> (u64, u64) {
    let number = |what: &str| report[what].as_u64().expect("a number");
    assert_eq!(number("problem_count"), 0, "{report:#}");
    (number("chunks"), number("versions"))
}

/// Has a daemon die when it has stored so many pieces of a content.
fn dies_after(place: &Place, pieces: u64) {
    let mut command = place.command();
    let fail_at = match pieces {
        1 => "dies-between-steps=return".to_owned(),
        pieces => format!("dies-between-steps={}*off->return", pieces - 1),
    };
    command.env("FAILPOINTS", fail_at);
    command.arg("mount").arg(place.vault()).arg(place.point());
    let mounted = command.output().expect("the program runs");
    assert!(mounted.status.success(), "{mounted:?}");
    let replaced = File::create(place.point().join("secret")).and_then(|mut file| {
        file.write_all(&content(2, LARGE))?;
        file.sync_all()
    });
    assert!(replaced.is_err(), "it did not die after {pieces}");
    wait_for("the daemon's end", SOON, || place.daemons().is_empty());
    detach(&place.point());
}

#[test]
fn a_daemon_that_dies_between_two_pieces_leaves_nothing_of_them() {
    let place = Place::with_vault();
    let old = content(1, 3 * PIECE);
    place.mount(&[]).succeeded();
    let path = place.point().join("secret");
    std::fs::write(&path, &old).expect("written");
    let umount = || {
        let point = place.point();
        place
            .run(["umount".as_ref(), point.as_os_str()])
            .succeeded();
    };
    umount();
    let chunks = (old.len() / CHUNK) as u64;
    let check = || there(&json(&place, "check"));
    assert_eq!(check(), (chunks, 1));
    for pieces in 1..=4 {
        dies_after(&place, pieces);
        // What is there fits together, and is counted.
        let more = pieces * (PIECE / CHUNK) as u64;
        assert_eq!(check(), (chunks + more, 2), "after {pieces}");
        // A mount that only reads needs no more.
        place.mount(&["-o", "ro"]).succeeded();
        assert!(std::fs::read(&path).expect("readable") == old);
        umount();
        place.mount(&[]).succeeded();
        assert_eq!(check(), (chunks, 1), "after {pieces}");
        assert!(std::fs::read(&path).expect("readable") == old);
        umount();
    }
    // The number under which all of that stood is used now.
    place.mount(&[]).succeeded();
    std::fs::write(&path, content(3, LARGE)).expect("written");
    assert!(std::fs::read(&path).expect("readable") == content(3, LARGE));
    umount();
    assert_eq!(check().1, 1);
}

#[test]
fn a_repair_leaves_the_pieces_of_a_killed_daemon_to_the_next_mount() {
    let place = Place::with_vault();
    dies_after(&place, 2);
    let vault = place.vault();
    let repair = ["check".as_ref(), vault.as_os_str(), "--repair".as_ref()];
    place.run(repair).succeeded();
    place.mount(&[]).succeeded();
    // Nothing was moved aside.
    let names = std::fs::read_dir(place.point()).expect("listed").count();
    assert_eq!(names, 1);
    assert_eq!(there(&json(&place, "check")), (0, 0));
    place
        .run(["umount".as_ref(), place.point().as_os_str()])
        .succeeded();
}

/// Fail points are the whole process's: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A publication waits after its first piece, until this is dropped.
struct Held;

impl Held {
    fn after_the_first_piece(layer: &Layer, begin: impl FnOnce()) -> Self {
        let before = layer.check().chunks;
        fail::cfg("writer-between-steps", "pause").expect("a point");
        let held = Self;
        begin();
        wait_for("the first piece", SOON, || layer.check().chunks > before);
        held
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        fail::remove("writer-between-steps");
    }
}

/// The same of one that is waited for.
struct Between(Held, mpsc::Receiver<Result<(), Errno>>);

impl Between {
    fn pieces_of(layer: &Layer, served: &Served, fh: u64) -> Self {
        let (sender, receiver) = mpsc::channel();
        let done = Box::new(move |outcome| sender.send(outcome).expect("awaited"));
        let held = Held::after_the_first_piece(layer, || served.0.fsync(fh, done));
        Self(held, receiver)
    }

    fn go_on(self) -> Result<(), Errno> {
        drop(self.0);
        self.1.recv_timeout(SOON).expect("answered")
    }
}

/// A file with something published, and a replacement of it that is not.
fn replaced(served: &Served, name: &[u8], old: &[u8], new: &[u8]) -> (u64, u64) {
    let (ino, fh) = served.create(ROOT, name, 0o600);
    served.write(fh, 0, old).expect("written");
    served.fsync(fh).expect("stored");
    served.release(fh);
    let fh = served
        .open(ino, libc::O_WRONLY | libc::O_TRUNC)
        .expect("open");
    for (at, piece) in new.chunks(PIECE).enumerate() {
        let written = served.write(fh, (at * PIECE) as u64, piece);
        assert_eq!(written.expect("written") as usize, piece.len());
    }
    (ino, fh)
}

fn is_clean(layer: &Layer) {
    let report = layer.check();
    assert_eq!(report.problem_count, 0, "{:#?}", report.problems);
}

#[test]
fn until_the_last_piece_is_stored_everybody_reads_what_was_there() {
    let _alone = alone();
    let layer = Layer::new();
    let served = layer.open();
    let (old, new) = (content(1, 2 * PIECE), content(2, LARGE));
    let (ino, fh) = replaced(&served, b"secret", &old, &new);
    let reader = served.open(ino, libc::O_RDONLY).expect("open");
    assert!(served.read(reader, 0, 100).expect("readable") == old[..100]);
    let beside = layer.open_beside();
    let between = Between::pieces_of(&layer, &served, fh);
    let tail = old.len() - 100;
    assert!(served.read(reader, tail as u64, 100).expect("readable") == old[tail..]);
    assert!(beside.read_all(ino).expect("readable") == old);
    is_clean(&layer);
    between.go_on().expect("stored");
    // Who had begun to read the one before reads on in it.
    assert!(served.read(reader, 5, 100).expect("readable") == old[5..105]);
    served.release(reader);
    assert!(served.read_all(ino).expect("readable") == new);
    served.release(fh);
    beside.finish();
    served.finish();
    is_clean(&layer);
    assert_eq!(layer.check().versions, 1);
}

/// Who counts the vault meanwhile has seen a version that never came to be.
#[test]
fn who_reads_beside_takes_what_follows_a_content_that_was_given_up_for_no_tampering() {
    let _alone = alone();
    let layer = Layer::new();
    let served = layer.open();
    let (old, new) = (content(1, 2 * PIECE), content(2, LARGE));
    let (ino, fh) = replaced(&served, b"secret", &old, &new);
    let between = Between::pieces_of(&layer, &served, fh);
    let beside = layer.open_beside();
    fail::cfg("publication-fails", "return").expect("a point");
    assert!(between.go_on().is_err());
    fail::remove("publication-fails");
    // One of these has the number of the one that was given up.
    for round in 0..20 {
        let small = served
            .open(ino, libc::O_WRONLY | libc::O_TRUNC)
            .expect("open");
        served.write(small, 0, &[round]).expect("written");
        served.fsync(small).expect("stored");
        served.release(small);
        assert_eq!(beside.read_all(ino).expect("readable"), [round]);
    }
    served.fsync(fh).expect("stored");
    served.release(fh);
    assert!(beside.read_all(ino).expect("readable") == new);
    assert_eq!(beside.0.vault().findings().count, 0);
    beside.finish();
    served.finish();
    is_clean(&layer);
}

#[test]
fn a_file_that_loses_its_name_between_two_pieces_is_stored_and_goes_with_its_last_close() {
    let _alone = alone();
    let layer = Layer::new();
    let served = layer.open();
    let (old, new) = (content(1, 2 * PIECE), content(2, LARGE));
    let (ino, fh) = replaced(&served, b"secret", &old, &new);
    let between = Between::pieces_of(&layer, &served, fh);
    served.unlink(ROOT, b"secret").expect("removed");
    is_clean(&layer);
    between.go_on().expect("stored");
    assert!(served.read_all(ino).expect("readable") == new);
    served.release(fh);
    served.finish();
    is_clean(&layer);
    assert_eq!(layer.check().chunks, 0);
}

#[test]
fn a_content_is_whole_whose_keys_are_replaced_between_two_pieces() {
    let _alone = alone();
    let layer = Layer::new();
    let served = layer.open();
    let (old, new) = (content(1, 2 * PIECE), content(2, LARGE));
    let (ino, fh) = replaced(&served, b"secret", &old, &new);
    let between = Between::pieces_of(&layer, &served, fh);
    reencrypt(served.0.vault(), u32::MAX);
    wait_for("the new keys", SOON, || !served.0.vault().is_rotating());
    is_clean(&layer);
    between.go_on().expect("stored");
    for point in ["names-at-a-time", "keys-at-a-time", "offer"] {
        fail::remove(point);
    }
    assert!(served.read_all(ino).expect("readable") == new);
    served.release(fh);
    served.finish();
    is_clean(&layer);
    assert_eq!(layer.check().versions, 1);
}

#[test]
fn a_content_is_whole_whose_master_key_is_replaced_between_two_pieces() {
    let _alone = alone();
    let layer = Layer::new();
    let served = layer.open();
    let (old, new) = (content(1, 2 * PIECE), content(2, LARGE));
    let (ino, fh) = replaced(&served, b"secret", &old, &new);
    let between = Between::pieces_of(&layer, &served, fh);
    let vault = served.0.vault();
    let before = vault.summary().active_generation;
    vault.begin(&Request::Rotate).expect("begun");
    match vault.drive(&|| ControlFlow::Continue(())) {
        Ok(_) | Err(VaultError::Busy(_)) => {}
        Err(error) => panic!("not driven: {error}"),
    }
    wait_for("the old master key's end", SOON, || !vault.is_rotating());
    assert!(vault.summary().active_generation > before);
    is_clean(&layer);
    between.go_on().expect("stored");
    served.release(fh);
    served.finish();
    // It opens by what is stored, not only by what was remembered.
    let served = layer.open();
    assert!(served.read_all(ino).expect("readable") == new);
    served.finish();
    is_clean(&layer);
    assert_eq!(layer.check().versions, 1);
}

#[test]
fn a_disk_that_is_full_before_the_last_piece_gets_all_of_them_back() {
    let _alone = alone();
    let disk = Disk::with_vault(64);
    let layer = Layer::below(&disk.place.vault());
    let served = layer.open();
    let (old, new) = (content(1, 2 * PIECE), content(2, LARGE));
    let (ino, fh) = replaced(&served, b"secret", &old, &new);
    let before = layer.check().chunks;
    let between = Between::pieces_of(&layer, &served, fh);
    disk.fill(300);
    assert_eq!(between.go_on(), Err(Errno(libc::ENOSPC)));
    assert!(served.read_all(ino).expect("readable") == old);
    wait_for("the pieces' end", SOON, || layer.check().chunks == before);
    is_clean(&layer);
    // There is room for others.
    let (_, small) = served.create(ROOT, b"small", 0o600);
    served.write(small, 0, b"small").expect("written");
    served.fsync(small).expect("stored");
    disk.free();
    served.fsync(fh).expect("stored");
    assert!(served.read_all(ino).expect("readable") == new);
    served.release(small);
    served.release(fh);
    served.finish();
    is_clean(&layer);
}

#[test]
fn what_nobody_waits_for_and_does_not_fit_leaves_no_pieces_either() {
    let _alone = alone();
    let disk = Disk::with_vault(64);
    let layer = Layer::below(&disk.place.vault());
    let served = layer.open();
    let (old, new) = (content(1, 2 * PIECE), content(2, LARGE));
    let (ino, fh) = replaced(&served, b"secret", &old, &new);
    let before = layer.check().chunks;
    let held = Held::after_the_first_piece(&layer, || served.release(fh));
    disk.fill(300);
    drop(held);
    // It is tried again a few times.
    wait_for("the pieces' end", SOON, || layer.check().chunks == before);
    assert!(served.read_all(ino).expect("readable") == old);
    is_clean(&layer);
    disk.free();
    served.finish();
    is_clean(&layer);
}

/// A log that is kept.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("unharmed").write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn no_pieces_are_said_to_be_left_of_a_content_that_comes_after_the_end() {
    let _alone = alone();
    let layer = Layer::new();
    let served = layer.open();
    let (_, fh) = replaced(&served, b"secret", &content(1, 9), &content(2, LARGE));
    served.0.finish(Ending::Aborted).expect("closed");
    let log = Log::default();
    let kept = log.clone();
    let logging = tracing_subscriber::fmt().with_writer(move || kept.clone());
    tracing::subscriber::with_default(logging.finish(), || {
        assert_eq!(served.fsync(fh), Err(Errno(libc::EIO)));
    });
    let logged = log.0.lock().expect("unharmed");
    let logged = String::from_utf8_lossy(&logged);
    assert!(logged.contains("the mount is ending"), "{logged}");
    assert!(!logged.contains("left-overs"), "{logged}");
}
