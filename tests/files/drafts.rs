//! What a draft is, when it becomes a version, and what readers see of it.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::process::{self, Place, system, wait_for};
use crate::support::tree::closed;

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
fn stat_shows_what_is_published_to_all_but_who_writes() {
    let place = mounted(&[]);
    let path = file(&place, b"0123456789");
    // Of another process.
    let size = || {
        let stat = Command::new("stat").args(["-c", "%s"]).arg(&path).output();
        let said = String::from_utf8(stat.expect("it runs").stdout).expect("UTF-8");
        said.trim().parse::<u64>().expect("a number")
    };
    let mut replacer = File::create(&path).expect("open");
    replacer.write_all(b"new").expect("written");
    assert_eq!((size(), replacer.metadata().expect("stat").len()), (10, 3));
    drop(replacer);
    assert_eq!(size(), 3);
    let editor = edit(&path);
    editor.write_all_at(b"end", 20).expect("written");
    assert_eq!((size(), editor.metadata().expect("stat").len()), (3, 23));
    drop(editor);
    assert_eq!(size(), 23);
    unmounted_and_clean(&place);
}

#[test]
fn a_reader_keeps_the_version_of_its_first_read_and_moves_on_at_either_end() {
    let place = mounted(&[]);
    let path = file(&place, b"0123456789");
    let unread = File::open(&path).expect("open");
    let mut reader = File::open(&path).expect("open");
    let mut next = |count: usize| {
        let mut bytes = vec![0; count];
        let count = reader.read(&mut bytes).expect("read");
        bytes.truncate(count);
        (
            String::from_utf8(bytes).expect("UTF-8"),
            reader.stream_position().expect("a position"),
        )
    };
    assert_eq!(next(4).0, "0123");
    std::fs::write(&path, "abcdefghijKLM").expect("replaced");
    assert_eq!(next(4).0, "4567");
    assert_eq!(next(4).0, "89");
    // The end first, for who reads the whole; what follows, for who comes back for more.
    assert_eq!(next(4), (String::new(), 10));
    wait_for("what follows", SOON, || {
        std::thread::sleep(Duration::from_millis(300));
        next(4) == ("KLM".into(), 13)
    });
    // Who has not read yet may have asked for the length: that is of what was there when it was opened.
    let mut bytes = [0; 2];
    unread.read_exact_at(&mut bytes, 2).expect("read");
    assert_eq!(&bytes, b"23");
    std::fs::write(&path, "9876543210").expect("replaced");
    unread.read_exact_at(&mut bytes, 4).expect("read");
    assert_eq!(&bytes, b"45");
    // It began elsewhere: the beginning belongs to the rest. After that it begins anew.
    unread.read_exact_at(&mut bytes, 0).expect("read");
    assert_eq!(&bytes, b"01");
    unread.read_exact_at(&mut bytes, 0).expect("read");
    assert_eq!(&bytes, b"98");
    drop((reader, unread));
    unmounted_and_clean(&place);
}

#[test]
fn a_reader_follows_edits_in_place() {
    let place = mounted(&[]);
    let path = file(&place, b"0123456789");
    let mut reader = File::open(&path).expect("open");
    let mut bytes = [0; 4];
    reader.read_exact(&mut bytes).expect("read");
    let editor = edit(&path);
    editor.write_all_at(b"X", 5).expect("written");
    drop(editor);
    reader.read_exact(&mut bytes).expect("read");
    assert_eq!(&bytes, b"4X67");
    // A replacement, and edits to what it brought: the reader is not of that line.
    std::fs::write(&path, "abcdefghij").expect("replaced");
    let editor = edit(&path);
    editor.write_all_at(b"Y", 9).expect("written");
    drop(editor);
    reader.read_exact(&mut bytes[..2]).expect("read");
    assert_eq!(&bytes[..2], b"89");
    drop(reader);
    unmounted_and_clean(&place);
}

/// What was being edited when the file was replaced is no edit of what replaced it.
#[test]
fn who_reads_a_replacement_is_not_led_into_an_edit_of_what_it_replaced() {
    const SIZE: usize = 300 << 10;
    let place = mounted(&[]);
    let path = file(&place, &vec![b'a'; SIZE]);
    let editor = edit(&path);
    editor.write_all_at(b"edited", 0).expect("written");
    std::fs::write(&path, vec![b'c'; SIZE]).expect("replaced");
    let mut reader = File::open(&path).expect("open");
    let mut bytes = vec![0; 1000];
    reader.read_exact(&mut bytes).expect("read");
    closed(editor).expect("published");
    reader.read_to_end(&mut bytes).expect("read");
    assert!(bytes[..SIZE] == vec![b'c'; SIZE]);
    drop(reader);
    let now = std::fs::read(&path).expect("readable");
    assert!(now.starts_with(b"editedaaa") && now.len() == SIZE);
    unmounted_and_clean(&place);
}

#[test]
fn an_old_version_that_is_being_read_stays_until_it_is_let_go() {
    const SIZE: usize = 300 << 10;
    let place = mounted(&[]);
    let path = file(&place, &vec![b'a'; SIZE]);
    assert_eq!(versions(&place), 1);
    let mut reader = File::open(&path).expect("open");
    let mut bytes = vec![0; 1000];
    reader.read_exact(&mut bytes).expect("read");
    for letter in *b"bcdef" {
        std::fs::write(&path, vec![letter; SIZE]).expect("replaced");
    }
    assert_eq!(versions(&place), 2);
    reader.read_to_end(&mut bytes).expect("read");
    // The read at the end has moved on; what was read before is of one piece.
    assert!(bytes[..SIZE] == vec![b'a'; SIZE]);
    drop(reader);
    wait_for("the old version to go", SOON, || versions(&place) == 1);
    // So does that of a file without a name.
    let reader = File::open(&path).expect("open");
    let mut byte = [0];
    reader.read_exact_at(&mut byte, 0).expect("read");
    std::fs::remove_file(&path).expect("removed");
    assert_eq!(versions(&place), 1);
    reader
        .read_exact_at(&mut byte, SIZE as u64 - 1)
        .expect("read");
    assert_eq!(&byte, b"f");
    drop(reader);
    wait_for("the version to go", SOON, || versions(&place) == 0);
    unmounted_and_clean(&place);
}

#[test]
fn a_file_is_gone_from_the_store_when_its_last_name_and_its_last_handle_are() {
    let place = mounted(&[]);
    for name in ["one", "other", "third"] {
        std::fs::write(place.point().join(name), name).expect("written");
    }
    assert_eq!(versions(&place), 3);
    let rename = |from: &str, to: &str| {
        std::fs::rename(place.point().join(from), place.point().join(to)).expect("renamed");
    };
    rename("one", "other");
    wait_for("the replaced file to go", SOON, || versions(&place) == 2);
    std::fs::remove_file(place.point().join("third")).expect("removed");
    wait_for("the removed file to go", SOON, || versions(&place) == 1);
    unmounted_and_clean(&place);
}

#[test]
fn snapshots_make_room_for_drafts_and_a_draft_too_many_is_refused() {
    let place = mounted(&["-o", "max-memory=1048576"]);
    let readers: Vec<_> = (0..12u8)
        .map(|n| {
            let path = place.point().join(format!("secret-{n}"));
            std::fs::write(&path, vec![b'a' + n; 80 << 10]).expect("written");
            let reader = File::open(path).expect("open");
            let mut bytes = [0];
            reader.read_exact_at(&mut bytes, 0).expect("read");
            reader
        })
        .collect();
    let taken = status(&place)["memory"]["drafts_and_snapshots"].as_u64();
    assert!(taken.is_some_and(|bytes| bytes > 900 << 10), "{taken:?}");
    let path = file(&place, &vec![b'x'; 700 << 10]);
    for (n, reader) in (0..).zip(&readers) {
        let mut bytes = vec![0; 1000];
        reader.read_exact_at(&mut bytes, 70 << 10).expect("read");
        assert_eq!(bytes, vec![b'a' + n; 1000]);
    }
    // Nothing of what does not fit is acknowledged.
    let mut writer = File::create(&path).expect("open");
    let refused = writer
        .write_all(&vec![b'y'; 2 << 20])
        .expect_err("too much");
    assert_eq!(refused.raw_os_error(), Some(libc::ENOSPC));
    drop(writer);
    let editor = edit(&place.point().join("secret-0"));
    let refused = editor.set_len(2 << 20).expect_err("too much");
    assert_eq!(refused.raw_os_error(), Some(libc::ENOSPC));
    drop(editor);
    assert_eq!(content(&place.point().join("secret-0")).len(), 80 << 10);
    drop(readers);
    wait_for("memory to be given back", SOON, || {
        status(&place)["memory"]["drafts_and_snapshots"] == 0
    });
    unmounted_and_clean(&place);
}

#[test]
fn writers_and_readers_that_run_out_of_memory_do_not_stop_each_other() {
    let place = mounted(&["-o", "max-memory=1M"]);
    let threads = (0..6u8).map(|n| {
        let path = place.point().join(format!("secret-{}", n % 3));
        std::thread::spawn(move || {
            for _ in 0..20 {
                let options = OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .open(&path);
                let file = options.expect("open");
                // Whether there is room is another matter.
                let _ = file.write_all_at(&[b'a' + n; 300_000], 0);
                drop(file);
                let _ = std::fs::read(&path);
            }
        })
    });
    for thread in threads.collect::<Vec<_>>() {
        thread.join().expect("no panic");
    }
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

/// A vault on a small file system of its own.
struct SmallVault {
    place: Place,
}

impl SmallVault {
    fn new(size: &str) -> Self {
        let place = Place::new();
        std::fs::create_dir(place.vault()).expect("made");
        let options = format!("size={size},mode=0700");
        let vault = place.vault();
        system(
            "mount",
            &["-t", "tmpfs", "-o", &options, "small"]
                .map(AsRef::<std::ffi::OsStr>::as_ref)
                .into_iter()
                .chain([vault.as_os_str()])
                .collect::<Vec<_>>(),
        );
        let small = Self { place };
        let vault = small.place.vault();
        small
            .place
            .run(["init".as_ref(), vault.as_os_str()])
            .succeeded();
        let log = format!("log-file={}", small.place.path().join("log").display());
        small.place.mount(&["-o", &log]).succeeded();
        small
    }

    /// Takes all the room there is.
    fn fill(&self) -> PathBuf {
        let path = self.place.vault().join("ballast");
        let mut ballast = File::create(&path).expect("made");
        for size in [64 << 10, 4096, 512, 1] {
            while ballast.write_all(&vec![0; size]).is_ok() {}
        }
        // Room to begin, or a file could not even be opened for replacing; not for what is written.
        let length = ballast.metadata().expect("there").len();
        ballast.set_len(length - (300 << 10)).expect("cut");
        ballast.sync_all().expect("synced");
        path
    }
}

impl Drop for SmallVault {
    fn drop(&mut self) {
        for point in [self.place.point(), self.place.vault()] {
            let _ = Command::new("umount")
                .arg("-l")
                .arg(point)
                .stderr(Stdio::null())
                .status();
        }
    }
}

#[test]
fn a_full_disk_is_told_to_who_closes_and_nothing_is_lost_or_damaged() {
    let small = SmallVault::new("24m");
    let place = &small.place;
    let path = file(place, &vec![b'a'; 100 << 10]);
    let writers = [(); 2].map(|()| File::create(&path).expect("open"));
    let ballast = small.fill();
    let big = vec![b'b'; 1 << 20];
    for mut writer in writers {
        writer.write_all(&big).expect("in memory");
        let refused = writer.sync_all().expect_err("no room");
        assert_eq!(refused.raw_os_error(), Some(libc::ENOSPC));
        let refused = closed(writer).expect_err("no room");
        assert_eq!(refused.raw_os_error(), Some(libc::ENOSPC));
        assert!(content(&path) == "a".repeat(100 << 10));
    }
    wait_for("what nobody waits for to be given up", SOON, || {
        status(place)["failed_publications"].as_u64() >= Some(2)
    });
    std::fs::remove_file(ballast).expect("removed");
    std::fs::write(&path, &big).expect("there is room again");
    assert!(content(&path).len() == big.len());
    unmounted_and_clean(place);
    place.mount(&[]).succeeded();
    assert!(content(&path).len() == big.len());
}

#[test]
fn what_is_appended_while_the_disk_is_full_is_stored_once_there_is_room() {
    let small = SmallVault::new("24m");
    let place = &small.place;
    let path = file(place, b"old");
    let mut options = OpenOptions::new();
    let mut log = options.append(true).open(&path).expect("open");
    let ballast = small.fill();
    let more = "more".repeat(1 << 18);
    log.write_all(more.as_bytes()).expect("in memory");
    let log_file = |place: &Place| std::fs::read_to_string(place.path().join("log"));
    wait_for("an attempt", SOON, || {
        log_file(place).is_ok_and(|log| log.contains("what was appended to node"))
    });
    assert_eq!(content(&path), "old");
    std::fs::remove_file(ballast).expect("removed");
    wait_for("what was appended", SOON, || content(&path).len() > 3);
    assert_eq!(content(&path), format!("old{more}"));
    assert_eq!(status(place)["failed_publications"], 0);
    drop(log);
    unmounted_and_clean(place);
}

#[test]
fn what_is_tried_again_never_replaces_what_is_newer() {
    let small = SmallVault::new("24m");
    let place = &small.place;
    let path = file(place, b"old");
    let ballast = small.fill();
    // Only the last close publishes what a child wrote.
    let script = "import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_TRUNC)
if os.fork() == 0:
    os.write(fd, b'b' * (1 << 20))
    os._exit(0)
os.wait()
os._exit(0)
";
    let keeper = edit(&path);
    python(script, &path);
    std::fs::remove_file(ballast).expect("removed");
    keeper.write_all_at(b"new", 0).expect("written");
    drop(keeper);
    let seen = content(&path);
    assert!(
        seen == "new" || seen.ends_with("bbb"),
        "{} bytes",
        seen.len()
    );
    std::fs::write(&path, "newest").expect("written");
    for _ in 0..20 {
        assert_eq!(content(&path), "newest");
        std::thread::sleep(Duration::from_millis(100));
    }
    unmounted_and_clean(place);
}
