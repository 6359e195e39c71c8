//! Contents: what open, read, write, truncate and unlink do to each other.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use crate::support::tree::{Tree, errno, sys};

fn open(path: &Path, flags: i32) -> std::io::Result<File> {
    let mode = flags & libc::O_ACCMODE;
    OpenOptions::new()
        .read(mode != libc::O_WRONLY)
        .write(mode != libc::O_RDONLY)
        .custom_flags(flags & !libc::O_ACCMODE)
        .open(path)
}

#[test]
fn a_removed_file_lives_on_for_those_who_have_it_open() {
    let tree = Tree::new();
    let path = tree.at("f");
    fs::write(&path, "content").expect("write");
    let mut reader = File::open(&path).expect("opened");
    let writer = open(&path, libc::O_RDWR).expect("opened");
    fs::remove_file(&path).expect("unlink");
    assert_eq!(errno(fs::metadata(&path)), libc::ENOENT);
    fs::write(&path, "another").expect("write");
    writer.write_all_at(b"C", 0).expect("write");
    writer.set_len(10).expect("ftruncate");
    writer.sync_all().expect("fsync");
    let meta = writer.metadata().expect("stat");
    assert_eq!((meta.len(), meta.nlink()), (10, 0));
    let mut seen = Vec::new();
    reader.read_to_end(&mut seen).expect("read");
    assert_eq!(seen, b"Content\0\0\0");
    // By way of its descriptor it can even be opened anew.
    let mut again = File::open(format!("/proc/self/fd/{}", reader.as_raw_fd())).expect("opened");
    let mut seen = Vec::new();
    again.read_to_end(&mut seen).expect("read");
    assert_eq!(seen, b"Content\0\0\0");
    drop((reader, writer, again));
    assert_eq!(fs::read_to_string(&path).expect("read"), "another");
    // One that never was published.
    let mut new = open(&tree.at("g"), libc::O_RDWR | libc::O_CREAT).expect("opened");
    fs::remove_file(tree.at("g")).expect("unlink");
    new.write_all(b"temporary").expect("write");
    new.rewind().expect("seek");
    let mut seen = String::new();
    new.read_to_string(&mut seen).expect("read");
    assert_eq!(seen, "temporary");
    drop(new);
    tree.ends_sound();
}

#[test]
fn flags_of_open_do_what_they_are_for() {
    let tree = Tree::new();
    let path = tree.at("f");
    let (create, exclusive) = (libc::O_CREAT | libc::O_WRONLY, libc::O_EXCL);
    assert_eq!(errno(open(&path, libc::O_WRONLY)), libc::ENOENT);
    assert_eq!(errno(open(&path, create | exclusive)), 0);
    assert_eq!(errno(open(&path, create | exclusive)), libc::EEXIST);
    assert_eq!(errno(open(&path, create)), 0);
    fs::write(&path, "content").expect("write");
    std::os::unix::fs::symlink("f", tree.at("l")).expect("symlink");
    std::os::unix::fs::symlink("new", tree.at("dangling")).expect("symlink");
    assert_eq!(
        errno(open(&tree.at("l"), libc::O_RDONLY | libc::O_NOFOLLOW)),
        libc::ELOOP
    );
    assert_eq!(
        errno(open(&tree.at("dangling"), create | exclusive)),
        libc::EEXIST
    );
    assert_eq!(errno(open(&tree.at("dangling"), create)), 0);
    assert!(tree.at("new").exists());
    let reader = File::open(&path).expect("opened");
    assert_eq!(errno((&reader).write(b"x")), libc::EBADF);
    assert_eq!(errno(reader.set_len(1)), libc::EINVAL);
    let writer = open(&path, libc::O_WRONLY).expect("opened");
    assert_eq!(errno((&writer).read(&mut [0])), libc::EBADF);
    // Truncating by opening for reading alone, which Linux allows to whoever may write.
    for _ in 0..20 {
        fs::write(&path, "content").expect("write");
        drop(open(&path, libc::O_RDONLY | libc::O_TRUNC).expect("opened"));
        assert_eq!(fs::metadata(&path).expect("stat").len(), 0);
        assert_eq!(fs::read(&path).expect("read"), b"");
    }
    drop((reader, writer));
    tree.ends_sound();
}

#[test]
fn offsets_gaps_and_ends_are_those_of_any_file() {
    let tree = Tree::new();
    let path = tree.at("f");
    let mut file = open(&path, libc::O_RDWR | libc::O_CREAT).expect("opened");
    file.write_all_at(b"end", 100_000).expect("write");
    let meta = file.metadata().expect("stat");
    assert_eq!((meta.len(), meta.blocks() > 0), (100_003, true));
    let mut hole = vec![1; 100_000];
    file.read_exact_at(&mut hole, 0).expect("read");
    assert!(hole.iter().all(|byte| *byte == 0));
    assert_eq!(file.seek(SeekFrom::End(-3)).expect("seek"), 100_000);
    let mut text = String::new();
    file.read_to_string(&mut text).expect("read");
    assert_eq!(text, "end");
    assert_eq!(file.read(&mut [0; 10]).expect("read"), 0);
    assert_eq!(file.seek(SeekFrom::Start(1 << 40)).expect("seek"), 1 << 40);
    assert_eq!(file.read(&mut [0; 10]).expect("read"), 0);
    assert_eq!(
        errno(file.seek(SeekFrom::Current(-(1 << 41)))),
        libc::EINVAL
    );
    file.set_len(50_000).expect("ftruncate");
    file.set_len(60_000).expect("ftruncate");
    drop(file);
    assert_eq!(fs::read(&path).expect("read"), vec![0; 60_000]);
    assert_eq!(
        errno(nix::unistd::truncate(&path, -1).map_err(Into::into)),
        libc::EINVAL
    );
    nix::unistd::truncate(&path, 3).expect("truncate");
    assert_eq!(fs::read(&path).expect("read"), [0; 3]);
    tree.ends_sound();
}

#[test]
fn vectors_positions_and_empty_writes_are_taken_as_they_come() {
    let tree = Tree::new();
    let path = tree.at("f");
    let mut file = open(&path, libc::O_RDWR | libc::O_CREAT).expect("opened");
    let parts = [&b"one "[..], b"", b"two ", b"three"].map(std::io::IoSlice::new);
    assert_eq!(file.write_vectored(&parts).expect("writev"), 13);
    assert_eq!(file.write(b"").expect("write"), 0);
    let large: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    file.write_all(&large).expect("write");
    let mut back = vec![0; 13 + large.len()];
    file.read_exact_at(&mut back, 0).expect("read");
    assert!(back.starts_with(b"one two three") && back[13..] == large[..]);
    drop(file);
    assert_eq!(fs::read(&path).expect("read"), back);
    let mut pieces = Vec::new();
    let mut file = File::open(&path).expect("opened");
    let mut piece = [0; 1237];
    while let n @ 1.. = file.read(&mut piece).expect("read") {
        pieces.extend_from_slice(&piece[..n]);
    }
    assert_eq!(pieces, back);
    drop(file);
    tree.ends_sound();
}

#[test]
fn duplicates_share_one_offset_and_one_draft() {
    let tree = Tree::new();
    let path = tree.at("f");
    let mut file = File::create(&path).expect("opened");
    let mut twin = file.try_clone().expect("dup");
    file.write_all(b"one ").expect("write");
    twin.write_all(b"two ").expect("write");
    drop(twin);
    file.write_all(b"three").expect("write");
    drop(file);
    assert_eq!(fs::read_to_string(&path).expect("read"), "one two three");
    tree.ends_sound();
}

#[test]
fn what_direct_io_and_advice_ask_for_is_granted() {
    let tree = Tree::new();
    let path = tree.at("f");
    fs::write(&path, vec![7; 8192]).expect("write");
    let file = open(&path, libc::O_RDONLY | libc::O_DIRECT).expect("opened");
    let mut page = vec![0; 4096];
    file.read_exact_at(&mut page, 4096).expect("read");
    assert_eq!(page, vec![7; 4096]);
    // SAFETY: no memory is involved.
    let advised = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    assert_eq!(advised, 0);
    // SAFETY: no memory is involved.
    sys(unsafe { libc::syncfs(file.as_raw_fd()) }).expect("syncfs");
    drop(file);
    tree.ends_sound();
}

#[test]
fn before_the_beginning_there_is_neither_data_nor_a_hole() {
    let tree = Tree::new();
    for path in [tree.at("f"), tree.beside("f")] {
        fs::write(&path, "content").expect("written");
        let file = fs::File::open(&path).expect("opened");
        for whence in [libc::SEEK_DATA, libc::SEEK_HOLE] {
            // SAFETY: no memory is involved.
            let sought = sys(unsafe { libc::lseek(file.as_raw_fd(), -1, whence) });
            assert_eq!(errno(sought), libc::ENXIO, "{whence} of {}", path.display());
        }
    }
    tree.ends_sound();
}
