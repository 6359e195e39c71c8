//! Pipes, sockets and devices; programs that are running; extended attributes; figures.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use crate::support::tree::{Tree, c, errno, sys};

fn mknod(path: &Path, mode: u32, device: u64) -> i32 {
    // SAFETY: a string that lives until the call returns.
    errno(sys(unsafe { libc::mknod(c(path).as_ptr(), mode, device) }))
}

#[test]
fn a_pipe_carries_bytes_also_after_its_name_is_gone() {
    let tree = Tree::new();
    let path = tree.at("p");
    assert_eq!(mknod(&path, libc::S_IFIFO | 0o640, 0), 0);
    let meta = fs::metadata(&path).expect("stat");
    assert!(meta.file_type().is_fifo() && meta.mode() & 0o7777 == 0o640);
    std::thread::scope(|scope| {
        scope.spawn(|| fs::write(&path, "through the pipe").expect("write"));
        assert_eq!(fs::read_to_string(&path).expect("read"), "through the pipe");
    });
    let mut both = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .expect("opened");
    fs::remove_file(&path).expect("unlink");
    assert_eq!(both.metadata().expect("stat").nlink(), 0);
    both.write_all(b"on").expect("write");
    let mut got = [0; 2];
    both.read_exact(&mut got).expect("read");
    assert_eq!(&got, b"on");
    drop(both);
    tree.ends_sound();
}

#[test]
fn a_socket_is_bound_and_connected_to() {
    let tree = Tree::new();
    // The path of a socket may have no more than 108 bytes.
    let dir = fs::File::open(tree.root()).expect("opened");
    let socket = format!("/proc/self/fd/{}/socket", dir.as_raw_fd());
    let listener = UnixListener::bind(&socket).expect("bound");
    assert!(fs::metadata(&socket).expect("stat").file_type().is_socket());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut client = UnixStream::connect(&socket).expect("connected");
            client.write_all(b"hello").expect("write");
        });
        let (mut server, _) = listener.accept().expect("accepted");
        let mut said = String::new();
        server.read_to_string(&mut said).expect("read");
        assert_eq!(said, "hello");
    });
    assert_eq!(errno(UnixListener::bind(&socket)), libc::EADDRINUSE);
    drop(listener);
    assert_eq!(errno(UnixStream::connect(&socket)), libc::ECONNREFUSED);
    assert_eq!(errno(fs::File::open(&socket)), libc::ENXIO);
    fs::remove_file(&socket).expect("unlink");
    drop(dir);
    tree.ends_sound();
}

#[test]
fn devices_are_kept_and_do_nothing() {
    let tree = Tree::new();
    let null = libc::makedev(1, 3);
    for (name, kind) in [("char", libc::S_IFCHR), ("block", libc::S_IFBLK)] {
        assert_eq!(mknod(&tree.at(name), kind | 0o666, null), 0);
    }
    let large = libc::makedev(0xabc, 0x54321);
    assert_eq!(mknod(&tree.at("large"), libc::S_IFCHR | 0o600, large), 0);
    tree.remount();
    let meta = |name: &str| fs::metadata(tree.at(name)).expect("stat");
    assert!(
        meta("char").file_type().is_char_device() && meta("block").file_type().is_block_device()
    );
    assert_eq!((meta("char").rdev(), meta("large").rdev()), (null, large));
    assert_eq!(
        errno(fs::File::open(tree.at("char"))),
        libc::EACCES,
        "nodev"
    );
    assert_eq!(
        errno(fs::File::open(tree.at("block"))),
        libc::EACCES,
        "nodev"
    );
    tree.ends_sound();
}

#[test]
fn set_id_programs_run_as_whoever_runs_them() {
    let tree = Tree::new();
    fs::copy("/usr/bin/id", tree.at("id")).expect("copied");
    fs::set_permissions(tree.at("id"), fs::Permissions::from_mode(0o6755)).expect("chmod");
    let id = tree.at("id");
    let said = tree.bash(&format!(
        "setpriv --reuid 4001 --regid 4001 --clear-groups {} -u",
        id.display()
    ));
    assert_eq!(said, "4001\n", "nosuid");
    tree.ends_sound();
}

#[test]
fn extended_attributes_are_set_listed_and_removed() {
    let tree = Tree::new();
    tree.python(
        r#"
import errno, os
def refused(number, call, *args, **kw):
    try: call(*args, **kw)
    except OSError as e: assert e.errno == number, (e, args)
    else: raise SystemExit(f"not refused: {args}")
open("f", "w").write("x"); os.mkdir("d")
for path in ("f", "d"):
    assert os.listxattr(path) == []
    os.setxattr(path, "user.a", b"1"); os.setxattr(path, "user.b", b"")
    os.setxattr(path, b"user.\xff\xfe", bytes(range(256)))
    os.setxattr(path, "user.a", b"2", os.XATTR_REPLACE)
    refused(errno.EEXIST, os.setxattr, path, "user.a", b"3", os.XATTR_CREATE)
    refused(errno.ENODATA, os.setxattr, path, "user.none", b"3", os.XATTR_REPLACE)
    refused(errno.ENODATA, os.getxattr, path, "user.none")
    refused(errno.ENODATA, os.removexattr, path, "user.none")
    refused(errno.ERANGE, os.setxattr, path, "user." + "x" * 251, b"")
    os.setxattr(path, "user." + "x" * 250, b"long")
    os.removexattr(path, "user.b")
    assert sorted(os.fsencode(n) for n in os.listxattr(path)) == sorted([b"user.a", b"user.\xff\xfe", b"user." + b"x" * 250])
    assert os.getxattr(path, "user.a") == b"2"
    assert os.getxattr(path, b"user.\xff\xfe") == bytes(range(256))
    os.setxattr(path, "user.large", b"z" * 50_000)
    assert os.getxattr(path, "user.large") == b"z" * 50_000
    refused(errno.ENOSPC, os.setxattr, path, "user.larger", b"z" * 50_000)
for path in ("f", "d", ".secretfs/status"):
    for other in ("trusted.a", "security.selinux", "system.posix_acl_access"):
        refused(errno.EOPNOTSUPP, os.getxattr, path, other)
refused(errno.EOPNOTSUPP, os.setxattr, "f", "trusted.a", b"1")
os.symlink("f", "l"); os.mkfifo("p")
for path in ("l", "p"): refused(errno.EPERM, os.setxattr, path, "user.a", b"1", follow_symlinks=False)
"#,
    );
    tree.remount();
    tree.bash("test \"$(getfattr --only-values -n user.a f)\" = 2; test \"$(getfattr --only-values -n user.large d | wc -c)\" = 50000");
    tree.ends_sound();
}

#[test]
fn computed_attributes_tell_version_generation_and_time() {
    let tree = Tree::new();
    tree.python(
        r#"
import os
def get(name, path="f"): return os.getxattr(path, "user.secretfs." + name).decode()
open("f", "w").write("one")
assert get("version") == "1" and get("generation") == "1"
open("f", "w").write("two")
assert get("version") == "2"
assert get("modified") == "%d.%09d" % divmod(os.stat("f").st_mtime_ns, 10**9)
assert os.listxattr("f") == []
for call in (lambda: os.setxattr("f", "user.secretfs.version", b"9"), lambda: os.removexattr("f", "user.secretfs.version")):
    try: call(); raise SystemExit("not refused")
    except PermissionError: pass
os.mkdir("d"); assert get("generation", "d") == "1"
try: get("version", "d"); raise SystemExit("a directory has no version")
except OSError: pass
"#,
    );
    tree.ends_sound();
}

#[test]
fn figures_of_the_file_system_make_sense() {
    let tree = Tree::new();
    let of = |path: &Path| nix::sys::statvfs::statvfs(path).expect("statvfs");
    let (ours, below) = (of(&tree.root()), of(&tree.beside("")));
    assert_eq!(
        (ours.name_max(), ours.fragment_size()),
        (255, below.fragment_size())
    );
    assert_eq!(ours.blocks(), below.blocks());
    assert!(ours.blocks_available() > 0 && ours.blocks_available() <= ours.blocks());
    assert!(ours.files() >= ours.files_free() && ours.files_free() > 0);
    tree.bash("df . | tail -1 | grep -q / && df -i . > /dev/null");
    tree.ends_sound();
}

#[test]
fn a_directory_may_be_opened_for_reading_and_nothing_else() {
    let tree = Tree::new();
    let dir = tree.shared("d", 0o755);
    let open = |flags| {
        // SAFETY: a string that lives until the call returns.
        let n = unsafe { libc::open(c(&dir).as_ptr(), flags, 0o600) };
        // SAFETY: the descriptor is nobody else's.
        sys(n).map(|fd| unsafe { OwnedFd::from_raw_fd(fd as i32) })
    };
    let fd = open(libc::O_RDONLY | libc::O_DIRECTORY).expect("opened");
    let mut byte = [0u8; 1];
    // SAFETY: one byte, as said.
    let read = unsafe { libc::read(fd.as_raw_fd(), byte.as_mut_ptr().cast(), 1) };
    assert_eq!(errno(sys(read as i64)), libc::EISDIR);
    // SAFETY: no memory is involved.
    sys(unsafe { libc::fsync(fd.as_raw_fd()) }).expect("fsync of a directory");
    for flags in [
        libc::O_WRONLY,
        libc::O_RDWR,
        libc::O_RDONLY | libc::O_CREAT,
        libc::O_RDONLY | libc::O_TRUNC,
    ] {
        assert_eq!(errno(open(flags)), libc::EISDIR, "{flags:o}");
    }
    fs::write(tree.at("f"), "").expect("write");
    let file = |flags: i32| {
        errno(
            nix::fcntl::open(
                &tree.at("f"),
                nix::fcntl::OFlag::from_bits_retain(flags),
                nix::sys::stat::Mode::empty(),
            )
            .map_err(Into::into),
        )
    };
    assert_eq!(file(libc::O_DIRECTORY), libc::ENOTDIR);
    assert_eq!(errno(fs::metadata(tree.at("f/x"))), libc::ENOTDIR);
    assert_eq!(errno(fs::create_dir(tree.at("f/x"))), libc::ENOTDIR);
    assert_eq!(errno(fs::remove_dir(tree.at("f"))), libc::ENOTDIR);
    assert_eq!(errno(fs::remove_file(&dir)), libc::EISDIR);
    assert_eq!(
        errno(nix::unistd::truncate(&dir, 0).map_err(Into::into)),
        libc::EISDIR
    );
    drop(fd);
    tree.ends_sound();
}
