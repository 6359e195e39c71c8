//! Names that go, or come to name something else, while they are being used; and what is left of what
//! had them.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use secretfs::vault::ROOT;

use crate::support::layer::Layer;
use crate::support::process::{Place, wait_for};
use crate::support::tree::{Tree, c, errno, sys};

/// Far longer than it takes: the machine may have other things to do.
const PATIENCE: Duration = Duration::from_secs(30);

/// Looks a name up, and does nothing with what it names yet: where that is found from now on.
fn looked_up(path: &Path) -> (File, PathBuf) {
    let found = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_NOFOLLOW)
        .open(path)
        .expect("looked up");
    let at = PathBuf::from(format!("/proc/self/fd/{}", found.as_raw_fd()));
    (found, at)
}

/// What every call says that comes to a file after its name is gone.
fn use_removed(dir: &Path) -> Vec<(&'static str, i32)> {
    let file = dir.join("f");
    fs::write(&file, "content").expect("written");
    let (_file, f) = looked_up(&file);
    fs::remove_file(&file).expect("removed");
    // Another has the name by now.
    fs::write(&file, "another").expect("written");
    let mut said = vec![
        ("stat", errno(fs::metadata(&f))),
        (
            "chmod",
            errno(fs::set_permissions(&f, PermissionsExt::from_mode(0o640))),
        ),
        (
            "chown",
            errno(std::os::unix::fs::chown(&f, Some(1), Some(1))),
        ),
        (
            "truncate",
            errno(nix::unistd::truncate(&f, 4).map_err(std::io::Error::from)),
        ),
        ("open", errno(File::open(&f))),
        ("open to replace", errno(fs::write(&f, "replaced"))),
        ("read", errno(fs::read(&f))),
    ];
    assert_eq!(fs::read(&f).expect("read"), b"replaced");
    let meta = fs::metadata(&f).expect("stat");
    assert_eq!(
        (meta.nlink(), meta.mode() & 0o777, meta.uid()),
        (0, 0o640, 1)
    );
    assert_eq!(fs::read(&file).expect("read"), b"another");
    let (times, name) = (c(&f), c"user.none");
    // SAFETY: all pointers are to C strings that live through the calls.
    let (touched, asked, linked) = unsafe {
        (
            sys(libc::utimensat(
                libc::AT_FDCWD,
                times.as_ptr(),
                std::ptr::null(),
                0,
            )),
            sys(libc::getxattr(times.as_ptr(), name.as_ptr(), std::ptr::null_mut(), 0) as i64),
            sys(libc::linkat(
                libc::AT_FDCWD,
                times.as_ptr(),
                libc::AT_FDCWD,
                c(dir.join("again")).as_ptr(),
                libc::AT_SYMLINK_FOLLOW,
            )),
        )
    };
    said.push(("utimensat", errno(touched)));
    said.push(("getxattr", errno(asked)));
    said.push(("link", errno(linked)));

    let inner = dir.join("d");
    fs::create_dir(&inner).expect("made");
    let (_inner, d) = looked_up(&inner);
    fs::remove_dir(&inner).expect("removed");
    said.push(("stat a directory", errno(fs::metadata(&d))));
    said.push(("list it", errno(fs::read_dir(&d).map(Iterator::count))));
    said.push(("open in it", errno(File::open(d.join("f")))));
    said.push(("create in it", errno(File::create(d.join("f")))));
    said.push(("rename into it", errno(fs::rename(&file, d.join("f")))));
    said.push(("unlink in it", errno(fs::remove_file(d.join("f")))));
    said
}

#[test]
fn what_was_looked_up_before_it_was_removed_can_be_used_as_elsewhere() {
    let tree = Tree::new();
    let elsewhere = use_removed(&tree.beside(""));
    assert_eq!(use_removed(&tree.root()), elsewhere);
    tree.ends_sound();
}

/// What programs do that guard a file by a lock file: each makes a file of its own, links it to the name
/// of the lock, and opens what has that name; who has linked it rewrites the file and removes the lock.
/// Others meanwhile come to the name by every other call. Errors are told that no local file system
/// gives.
const BY_TURNS: &str = r#"
import errno, os

TURNS = 50
wrong = []

def told(what, call, *fine):
    try:
        return call()
    except OSError as error:
        if error.errno not in fine:
            wrong.append((what, errno.errorcode[error.errno]))
        return None

def make(name, flags=0):
    def call():
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT | flags, 0o666))
        return True
    return call

def opened(name):
    file = os.open(name, os.O_RDWR)
    try:
        os.fstat(file)
    finally:
        os.close(file)
    return True

def rewrite():
    file = os.open("mtab.tmp", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
    os.write(file, b"a line\n" * 9)
    os.fchmod(file, 0o644)
    os.close(file)
    os.rename("mtab.tmp", "mtab")

def turn(mine):
    while True:
        told("create", make(mine))
        won = told("link", lambda: os.link(mine, "mtab~") or True, errno.EEXIST)
        told("unlink its own", lambda: os.unlink(mine))
        if won:
            told("open the lock it has", lambda: opened("mtab~"))
            told("rewrite", rewrite)
            told("unlink the lock", lambda: os.unlink("mtab~"))
            return
        for what, call in others:
            told(what, call, errno.ENOENT, errno.ENODATA)
        told("read", lambda: open("mtab").read())
        told("create what is there", make("mtab"))

others = [
    ("open", lambda: opened("mtab~")),
    ("stat", lambda: os.stat("mtab~")),
    ("chmod", lambda: os.chmod("mtab~", 0o600)),
    ("truncate", lambda: os.truncate("mtab~", 0)),
    ("utimes", lambda: os.utime("mtab~")),
    ("getxattr", lambda: os.getxattr("mtab~", "user.none")),
    ("readlink", lambda: os.readlink("link")),
    ("open through a link", lambda: opened("link")),
]
os.symlink("mtab~", "link")
make("mtab")()
children = []
for _ in range(3):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        for _ in range(TURNS):
            turn("mtab~%d" % os.getpid())
        os.write(writer, repr(wrong[:9]).encode())
        os._exit(0)
    os.close(writer)
    children.append((child, reader))
for child, reader in children:
    print(os.read(reader, 4000).decode())
    os.waitpid(child, 0)
os.unlink("link")
"#;

#[test]
fn a_lock_file_that_is_made_linked_and_removed_by_turns_gives_no_error_that_is_unknown_elsewhere() {
    let tree = Tree::new();
    for _ in 0..2 {
        assert_eq!(tree.python(BY_TURNS), "[]\n[]\n[]\n");
    }
    tree.ends_sound();
}

/// Numbers of nodes, versions and left-overs in a vault.
fn rows(vault: &Path) -> [i64; 3] {
    let database = rusqlite::Connection::open(vault.join("vault.db")).expect("a database");
    ["node", "version", "orphan"].map(|table| {
        let count = format!("SELECT count(*) FROM {table}");
        let counted = database.query_row(&count, [], |row| row.get(0));
        counted.expect("counted")
    })
}

/// Of a vault with nothing but its root and its own node.
const NOTHING: [i64; 3] = [2, 0, 0];

#[test]
fn a_removed_secret_is_gone_from_the_vault_a_moment_later_and_at_the_latest_with_the_mount() {
    let place = Place::with_vault();
    place.mount(&[]).succeeded();
    let secret = place.point().join("secret");
    fs::write(&secret, "of no use any more").expect("written");
    fs::remove_file(&secret).expect("removed");
    wait_for("its end", PATIENCE, || rows(&place.vault()) == NOTHING);
    for name in 0..300 {
        let path = place.point().join(format!("{name}"));
        fs::write(&path, "one of many").expect("written");
        fs::remove_file(&path).expect("removed");
    }
    let point = place.point();
    place
        .run(["umount".as_ref(), point.as_os_str()])
        .succeeded();
    assert_eq!(rows(&place.vault()), NOTHING);
}

/// The kernel does not say any more what it forgets when a mount ends.
#[test]
fn what_the_kernel_has_not_forgotten_when_the_mount_ends_goes_with_it() {
    let layer = Layer::new();
    let fs = layer.open();
    let known = |name: &[u8]| {
        let (ino, fh) = fs.create(ROOT, name, 0o600);
        fs.write(fh, 0, b"content").expect("written");
        fs.flush(fh).expect("closed");
        fs.release(fh);
        fs.0.remember(&fs.lookup(ROOT, name).expect("there"));
        fs.unlink(ROOT, name).expect("removed");
        ino
    };
    let (forgotten, kept) = (known(b"forgotten"), known(b"kept"));
    for ino in [forgotten, kept] {
        assert_eq!(fs.read_all(ino).expect("still there"), b"content");
    }
    fs.0.forget(forgotten, 1);
    fs.barrier();
    assert_eq!(
        fs.getattr(forgotten, None).err().map(|e| e.0),
        Some(libc::ENOENT)
    );
    assert_eq!(fs.getattr(kept, None).expect("still there").links, 0);
    fs.finish();
    assert_eq!(rows(&layer.vault()), NOTHING);
}

/// As the kernel hands it out.
#[repr(C)]
struct Number {
    head: libc::file_handle,
    bytes: [u8; 128],
}

fn number_of(path: &Path) -> Number {
    // SAFETY: numbers and bytes may be zero.
    let mut number: Number = unsafe { std::mem::zeroed() };
    number.head.handle_bytes = 128;
    let (path, mut mount) = (c(path), 0);
    // SAFETY: the path is a C string, and behind the head is room for as many bytes as it says.
    let got = unsafe {
        libc::name_to_handle_at(
            libc::AT_FDCWD,
            path.as_ptr(),
            (&raw mut number).cast(),
            &raw mut mount,
            0,
        )
    };
    sys(got).expect("a handle");
    number
}

fn open_number(mount: &Path, number: &mut Number) -> std::io::Result<File> {
    let mount = File::open(mount)?;
    let number = std::ptr::from_mut(number).cast();
    // SAFETY: the handle is one that the kernel has made.
    let fd = sys(unsafe { libc::open_by_handle_at(mount.as_raw_fd(), number, libc::O_RDONLY) })?;
    // SAFETY: the descriptor was just opened, and is nobody else's.
    Ok(unsafe { std::os::fd::FromRawFd::from_raw_fd(fd as i32) })
}

#[test]
fn files_and_directories_are_opened_by_their_handles_also_in_a_later_mount() {
    let tree = Tree::new();
    let root = tree.root();
    let paths = ["d", "d/e", "d/e/f", "gone"].map(|name| root.join(name));
    fs::create_dir_all(&paths[1]).expect("made");
    fs::write(&paths[2], "content").expect("written");
    fs::write(&paths[3], "content").expect("written");
    let mut numbers = paths.each_ref().map(|path| number_of(path));
    tree.remount();
    fs::remove_file(&paths[3]).expect("removed");
    let [d, e, f, gone] = &mut numbers;
    for (number, path) in [(e, &paths[1]), (d, &paths[0]), (f, &paths[2])] {
        let file = open_number(&root, number).expect("opened");
        let there = file.metadata().expect("stat").ino();
        assert_eq!(there, fs::metadata(path).expect("stat").ino());
        if path.is_dir() {
            let found = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
            assert_eq!(&found.expect("its path"), path);
        } else {
            assert_eq!(std::io::read_to_string(file).expect("read"), "content");
        }
    }
    assert_eq!(errno(open_number(&root, gone)), libc::ESTALE);
    tree.ends_sound();
}
