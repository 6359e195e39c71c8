//! Reading directories, and what becomes of one that is removed while somebody is in it.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fs;
use std::os::unix::fs::{DirEntryExt, MetadataExt};

use crate::support::process::system;
use crate::support::tree::{Tree, c, errno};

/// A directory stream of the C library.
struct Stream(*mut libc::DIR);

impl Stream {
    fn open(path: &std::path::Path) -> Self {
        // SAFETY: a string that lives until the call returns.
        let stream = unsafe { libc::opendir(c(path).as_ptr()) };
        assert!(!stream.is_null(), "{}", std::io::Error::last_os_error());
        Self(stream)
    }

    /// The next name, and the position after it.
    fn next(&mut self) -> Option<(Vec<u8>, i64)> {
        // SAFETY: the stream is open; the entry is valid until the next call.
        unsafe {
            let entry = libc::readdir(self.0);
            (!entry.is_null()).then(|| {
                let name = CStr::from_ptr((*entry).d_name.as_ptr()).to_bytes().to_vec();
                (name, libc::telldir(self.0))
            })
        }
    }

    fn seek(&mut self, position: i64) {
        // SAFETY: the stream is open.
        unsafe { libc::seekdir(self.0, position) };
    }

    fn rewind(&mut self) {
        // SAFETY: the stream is open.
        unsafe { libc::rewinddir(self.0) };
    }

    fn rest(&mut self) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.next())
            .map(|(name, _)| name)
            .collect()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: the stream is open, and nobody uses it after this.
        unsafe { libc::closedir(self.0) };
    }
}

#[test]
fn positions_stay_valid_while_names_come_and_go() {
    let tree = Tree::new();
    let dir = tree.shared("d", 0o755);
    for n in 0..300 {
        fs::write(dir.join(format!("{n}")), "").expect("write");
    }
    let mut stream = Stream::open(&dir);
    let all: Vec<_> = std::iter::from_fn(|| stream.next()).collect();
    assert_eq!(all.len(), 302);
    let names: Vec<_> = all.iter().map(|(name, _)| name.clone()).collect();
    for at in [0, 1, 2, 3, 77, 150, 299, 301] {
        stream.seek(all[at].1);
        assert_eq!(stream.rest(), names[at + 1..], "from {at}");
    }
    stream.rewind();
    assert_eq!(stream.rest(), names);
    // The entry of a position, and others, go; the rest is found all the same.
    let gone = |n: usize| fs::remove_file(dir.join(String::from_utf8_lossy(&names[n]).as_ref()));
    for n in [100, 101, 102, 200] {
        gone(n).expect("unlink");
    }
    fs::write(dir.join("new"), "").expect("write");
    stream.seek(all[100].1);
    let rest: Vec<_> = stream
        .rest()
        .into_iter()
        .filter(|name| name != b"new")
        .collect();
    let expected: Vec<_> = (103..302)
        .filter(|n| *n != 200)
        .map(|n| names[n].clone())
        .collect();
    assert_eq!(rest, expected);
    stream.rewind();
    assert_eq!(stream.rest().len(), 302 - 4 + 1);
    drop(stream);
    tree.ends_sound();
}

#[test]
fn entries_tell_number_and_kind() {
    let tree = Tree::new();
    fs::create_dir(tree.at("d")).expect("mkdir");
    fs::create_dir(tree.at("d/sub")).expect("mkdir");
    fs::write(tree.at("d/file"), "").expect("write");
    std::os::unix::fs::symlink("x", tree.at("d/link")).expect("symlink");
    tree.bash("mkfifo d/pipe");
    let mut seen = BTreeMap::new();
    for entry in fs::read_dir(tree.at("d")).expect("readdir") {
        let entry = entry.expect("an entry");
        let meta = fs::symlink_metadata(entry.path()).expect("stat");
        assert_eq!(entry.ino(), meta.ino());
        assert_eq!(entry.file_type().expect("known"), meta.file_type());
        seen.insert(entry.file_name(), meta.ino());
    }
    assert_eq!(seen.len(), 4);
    // Numbers stay when the vault is mounted again.
    tree.remount();
    for (name, ino) in seen {
        assert_eq!(
            fs::symlink_metadata(tree.at("d").join(name))
                .expect("stat")
                .ino(),
            ino
        );
    }
    tree.ends_sound();
}

#[test]
fn a_directory_that_is_removed_while_somebody_is_in_it_is_empty_and_dead() {
    let tree = Tree::new();
    tree.bash(
        r#"
        mkdir -p a/b; cd a/b; exec 3< .
        rmdir "$MOUNT/a/b"
        test "$(stat -c %h .)" = 0
        test -z "$(ls -A . 2>$BESIDE/said)"
        ! touch f 2>$BESIDE/said; grep -q 'No such file' $BESIDE/said
        ! mkdir d 2>$BESIDE/said; grep -q 'No such file' $BESIDE/said
        cd "$MOUNT"; test "$(stat -c %h a)" = 2; mkdir a/b; test "$(stat -c %h a)" = 3
        "#,
    );
    tree.ends_sound();
}

#[test]
fn directories_are_removed_only_when_empty() {
    let tree = Tree::new();
    fs::create_dir(tree.at("d")).expect("mkdir");
    fs::write(tree.at("d/.hidden"), "").expect("write");
    assert_eq!(errno(fs::remove_dir(tree.at("d"))), libc::ENOTEMPTY);
    assert_eq!(errno(fs::remove_dir(tree.at("d/."))), libc::EINVAL);
    assert_eq!(errno(fs::remove_dir(tree.at("none"))), libc::ENOENT);
    assert_eq!(errno(fs::create_dir(tree.at("d"))), libc::EEXIST);
    assert_eq!(errno(fs::create_dir(tree.at("d/.hidden"))), libc::EEXIST);
    assert_eq!(errno(fs::remove_dir(tree.root())), libc::EBUSY);
    assert_eq!(errno(fs::remove_dir(tree.at(".secretfs"))), libc::EPERM);
    assert_eq!(
        errno(fs::remove_file(tree.at(".secretfs/status"))),
        libc::EPERM
    );
    assert_eq!(
        errno(fs::rename(tree.at("d"), tree.at(".secretfs"))),
        libc::EPERM
    );
    fs::remove_file(tree.at("d/.hidden")).expect("unlink");
    fs::remove_dir(tree.at("d")).expect("rmdir");
    tree.ends_sound();
}

#[test]
fn the_mount_itself_has_owner_mode_and_times() {
    let tree = Tree::new();
    system("chown", &["4001:4002".as_ref(), tree.root().as_os_str()]);
    system("chmod", &["1750".as_ref(), tree.root().as_os_str()]);
    tree.remount();
    let meta = fs::metadata(tree.root()).expect("stat");
    assert_eq!(
        (meta.uid(), meta.gid(), meta.mode() & 0o7777),
        (4001, 4002, 0o1750)
    );
    assert!(meta.ino() == 1 && meta.nlink() == 2);
    let up = fs::metadata(tree.at("..")).expect("stat");
    assert_ne!(up.dev(), meta.dev());
    tree.ends_sound();
}
