//! What a draft is, when it becomes a version, and what readers see of it.

mod readers;
mod room;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::process::{self, Place, system, wait_for};

const SOON: Duration = Duration::from_secs(20);

fn mounted(options: &[&str]) -> Place {
    let place = Place::with_vault();
    place.mount(options).succeeded();
    place
}

/// A file with a published content.
fn file(place: &Place, content: &[u8]) -> PathBuf {
    let path = place.point().join("secret");
    std::fs::write(&path, content).expect("written");
    path
}

fn content(path: &Path) -> String {
    String::from_utf8(std::fs::read(path).expect("readable")).expect("UTF-8")
}

/// Opens for writing without truncating.
fn edit(path: &Path) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).open(path).expect("open")
}

/// What keeps the last close from coming, so that only a FLUSH can publish.
fn hold(file: &File) -> File {
    file.try_clone().expect("duplicated")
}

fn python(script: &str, path: &Path) -> String {
    let mut command = Command::new("python3");
    command.arg("-c").arg(script).arg(path).stdin(Stdio::null());
    let output = command.output().expect("it runs");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn status(place: &Place) -> serde_json::Value {
    process::status(&place.point())
}

/// The number of versions in the store; the whole of it must be in order.
fn versions(place: &Place) -> u64 {
    let ran = place.run([
        "check".as_ref(),
        "--json".as_ref(),
        place.vault().as_os_str(),
    ]);
    let report: serde_json::Value = serde_json::from_str(&ran.succeeded().stdout()).expect("JSON");
    report["versions"].as_u64().expect("a number")
}

fn unmounted_and_clean(place: &Place) {
    place
        .run(["umount".as_ref(), place.point().as_os_str()])
        .succeeded();
    versions(place);
}

#[test]
fn a_close_in_another_thread_of_the_opener_publishes() {
    let place = mounted(&[]);
    let path = file(&place, b"old");
    let mut writer = File::create(&path).expect("open");
    let held = hold(&writer);
    let other = std::thread::spawn(move || {
        writer.write_all(b"new").expect("written");
        drop(writer);
    });
    other.join().expect("closed");
    assert_eq!(content(&path), "new");
    drop(held);
    unmounted_and_clean(&place);
}

#[test]
fn a_close_in_a_child_publishes_nothing() {
    let place = mounted(&[]);
    let path = file(&place, b"old");
    let script = "import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_TRUNC)
os.write(fd, b'half')
child = os.fork()
if child == 0:
    os.write(fd, b' and')
    os.close(fd)
    os._exit(0)
os.waitpid(child, 0)
print(open(sys.argv[1]).read())
os.write(fd, b' half')
os.close(fd)
print(open(sys.argv[1]).read())
";
    assert_eq!(python(script, &path), "old\nhalf and half\n");
    unmounted_and_clean(&place);
}

#[test]
fn a_child_that_outlives_the_opener_publishes_with_the_last_close() {
    let place = mounted(&[]);
    let path = file(&place, b"old");
    // The pipe from the test is the child's leave to go on.
    let script = "import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_TRUNC)
if os.fork() == 0:
    os.close(1)
    sys.stdin.read()
    os.write(fd, b'by the child')
    os._exit(0)
os._exit(0)
";
    let mut command = Command::new("python3");
    command.arg("-c").arg(script).arg(&path);
    let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut opener = spawned.expect("it runs");
    let leave = opener.stdin.take().expect("piped");
    assert!(opener.wait().expect("ended").success());
    assert_eq!(content(&path), "old");
    drop(leave);
    wait_for("the child's content", SOON, || content(&path) != "old");
    assert_eq!(content(&path), "by the child");
    unmounted_and_clean(&place);
}

#[test]
fn fsync_publishes_the_middle() {
    let place = mounted(&[]);
    let path = file(&place, b"old");
    let mut writer = File::create(&path).expect("open");
    writer.write_all(b"one").expect("written");
    assert_eq!(content(&path), "old");
    writer.sync_all().expect("published");
    assert_eq!(content(&path), "one");
    writer.write_all(b" two").expect("written");
    assert_eq!(content(&path), "one");
    drop(writer);
    assert_eq!(content(&path), "one two");
    unmounted_and_clean(&place);
}

#[test]
fn a_bare_truncation_is_published_by_the_last_close() {
    let place = mounted(&[]);
    let path = file(&place, b"old");
    let writer = File::create(&path).expect("open");
    let held = hold(&writer);
    drop(writer);
    assert_eq!(content(&path), "old");
    drop(held);
    assert_eq!(content(&path), "");
    unmounted_and_clean(&place);
}

#[test]
fn a_dirty_in_place_draft_outlives_a_replacement_and_wins_whole() {
    let place = mounted(&[]);
    let path = file(&place, b"0123456789");
    let editor = edit(&path);
    editor.write_all_at(b"XX", 0).expect("written");
    std::fs::write(&path, "new").expect("replaced");
    assert_eq!(content(&path), "new");
    drop(editor);
    assert_eq!(content(&path), "XX23456789");
    unmounted_and_clean(&place);
}

#[test]
fn a_clean_in_place_draft_begins_anew_after_a_replacement() {
    let place = mounted(&[]);
    let path = file(&place, b"0123456789");
    let editor = edit(&path);
    editor.write_all_at(b"XX", 0).expect("written");
    editor.sync_all().expect("published");
    std::fs::write(&path, "new").expect("replaced");
    editor.write_all_at(b"Z", 0).expect("written");
    drop(editor);
    assert_eq!(content(&path), "Zew");
    unmounted_and_clean(&place);
}

#[test]
fn writers_in_place_share_one_draft() {
    let place = mounted(&[]);
    let path = file(&place, b"0123456789");
    let (one, other) = (edit(&path), edit(&path));
    one.write_all_at(b"a", 1).expect("written");
    other.write_all_at(b"b", 2).expect("written");
    let mut seen = [0; 10];
    one.read_exact_at(&mut seen, 0).expect("read");
    assert_eq!(&seen, b"0ab3456789");
    assert_eq!(content(&path), "0123456789");
    drop(one);
    assert_eq!(content(&path), "0ab3456789");
    drop(other);
    unmounted_and_clean(&place);
}

#[test]
fn what_is_left_in_place_is_published_although_a_replacement_is_under_way() {
    let place = mounted(&[]);
    let path = file(&place, b"0123456789");
    let mut replacer = File::create(&path).expect("open");
    replacer.write_all(b"new").expect("written");
    // The last to write in place is a child: no FLUSH publishes that, only the last close.
    let script = "import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY)
if os.fork() == 0:
    os.write(fd, b'child')
    os._exit(0)
os.wait()
os._exit(0)
";
    python(script, &path);
    wait_for("the child's content", SOON, || {
        content(&path) == "child56789"
    });
    drop(replacer);
    assert_eq!(content(&path), "new");
    unmounted_and_clean(&place);
}

#[test]
fn truncating_by_path_publishes_at_once_and_by_descriptor_with_the_close() {
    let place = mounted(&[]);
    let path = file(&place, b"0123456789");
    let truncated = nix::unistd::truncate(&path, 5);
    assert_eq!((truncated, content(&path).as_str()), (Ok(()), "01234"));
    let editor = edit(&path);
    editor.set_len(2).expect("truncated");
    assert_eq!(content(&path), "01234");
    assert_eq!(std::fs::metadata(&path).expect("stat").len(), 2);
    drop(editor);
    assert_eq!(content(&path), "01");
    nix::unistd::truncate(&path, 4).expect("extended");
    assert_eq!(content(&path), "01\0\0");
    unmounted_and_clean(&place);
}

#[test]
fn truncations_by_path_wait_for_each_other_and_for_writers() {
    let place = mounted(&[]);
    let path = file(&place, &[b'z'; 64]);
    let threads = (0..4u8).map(|n| {
        let path = path.clone();
        std::thread::spawn(move || {
            for round in 0..100 {
                match n {
                    0 => std::fs::write(&path, [b'a'; 64]).expect("replaced"),
                    n => nix::unistd::truncate(&path, i64::from(n) + round % 3).expect("truncated"),
                }
            }
        })
    });
    for thread in threads.collect::<Vec<_>>() {
        thread.join().expect("no error");
    }
    unmounted_and_clean(&place);
}

#[test]
fn appending_ignores_the_offset_that_the_kernel_believes_in() {
    let place = mounted(&[]);
    let path = file(&place, b"begin:");
    let append = || OpenOptions::new().append(true).open(&path).expect("open");
    let (mut one, mut other) = (append(), append());
    for _ in 0..3 {
        one.write_all(b"1").expect("written");
        one.metadata().expect("stat");
        other.write_all(b"2").expect("written");
    }
    one.write_all_at(b"!", 0).expect("written");
    drop((one, other));
    assert_eq!(content(&path), "begin:121212!");
    unmounted_and_clean(&place);
}

#[test]
fn publications_are_counted() {
    let place = mounted(&[]);
    let counted = || {
        let status = status(&place);
        ["published", "failed_publications"].map(|name| status[name].as_u64().expect("a number"))
    };
    assert_eq!(counted(), [0, 0]);
    let path = file(&place, b"one");
    assert_eq!(counted(), [1, 0]);
    let mut writer = File::create(&path).expect("open");
    writer.write_all(b"two").expect("written");
    writer.sync_all().expect("published");
    assert_eq!(counted(), [2, 0]);
    // Nothing new: nothing to publish.
    writer.sync_all().expect("synced");
    drop(writer);
    content(&path);
    assert_eq!(counted(), [2, 0]);
    unmounted_and_clean(&place);
}

#[test]
fn a_modification_time_set_before_the_close_stays() {
    let place = mounted(&[]);
    let path = file(&place, b"old");
    let script = "import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_TRUNC)
os.write(fd, b'new')
os.utime(fd, ns=(1_000_000_007, 2_000_000_009))
os.close(fd)
";
    python(script, &path);
    let modified = |path: &Path| {
        let stat = std::fs::metadata(path).expect("stat");
        (stat.mtime(), stat.mtime_nsec())
    };
    assert_eq!(modified(&path), (2, 9));
    let copy = place.point().join("copy");
    system("cp", &["-p".as_ref(), path.as_os_str(), copy.as_os_str()]);
    assert_eq!((modified(&copy), content(&copy).as_str()), ((2, 9), "new"));
    // And over a file that is there.
    let other = place.path().join("other");
    std::fs::write(&other, "other").expect("written");
    system("cp", &["-p".as_ref(), other.as_os_str(), copy.as_os_str()]);
    assert_eq!(
        (modified(&copy), content(&copy).as_str()),
        (modified(&other), "other")
    );
    unmounted_and_clean(&place);
}
