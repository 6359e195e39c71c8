//! Drafts when memory or the disk runs short.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::{SOON, content, edit, file, mounted, python, status, unmounted_and_clean};
use crate::support::process::{Place, system, wait_for};
use crate::support::tree::closed;

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
