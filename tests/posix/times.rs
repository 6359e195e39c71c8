//! Times: whose change moves which, to the nanosecond, also before 1970.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::time::Duration;

use crate::support::tree::{Tree, c, sys};

type Time = (i64, i64);

/// Times of last access, of the content's and of any change.
fn times(path: &Path) -> (Time, Time, Time) {
    let m = fs::symlink_metadata(path).expect("stat");
    (
        (m.atime(), m.atime_nsec()),
        (m.mtime(), m.mtime_nsec()),
        (m.ctime(), m.ctime_nsec()),
    )
}

fn utimensat(path: &Path, times: [Time; 2], flags: i32) {
    let times = times.map(|(tv_sec, tv_nsec)| libc::timespec { tv_sec, tv_nsec });
    // SAFETY: a string and two times that live until the call returns.
    let n = unsafe { libc::utimensat(libc::AT_FDCWD, c(path).as_ptr(), times.as_ptr(), flags) };
    sys(n).expect("utimensat");
}

/// Long enough for any clock to tell the difference.
fn wait() {
    std::thread::sleep(Duration::from_millis(15));
}

const NOW: Time = (0, libc::UTIME_NOW);
const OMIT: Time = (0, libc::UTIME_OMIT);

#[test]
fn times_are_kept_to_the_nanosecond_on_both_sides_of_1970() {
    let tree = Tree::new();
    let stamps: [Time; 8] = [
        (0, 0),
        (0, 1),
        (1, 999_999_999),
        (-1, 0),
        (-1, 1),
        (-1, 999_999_999),
        (-2_000_000_000, 123_456_789),
        (5_000_000_000, 987_654_321),
    ];
    for (at, mtime) in stamps.into_iter().enumerate() {
        let atime = stamps[(at + 3) % stamps.len()];
        let name = |what: &str| tree.at(&format!("{what}{at}"));
        fs::write(name("f"), "x").expect("write");
        fs::create_dir(name("d")).expect("mkdir");
        symlink("x", name("l")).expect("symlink");
        for what in ["f", "d", "l"] {
            utimensat(&name(what), [atime, mtime], libc::AT_SYMLINK_NOFOLLOW);
            let (a, m, _) = times(&name(what));
            assert_eq!((a, m), (atime, mtime), "{what}");
        }
    }
    tree.remount();
    for (at, mtime) in stamps.into_iter().enumerate() {
        for what in ["f", "d", "l"] {
            assert_eq!(times(&tree.at(&format!("{what}{at}"))).1, mtime, "{what}");
        }
    }
    tree.ends_sound();
}

#[test]
fn now_and_omit_mean_what_they_say_also_for_links() {
    let tree = Tree::new();
    let (file, link) = (tree.at("f"), tree.at("l"));
    fs::write(&file, "x").expect("write");
    symlink("f", &link).expect("symlink");
    let old = [(1, 2), (3, 4)];
    utimensat(&file, old, 0);
    for path in [&file, &link] {
        utimensat(path, old, libc::AT_SYMLINK_NOFOLLOW);
        utimensat(path, [OMIT, (7, 8)], libc::AT_SYMLINK_NOFOLLOW);
        let (a, m, _) = times(path);
        assert_eq!((a, m), ((1, 2), (7, 8)));
        utimensat(path, [NOW, OMIT], libc::AT_SYMLINK_NOFOLLOW);
        let (a, m, _) = times(path);
        assert!(a.0 > 1_000_000 && m == (7, 8), "{a:?} {m:?}");
        let before = times(path);
        wait();
        utimensat(path, [OMIT, OMIT], libc::AT_SYMLINK_NOFOLLOW);
        assert_eq!(times(path), before, "nothing was to change");
    }
    // Through the link it is the file that changes.
    let before = times(&link);
    utimensat(&link, [(9, 9), (9, 9)], 0);
    assert_eq!((times(&file).1, times(&link)), ((9, 9), before));
    tree.ends_sound();
}

#[test]
fn every_change_moves_the_change_time_and_no_other() {
    let tree = Tree::new();
    let path = tree.at("f");
    fs::write(&path, "content").expect("write");
    type Change<'a> = (&'a str, bool, &'a dyn Fn());
    let attr = |value: Option<&[u8]>| {
        // SAFETY: strings and bytes that live until the call returns.
        let n = unsafe {
            match value {
                Some(v) => libc::setxattr(
                    c(&path).as_ptr(),
                    c"user.a".as_ptr(),
                    v.as_ptr().cast(),
                    v.len(),
                    0,
                ),
                None => libc::removexattr(c(&path).as_ptr(), c"user.a".as_ptr()),
            }
        };
        sys(n).expect("xattr");
    };
    let append = || {
        let file = fs::OpenOptions::new().append(true).open(&path);
        file.expect("opened").write_all(b"x").expect("write");
    };
    let changes: [Change; 11] = [
        ("chmod", false, &|| {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o604)).expect("chmod")
        }),
        ("chown", false, &|| {
            chown(&path, Some(7), Some(8)).expect("chown")
        }),
        ("link", false, &|| {
            fs::hard_link(&path, tree.at("g")).expect("link")
        }),
        ("unlink", false, &|| {
            fs::remove_file(tree.at("g")).expect("unlink")
        }),
        ("rename", false, &|| {
            fs::rename(&path, tree.at("g")).expect("rename");
            fs::rename(tree.at("g"), &path).expect("rename");
        }),
        ("utimensat", false, &|| utimensat(&path, [NOW, OMIT], 0)),
        ("setxattr", false, &|| attr(Some(b"v"))),
        ("removexattr", false, &|| attr(None)),
        ("write", true, &append),
        ("truncate", true, &|| {
            nix::unistd::truncate(&path, 2).expect("truncate")
        }),
        ("open and truncate", true, &|| {
            drop(fs::File::create(&path).expect("opened"))
        }),
    ];
    for (call, content, change) in changes {
        let (_, m, ctime) = times(&path);
        wait();
        change();
        let (_, m2, ctime2) = times(&path);
        assert!(ctime2 > ctime, "{call}: {ctime:?} {ctime2:?}");
        assert_eq!(m2 > m, content, "{call}: {m:?} {m2:?}");
    }
    let before = times(&path);
    wait();
    let mut text = String::new();
    fs::File::open(&path)
        .expect("opened")
        .read_to_string(&mut text)
        .expect("read");
    fs::metadata(&path).expect("stat");
    assert_eq!(times(&path), before, "reading changes nothing");
    tree.ends_sound();
}

#[test]
fn a_directory_shows_when_names_in_it_changed() {
    let tree = Tree::new();
    let dir = tree.shared("d", 0o755);
    let other = tree.shared("e", 0o755);
    let path = dir.join("f");
    let changes: [(&str, &dyn Fn()); 8] = [
        ("create", &|| fs::write(&path, "x").expect("write")),
        ("mkdir", &|| fs::create_dir(dir.join("d")).expect("mkdir")),
        ("symlink", &|| symlink("x", dir.join("l")).expect("symlink")),
        ("link", &|| {
            fs::hard_link(&path, dir.join("g")).expect("link")
        }),
        ("rename", &|| {
            fs::rename(dir.join("g"), dir.join("h")).expect("rename")
        }),
        ("rename away", &|| {
            fs::rename(dir.join("h"), other.join("h")).expect("rename")
        }),
        ("unlink", &|| fs::remove_file(&path).expect("unlink")),
        ("rmdir", &|| fs::remove_dir(dir.join("d")).expect("rmdir")),
    ];
    for (call, change) in changes {
        let (before, other_before) = (times(&dir), times(&other));
        wait();
        change();
        let after = times(&dir);
        assert!(after.1 > before.1 && after.2 > before.2, "{call}");
        assert_eq!(after.1, after.2, "{call}");
        assert_eq!(
            times(&other) != other_before,
            call == "rename away",
            "{call}"
        );
    }
    let before = times(&dir);
    wait();
    assert!(fs::create_dir(dir.join("l")).is_err() && fs::remove_file(dir.join("none")).is_err());
    assert_eq!(times(&dir), before, "what fails changes nothing");
    tree.ends_sound();
}

#[test]
fn a_time_that_was_set_outlives_the_close_of_what_was_written_before() {
    let tree = Tree::new();
    let path = tree.at("f");
    let mut file = fs::File::create(&path).expect("opened");
    file.write_all(b"content").expect("write");
    let times = [libc::timespec {
        tv_sec: 1000,
        tv_nsec: 5,
    }; 2];
    // SAFETY: two times that live until the call returns.
    sys(unsafe { libc::futimens(file.as_raw_fd(), times.as_ptr()) }).expect("futimens");
    drop(file);
    assert_eq!(self::times(&path).1, (1000, 5));
    // Writing again moves it again.
    fs::write(&path, "more").expect("write");
    assert!(self::times(&path).1.0 > 1_000_000);
    tree.ends_sound();
}
