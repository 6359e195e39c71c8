//! One vault mounted for writing and several times for reading, each in a process and a mount
//! namespace of its own.

mod refused;
mod removed;

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::support::process::{Place, Ran, Server, apart, kill, root_of, wait_for};

const READERS: usize = 4;
/// The default ttl is a second; the rest is for a machine that has other things to do.
const SEEN: Duration = Duration::from_secs(15);

/// A writer and four readers.
struct Five {
    place: Place,
    writer: Option<Server>,
    readers: Vec<Server>,
}

impl Five {
    fn start() -> Self {
        let place = Place::with_vault();
        let writer = apart(&place, "w", "rw");
        let readers = (0..READERS)
            .map(|at| apart(&place, &format!("r{at}"), "ro"))
            .collect();
        Self {
            place,
            writer: Some(writer),
            readers,
        }
    }

    fn written(&self) -> PathBuf {
        root_of(&self.place, self.writer.as_ref().expect("a writer"), "w")
    }

    fn read(&self, at: usize) -> PathBuf {
        root_of(&self.place, &self.readers[at], &format!("r{at}"))
    }

    fn reads(&self) -> Vec<PathBuf> {
        (0..self.readers.len()).map(|at| self.read(at)).collect()
    }

    fn check(&self) -> Ran {
        self.place
            .run(["check".as_ref(), self.place.vault().as_os_str()])
    }
}

fn write(path: &Path, content: &[u8]) {
    fs::write(path, content).expect("written");
}

fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(path)
        .expect("listed")
        .map(|e| {
            e.expect("an entry")
                .file_name()
                .into_string()
                .expect("UTF-8")
        })
        .collect();
    names.sort();
    names
}

#[test]
fn what_is_published_is_seen_by_all_readers_soon() {
    let five = Five::start();
    let written = five.written();
    fs::create_dir(written.join("d")).expect("made");
    write(&written.join("d/a"), b"first");
    for read in five.reads() {
        wait_for("the new file", SEEN, || {
            fs::read(read.join("d/a")).is_ok_and(|text| text == b"first")
        });
        // Listed, so that a later listing could come from a cache.
        assert_eq!(names(&read.join("d")), ["a"]);
        assert!(!read.join("d/b").exists());
    }
    // Replaced in place, by rename, renamed away, with other attributes, and new.
    write(&written.join("d/a"), b"second, longer");
    write(&written.join("d/b"), b"b");
    fs::create_dir(written.join("d/sub")).expect("made");
    std::os::unix::fs::symlink("a", written.join("d/link")).expect("linked");
    for read in five.reads() {
        let all = |read: &Path| {
            fs::read(read.join("d/a")).is_ok_and(|text| text == b"second, longer")
                && fs::metadata(read.join("d/a")).is_ok_and(|meta| meta.len() == 14)
                && fs::read(read.join("d/b")).is_ok_and(|text| text == b"b")
                && fs::read_link(read.join("d/link")).is_ok_and(|to| to == Path::new("a"))
                && names(&read.join("d")) == ["a", "b", "link", "sub"]
        };
        wait_for("the changes", SEEN, || all(&read));
    }
    write(&written.join("new"), b"third");
    fs::rename(written.join("new"), written.join("d/a")).expect("renamed");
    fs::rename(written.join("d/b"), written.join("d/c")).expect("renamed");
    fs::remove_file(written.join("d/link")).expect("removed");
    fs::remove_dir(written.join("d/sub")).expect("removed");
    fs::set_permissions(written.join("d/c"), fs::Permissions::from_mode(0o600)).expect("set");
    for read in five.reads() {
        let all = |read: &Path| {
            fs::read(read.join("d/a")).is_ok_and(|text| text == b"third")
                && fs::metadata(read.join("d/c")).is_ok_and(|meta| meta.mode_bits() == 0o600)
                && !read.join("d/b").exists()
                && !read.join("d/sub").exists()
                && names(&read.join("d")) == ["a", "c"]
        };
        wait_for("the changes", SEEN, || all(&read));
    }
    five.check().succeeded();
}

trait ModeBits {
    fn mode_bits(&self) -> u32;
}

impl ModeBits for fs::Metadata {
    fn mode_bits(&self) -> u32 {
        self.permissions().mode() & 0o7777
    }
}

/// Tells the other threads that it is over, also when this one panics.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Content `number`: its length and every byte of it follow from the number in front.
fn content(number: u64) -> Vec<u8> {
    let length = 8 + (number * 7919 % 200_000) as usize;
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.resize(length, number as u8);
    bytes
}

#[track_caller]
fn must_be_whole(bytes: &[u8], what: &str) -> u64 {
    let number = u64::from_le_bytes(bytes[..8].try_into().expect("not even a number"));
    assert!(
        bytes == content(number),
        "{what}: {} bytes that are no content, from {number}",
        bytes.len()
    );
    number
}

#[test]
fn nobody_sees_a_mixture_while_files_are_replaced_renamed_and_removed() {
    let five = Five::start();
    let written = five.written();
    write(&written.join("replaced"), &content(0));
    write(&written.join("renamed"), &content(0));
    for read in five.reads() {
        wait_for("the files", SEEN, || read.join("renamed").exists());
    }
    let (done, seen) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let _done = Done(&done);
        for read in five.reads() {
            let (done, seen) = (&done, &seen);
            scope.spawn(move || {
                let mut last = 0;
                while !done.load(Ordering::Relaxed) {
                    last = last.max(must_be_whole(
                        &fs::read(read.join("replaced")).expect("always there"),
                        "replaced",
                    ));
                    must_be_whole(
                        &fs::read(read.join("renamed")).expect("always there"),
                        "renamed",
                    );
                    // In small pieces: what was opened is what is read on.
                    let mut file = File::open(read.join("replaced")).expect("always there");
                    let mut bytes = Vec::new();
                    let mut piece = [0; 4099];
                    while let Ok(n @ 1..) = file.read(&mut piece) {
                        bytes.extend(&piece[..n]);
                    }
                    must_be_whole(&bytes, "replaced, in pieces");
                    // Comes and goes, but is never half there.
                    if let Ok(bytes) = fs::read(read.join("fleeting")) {
                        must_be_whole(&bytes, "fleeting");
                    }
                }
                seen.fetch_max(last, Ordering::Relaxed);
            });
        }
        let end = Instant::now() + Duration::from_secs(10);
        let mut number = 0;
        // On a busy disk a round takes long.
        while Instant::now() < end || number <= 3 {
            number += 1;
            write(&written.join("replaced"), &content(number));
            write(&written.join("new"), &content(number));
            fs::rename(written.join("new"), written.join("renamed")).expect("renamed");
            write(&written.join("draft"), &content(number));
            fs::rename(written.join("draft"), written.join("fleeting")).expect("renamed");
            if number % 3 == 0 {
                fs::remove_file(written.join("fleeting")).expect("removed");
            }
        }
        std::thread::sleep(Duration::from_secs(2));
        done.store(true, Ordering::Relaxed);
    });
    assert!(seen.load(Ordering::Relaxed) > 0, "nobody saw anything new");
    five.check().succeeded();
}

#[test]
fn killing_any_of_them_disturbs_no_other() {
    let mut five = Five::start();
    let written = five.written();
    write(&written.join("a"), b"one");
    for read in five.reads() {
        wait_for("the file", SEEN, || read.join("a").exists());
    }
    // A reader, with a file open, under way.
    let held = File::open(five.read(3).join("a")).expect("opened");
    let gone = five.readers.pop().expect("a reader");
    kill(gone.pid(), libc::SIGKILL);
    gone.ended(SEEN);
    drop(held);
    write(&written.join("a"), b"two");
    for read in five.reads() {
        wait_for("the change", SEEN, || {
            fs::read(read.join("a")).is_ok_and(|text| text == b"two")
        });
    }
    five.check().succeeded();

    // The writer.
    write(&written.join("b"), b"acknowledged");
    let gone = five.writer.take().expect("a writer");
    kill(gone.pid(), libc::SIGKILL);
    gone.ended(SEEN);
    for read in five.reads() {
        assert_eq!(fs::read(read.join("a")).expect("read"), b"two");
        wait_for("what was acknowledged", SEEN, || {
            fs::read(read.join("b")).is_ok_and(|text| text == b"acknowledged")
        });
    }
    five.check().succeeded();

    // Its lock went with it.
    five.writer = Some(apart(&five.place, "w", "rw"));
    let written = five.written();
    assert_eq!(fs::read(written.join("b")).expect("read"), b"acknowledged");
    write(&written.join("a"), b"three");
    for read in five.reads() {
        wait_for("the change", SEEN, || {
            fs::read(read.join("a")).is_ok_and(|text| text == b"three")
        });
    }
    five.check().succeeded();
    // And an orderly end of the writer does not end the readers.
    let writer = five.writer.take().expect("a writer");
    writer.signal(libc::SIGTERM);
    assert_eq!(writer.ended(SEEN).0, Some(0));
    for read in five.reads() {
        assert_eq!(fs::read(read.join("a")).expect("read"), b"three");
    }
}

#[test]
fn a_second_mount_for_writing_is_code_7_and_told_who_has_it_and_what_to_do() {
    let five = Five::start();
    let ran = five.place.mount(&[]).failed(7, "-o ro");
    let said = ran.stderr();
    let pid = five.writer.as_ref().expect("a writer").pid();
    let point = five.place.path().join("w").display().to_string();
    for part in [
        &format!("process {pid}"),
        &point,
        "bind mount",
        "open for writing",
    ] {
        assert!(said.contains(part), "{said:?} does not say {part:?}");
    }
    five.place.mount(&["--accept-rollback"]).failed(7, "-o ro");
    // Looking takes no lock.
    let ran = five
        .place
        .run([
            "status".as_ref(),
            five.place.vault().as_os_str(),
            "--json".as_ref(),
        ])
        .succeeded();
    let status: serde_json::Value = serde_json::from_str(&ran.stdout()).expect("JSON");
    let holder = status["held_for_writing_by"].to_string();
    assert!(holder.contains(&pid.to_string()), "{status}");
    five.check().succeeded();
    five.place.mount(&["-o", "ro"]).succeeded();
}

#[test]
fn check_and_status_are_clean_while_all_are_mounted_and_written() {
    let five = Five::start();
    let written = five.written();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _done = Done(&done);
        scope.spawn(|| {
            let mut number = 0;
            while !done.load(Ordering::Relaxed) {
                number += 1;
                write(&written.join(format!("f{}", number % 7)), &content(number));
                if number % 5 == 0 {
                    let _ = fs::remove_file(written.join(format!("f{}", number % 3)));
                }
            }
        });
        for _ in 0..5 {
            let ran = five.check();
            assert_eq!(ran.stderr(), "");
            ran.succeeded();
            five.place
                .run(["status".as_ref(), five.place.vault().as_os_str()])
                .succeeded();
        }
        done.store(true, Ordering::Relaxed);
    });
}
