//! Set-id bits: who gets a group from its directory, and when the bits go.

use std::fs;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use crate::support::tree::{ALICE, BOB, STAFF, Tree, as_user, c, sys};

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("stat").mode() & 0o7777
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
}

#[test]
fn a_set_group_id_directory_passes_its_group_on() {
    let tree = Tree::new();
    let dir = tree.shared("d", 0o777);
    chown(&dir, None, Some(STAFF)).expect("chown");
    chmod(&dir, 0o2777);
    as_user(ALICE, &[], || {
        fs::write(dir.join("f"), "").expect("write");
        fs::create_dir(dir.join("d")).expect("mkdir");
        symlink("x", dir.join("l")).expect("symlink");
        // SAFETY: a string that lives until the call returns.
        assert_eq!(unsafe { libc::mkfifo(c(dir.join("p")).as_ptr(), 0o600) }, 0);
        fs::create_dir(dir.join("d/e")).expect("mkdir");
    });
    for name in ["f", "d", "l", "p", "d/e"] {
        let meta = fs::symlink_metadata(dir.join(name)).expect("stat");
        assert_eq!((meta.uid(), meta.gid()), (ALICE, STAFF), "{name}");
        let inherits = matches!(name, "d" | "d/e");
        assert_eq!(meta.mode() & 0o2000 != 0, inherits, "{name}");
    }
    tree.ends_sound();
}

#[test]
fn set_group_id_is_not_set_for_a_group_that_one_is_not_in() {
    let tree = Tree::new();
    let dir = tree.shared("d", 0o777);
    let path = dir.join("f");
    fs::write(&path, "").expect("write");
    chown(&path, Some(ALICE), Some(STAFF)).expect("chown");
    as_user(ALICE, &[], || chmod(&path, 0o2755));
    assert_eq!(mode(&path), 0o755);
    as_user(ALICE, &[STAFF], || chmod(&path, 0o2755));
    assert_eq!(mode(&path), 0o2755);
    tree.ends_sound();
}

/// What changes a content, as a system call on a path.
type Change = fn(&Path);

const CHANGES: [(&str, Change); 7] = [
    ("write", |path| {
        let file = fs::OpenOptions::new().write(true).open(path);
        file.expect("opened").write_all(b"x").expect("write");
    }),
    ("open and truncate", |path| {
        drop(fs::File::create(path).expect("opened"))
    }),
    ("truncate", |path| {
        nix::unistd::truncate(path, 3).expect("truncate")
    }),
    ("ftruncate", |path| {
        let file = fs::OpenOptions::new().write(true).open(path);
        file.expect("opened").set_len(2).expect("ftruncate");
    }),
    ("fallocate", |path| {
        let file = fs::OpenOptions::new()
            .write(true)
            .open(path)
            .expect("opened");
        // SAFETY: no memory is involved.
        let n = unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, 5000) };
        sys(n).expect("fallocate");
    }),
    ("copy_file_range", |path| {
        let source = path.with_extension("source");
        fs::write(&source, "source").expect("write");
        let from = fs::File::open(&source).expect("opened");
        let to = fs::OpenOptions::new()
            .write(true)
            .open(path)
            .expect("opened");
        let null = std::ptr::null_mut();
        // SAFETY: both descriptors are open; no offsets are passed.
        let n =
            unsafe { libc::copy_file_range(from.as_raw_fd(), null, to.as_raw_fd(), null, 6, 0) };
        assert_eq!(sys(n as i64).expect("copy_file_range"), 6);
        fs::remove_file(source).expect("unlink");
    }),
    ("chown", |path| {
        let meta = fs::metadata(path).expect("stat");
        chown(path, Some(meta.uid()), Some(meta.gid())).expect("chown");
    }),
];

/// A file with `mode`, that everybody may write to.
fn file(dir: &Path, name: &str, mode: u32) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, "content").expect("write");
    chown(&path, Some(ALICE), Some(ALICE)).expect("chown");
    chmod(&path, mode);
    path
}

#[test]
fn whoever_changes_a_file_without_privileges_takes_its_set_id_bits_away() {
    let tree = Tree::new();
    let dir = tree.shared("d", 0o777);
    for (call, change) in CHANGES {
        for (before, after) in [(0o4777, 0o777), (0o6777, 0o777), (0o2777, 0o777)] {
            let path = file(&dir, "f", before);
            // chown(2) is the owner's; the rest is anybody's who may write.
            let who = if call == "chown" { ALICE } else { BOB };
            as_user(who, &[], || change(&path));
            assert_eq!(mode(&path), after, "{call} of {before:o}");
            fs::remove_file(&path).expect("unlink");
        }
    }
    tree.ends_sound();
}

#[test]
fn root_keeps_set_id_bits_but_for_chown() {
    let tree = Tree::new();
    let dir = tree.shared("d", 0o777);
    for (call, change) in CHANGES {
        let path = file(&dir, "f", 0o6777);
        change(&path);
        let after = if call == "chown" { 0o777 } else { 0o6777 };
        assert_eq!(mode(&path), after, "{call}");
        fs::remove_file(&path).expect("unlink");
    }
    tree.ends_sound();
}
