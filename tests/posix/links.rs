//! Hard links, symbolic links, and names that are exchanged, replaced and taken away.

use std::fs;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;

use crate::support::layer::Layer;
use crate::support::tree::{Tree, c, errno, sys};

fn rename2(from: &Path, to: &Path, flags: u32) -> i32 {
    // SAFETY: strings that live until the call returns.
    let n = unsafe {
        libc::syscall(
            libc::SYS_renameat2,
            libc::AT_FDCWD,
            c(from).as_ptr(),
            libc::AT_FDCWD,
            c(to).as_ptr(),
            flags,
        )
    };
    errno(sys(n))
}

fn text(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).expect("read")
}

#[test]
fn a_link_is_the_same_file_and_counted_at_once() {
    let tree = Tree::new();
    let (a, b) = (tree.at("a"), tree.at("b"));
    fs::write(&a, "one").expect("write");
    for round in 0..20 {
        assert_eq!(fs::metadata(&a).expect("stat").nlink(), 1, "{round}");
        fs::hard_link(&a, &b).expect("link");
        let (x, y) = (
            fs::metadata(&a).expect("stat"),
            fs::metadata(&b).expect("stat"),
        );
        assert_eq!((x.nlink(), y.nlink(), x.ino()), (2, 2, y.ino()));
        fs::write(&b, format!("{round}")).expect("write");
        assert_eq!(text(&a), format!("{round}"));
        fs::remove_file(&b).expect("unlink");
    }
    fs::hard_link(&a, &b).expect("link");
    let mut held = fs::File::open(&a).expect("opened");
    fs::remove_file(&a).expect("unlink");
    fs::remove_file(&b).expect("unlink");
    assert_eq!(held.metadata().expect("stat").nlink(), 0);
    let mut kept = String::new();
    held.read_to_string(&mut kept).expect("read");
    assert_eq!(kept, "19");
    // A name of a symbolic link, not of what it points at.
    symlink("nowhere", tree.at("s")).expect("symlink");
    fs::hard_link(tree.at("s"), tree.at("t")).expect("link");
    assert_eq!(fs::symlink_metadata(tree.at("t")).expect("stat").nlink(), 2);
    drop(held);
    tree.ends_sound();
}

#[test]
fn links_are_refused_where_they_must_be() {
    let tree = Tree::new();
    let dir = tree.shared("d", 0o755);
    fs::write(tree.at("f"), "").expect("write");
    assert_eq!(errno(fs::hard_link(&dir, tree.at("e"))), libc::EPERM);
    assert_eq!(errno(fs::hard_link(tree.at("f"), &dir)), libc::EEXIST);
    assert_eq!(
        errno(fs::hard_link(tree.at("f"), tree.at("f"))),
        libc::EEXIST
    );
    assert_eq!(
        errno(fs::hard_link(tree.at("none"), tree.at("g"))),
        libc::ENOENT
    );
    assert_eq!(
        errno(fs::hard_link(tree.at("f"), tree.beside("g"))),
        libc::EXDEV
    );
    assert_eq!(
        errno(fs::hard_link(tree.at(".secretfs/status"), tree.at("g"))),
        libc::EPERM
    );
    tree.ends_sound();
}

#[test]
fn symbolic_links_hold_any_target_and_loops_are_found() {
    let tree = Tree::new();
    let long = "x".repeat(libc::PATH_MAX as usize - 1);
    for (name, target) in [("a", "b"), ("b", "a"), ("self", "self"), ("long", &long)] {
        symlink(target, tree.at(name)).expect("symlink");
        assert_eq!(
            fs::read_link(tree.at(name)).expect("readlink"),
            Path::new(target)
        );
        let meta = fs::symlink_metadata(tree.at(name)).expect("stat");
        assert_eq!(meta.len(), target.len() as u64);
    }
    for name in ["a", "self", "self/x"] {
        assert_eq!(errno(fs::metadata(tree.at(name))), libc::ELOOP, "{name}");
    }
    assert_eq!(errno(fs::File::create(tree.at("self"))), libc::ELOOP);
    assert_eq!(errno(fs::read_dir(tree.at("a"))), libc::ELOOP);
    assert_eq!(errno(symlink("", tree.at("empty"))), libc::ENOENT);
    assert_eq!(errno(fs::read_link(tree.root())), libc::EINVAL);
    tree.bash("for i in {1..41}; do ln -s chain$((i - 1)) chain$i; done; echo x > chain0");
    assert_eq!(text(tree.at("chain40")), "x\n");
    assert_eq!(errno(fs::read(tree.at("chain41"))), libc::ELOOP);
    tree.ends_sound();
}

#[test]
fn names_and_paths_that_are_too_long_are_refused() {
    let tree = Tree::new();
    let (fits, long) = ("n".repeat(255), "n".repeat(256));
    fs::write(tree.at(&fits), "x").expect("255 bytes fit");
    assert_eq!(errno(fs::write(tree.at(&long), "x")), libc::ENAMETOOLONG);
    assert_eq!(errno(fs::create_dir(tree.at(&long))), libc::ENAMETOOLONG);
    assert_eq!(errno(symlink("x", tree.at(&long))), libc::ENAMETOOLONG);
    assert_eq!(
        errno(fs::rename(tree.at(&fits), tree.at(&long))),
        libc::ENAMETOOLONG
    );
    assert_eq!(
        errno(fs::hard_link(tree.at(&fits), tree.at(&long))),
        libc::ENAMETOOLONG
    );
    assert_eq!(errno(fs::metadata(tree.at(&long))), libc::ENAMETOOLONG);
    assert_eq!(errno(fs::remove_file(tree.at(&long))), libc::ENAMETOOLONG);
    let deep = tree.root().join("./".repeat(2100)).join("f");
    assert_eq!(errno(fs::metadata(deep)), libc::ENAMETOOLONG);
    assert_eq!(
        errno(symlink("x".repeat(4096), tree.at("s"))),
        libc::ENAMETOOLONG
    );
    tree.ends_sound();
}

#[test]
fn renaming_replaces_in_one_step_and_open_files_live_on() {
    let tree = Tree::new();
    let (a, b) = (tree.at("a"), tree.at("b"));
    fs::write(&a, "new").expect("write");
    fs::write(&b, "old").expect("write");
    let mut reader = fs::File::open(&b).expect("opened");
    let writer = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&b)
        .expect("opened");
    let ino = fs::metadata(&a).expect("stat").ino();
    fs::rename(&a, &b).expect("rename");
    assert_eq!(
        (text(&b).as_str(), fs::metadata(&b).expect("stat").ino()),
        ("new", ino)
    );
    assert_eq!(errno(fs::metadata(&a)), libc::ENOENT);
    writer.write_all_at(b"edited", 0).expect("write");
    writer.sync_all().expect("fsync");
    let mut seen = String::new();
    reader.rewind().expect("seek");
    reader.read_to_string(&mut seen).expect("read");
    assert_eq!(
        (seen.as_str(), reader.metadata().expect("stat").nlink()),
        ("edited", 0)
    );
    drop((reader, writer));
    assert_eq!(text(&b), "new");
    // Two names of one file: nothing happens, and both stay.
    fs::hard_link(&b, &a).expect("link");
    fs::rename(&a, &b).expect("rename");
    assert_eq!((text(&a), text(&b)), ("new".into(), "new".into()));
    // A file that is being written keeps its name and its writer.
    let mut writer = fs::File::create(tree.at("w")).expect("opened");
    writer.write_all(b"first ").expect("write");
    fs::rename(tree.at("w"), tree.at("x")).expect("rename");
    writer.write_all(b"second").expect("write");
    drop(writer);
    assert_eq!(text(tree.at("x")), "first second");
    tree.ends_sound();
}

#[test]
fn rename_keeps_the_rules_about_directories() {
    let tree = Tree::new();
    for name in ["d", "d/e", "d/e/f", "empty", "full", "full/x"] {
        fs::create_dir(tree.at(name)).expect("mkdir");
    }
    fs::write(tree.at("file"), "").expect("write");
    let rename = |from: &str, to: &str| errno(fs::rename(tree.at(from), tree.at(to)));
    assert_eq!(rename("d", "d/e/f/d"), libc::EINVAL);
    assert_eq!(rename("d", "d/d"), libc::EINVAL);
    assert_eq!(rename("d/e/f", "d"), libc::ENOTEMPTY);
    assert_eq!(rename("empty", "full"), libc::ENOTEMPTY);
    assert_eq!(rename("empty", "file"), libc::ENOTDIR);
    assert_eq!(rename("file", "empty"), libc::EISDIR);
    assert_eq!(rename("file/", "other"), libc::ENOTDIR);
    assert_eq!(rename("none", "other"), libc::ENOENT);
    assert_eq!(rename("file", "none/other"), libc::ENOENT);
    assert_eq!(rename("file", "d/."), libc::EBUSY);
    assert_eq!(rename("full", "empty"), 0);
    assert_eq!(rename("d/e", "moved"), 0);
    let links = |name: &str| fs::metadata(tree.at(name)).expect("stat").nlink();
    assert_eq!((links("d"), links("moved"), links("empty")), (2, 3, 3));
    assert_eq!(
        fs::read_dir(tree.at("moved/f/.."))
            .expect("readdir")
            .count(),
        1
    );
    tree.ends_sound();
}

#[test]
fn renameat2_exchanges_and_does_not_replace() {
    let tree = Tree::new();
    fs::write(tree.at("a"), "a").expect("write");
    fs::write(tree.at("b"), "b").expect("write");
    fs::create_dir(tree.at("d")).expect("mkdir");
    fs::create_dir(tree.at("d/sub")).expect("mkdir");
    let call = |from: &str, to: &str, flags| rename2(&tree.at(from), &tree.at(to), flags);
    let (exchange, no_replace) = (libc::RENAME_EXCHANGE, libc::RENAME_NOREPLACE);
    assert_eq!(call("a", "b", no_replace), libc::EEXIST);
    assert_eq!(call("a", "d", no_replace), libc::EEXIST);
    assert_eq!(call("a", "a", no_replace), libc::EEXIST);
    assert_eq!(call("a", "c", no_replace), 0);
    assert_eq!(call("c", "b", exchange), 0);
    assert_eq!(
        (text(tree.at("b")), text(tree.at("c"))),
        ("a".into(), "b".into())
    );
    assert_eq!(call("c", "none", exchange), libc::ENOENT);
    assert_eq!(call("d", "d/sub", exchange), libc::EINVAL);
    assert_eq!(call("d/sub", "d", exchange), libc::EINVAL);
    assert_eq!(call("c", "b", exchange | no_replace), libc::EINVAL);
    // A file and a directory, across directories.
    let links = |name: &str| fs::metadata(tree.at(name)).expect("stat").nlink();
    let root = fs::metadata(tree.root()).expect("stat").nlink();
    assert_eq!(call("c", "d/sub", exchange), 0);
    assert_eq!(
        (text(tree.at("d/sub")), links("d"), links("c")),
        ("b".into(), 2, 2)
    );
    assert_eq!(fs::metadata(tree.root()).expect("stat").nlink(), root + 1);
    tree.remount();
    assert_eq!(text(tree.at("d/sub")), "b");
    tree.ends_sound();
}

/// Through the file system layer, in one transaction: sixty thousand system calls take too long.
#[test]
fn a_file_has_65000_links_and_no_more() {
    use secretfs::store::Durability;
    use secretfs::vault::{ROOT, VaultError};
    let layer = Layer::new();
    let fs = layer.open();
    let (ino, fh) = fs.create(ROOT, b"f", 0o600);
    fs.release(fh);
    let mut most = |tx: &mut secretfs::vault::Tx<'_>| -> Result<(), VaultError> {
        (1..65_000).try_for_each(|n| tx.link(ino, ROOT, format!("{n}").as_bytes()))
    };
    let done = fs.0.vault().transact(Durability::Soon, &mut [&mut most]);
    done.expect("stored").remove(0).expect("linked");
    assert_eq!(fs.getattr(ino, None).expect("there").links, 65_000);
    let more = |name: &[u8]| fs.link(ino, ROOT, name).err().map(|e| e.0);
    assert_eq!(more(b"more"), Some(libc::EMLINK));
    fs.unlink(ROOT, b"7").expect("unlink");
    assert_eq!((more(b"again"), more(b"more")), (None, Some(libc::EMLINK)));
    fs.finish();
}
