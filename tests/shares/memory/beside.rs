//! Beside a writer in another process, where what is open is held.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{MIB, SOON, Shared, taken};
use crate::support::attacker::Attacker;
use crate::support::process::{detach, wait_for};
use crate::support::tree::{ALICE, BOB, as_user, c, errno, sys};

/// A mount for reading beside that for writing, taken away at the end.
struct Beside(PathBuf);

impl Beside {
    fn mount(shared: &Shared, options: &str) -> Self {
        let point = shared.place.path().join("beside");
        fs::create_dir(&point).expect("made");
        let options = format!("-oro,allow_other,{options}");
        let vault = shared.place.vault();
        let mounted = shared.place.run([
            "mount".as_ref(),
            vault.as_os_str(),
            point.as_os_str(),
            options.as_ref(),
        ]);
        mounted.succeeded();
        Self(point)
    }

    fn dir(&self) -> PathBuf {
        self.0.join("d")
    }

    fn taken(&self) -> u64 {
        taken(&self.0)
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        detach(&self.0);
    }
}

#[test]
fn a_content_is_there_once_for_all_who_have_it_open_and_stays_when_the_writer_removes_it() {
    let shared = Shared::new("rw");
    let beside = Beside::mount(&shared, "max-memory=32M");
    let large = beside.dir().join("large");
    let open = |user| as_user(user, &[], || File::open(&large).expect("opened"));
    let readers = [ALICE, BOB, ALICE, BOB].map(open);
    assert_eq!(beside.taken(), 4 * MIB as u64);
    fs::remove_file(shared.at("large")).expect("removed");
    shared.put("large", 5 * MIB);
    wait_for("the new one", SOON, || {
        fs::metadata(&large).is_ok_and(|meta| meta.len() == 5 * MIB as u64)
    });
    let newer = open(ALICE);
    // What was held ahead for who was told to ask again is given back.
    wait_for("both, each once", SOON, || beside.taken() == 9 * MIB as u64);
    let whole = |file: &File, length: usize| {
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, 0).expect("read");
        assert!(bytes.iter().all(|byte| *byte == b's'));
    };
    let [first, second, third, fourth] = readers;
    whole(&newer, 5 * MIB);
    for file in [&first, &second, &third, &fourth] {
        whole(file, 4 * MIB);
    }
    // The one for whom it was decrypted goes first.
    drop((first, third));
    whole(&second, 4 * MIB);
    drop(newer);
    wait_for("memory to be given back", SOON, || {
        beside.taken() == 4 * MIB as u64
    });
    drop((second, fourth));
    wait_for("memory to be given back", SOON, || beside.taken() == 0);
}

/// What somebody is told of is held for him only if he may read it first.
#[test]
fn who_looks_at_what_others_have_open_takes_no_memory_for_it() {
    let shared = Shared::new("rw");
    let beside = Beside::mount(&shared, "max-memory=32M");
    let large = beside.dir().join("large");
    let opened = as_user(ALICE, &[], || File::open(&large).expect("opened"));
    assert_eq!(beside.taken(), 4 * MIB as u64);
    shared.put("large", 5 * MIB);
    let length_for = |user: u32| {
        let mut stat = Command::new("stat");
        stat.args(["-c", "%s"]).arg(&large).uid(user).gid(user);
        let output = stat.output().expect("stat runs");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("a number")
    };
    for user in [BOB, 0] {
        wait_for("the new length", SOON, || {
            length_for(user) == format!("{}\n", 5 * MIB)
        });
    }
    assert_eq!(beside.taken(), 4 * MIB as u64);
    // A program that was given the descriptor may.
    let mut child = Command::new("stat");
    child.args(["-L", "-c", "%s", "/dev/stdin"]);
    child.stdin(opened.try_clone().expect("shared"));
    child.output().expect("stat runs");
    assert_eq!(beside.taken(), 9 * MIB as u64);
}

#[test]
fn extended_attributes_of_many_files_take_no_memory_from_others() {
    let shared = Shared::new("rw");
    let script = "
for n in range(300):
    path = '%s/x%d' % (sys.argv[1], n)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT))
    os.setxattr(path, 'user.big', bytes(60000))
told('set')
";
    let mut attacker = Attacker::start(script, &[&shared.dir()]);
    assert_eq!(attacker.told(), "set");
    shared.others_read();
    shared.others_write();
    drop(attacker);
    shared.remount("ro");
    let script = "
paths = ['%s/x%d' % (sys.argv[1], n) for n in range(300)]
# What is read fills caches first.
for path in paths * 3:
    fd = os.open(path, os.O_RDONLY)
    assert len(os.getxattr(fd, 'user.big')) == 60000
    os.close(fd)
told('read')
fds = [os.open(path, os.O_RDONLY) for path in paths]
for fd in fds:
    assert len(os.getxattr(fd, 'user.big')) == 60000
told('all')
";
    let mut attacker = Attacker::start(script, &[&shared.dir()]);
    assert_eq!(attacker.told(), "read");
    let before = shared.resident();
    attacker.go_on();
    assert_eq!(attacker.told(), "all");
    let grown = shared.resident().saturating_sub(before);
    assert!(grown < 9_000_000, "{grown} of 18,000,000 bytes");
    shared.others_read();
}

#[test]
fn extended_attributes_of_what_the_writer_removes_stay_for_who_has_it_open_if_they_are_few() {
    let shared = Shared::new("rw");
    for (name, length) in [("few", 1000), ("many", 3000)] {
        shared.put(name, 10);
        set_xattr(&shared.at(name), &vec![b'v'; length]);
    }
    let beside = Beside::mount(&shared, "ro");
    let files = ["few", "many"].map(|name| File::open(beside.dir().join(name)).expect("opened"));
    for (file, length) in files.iter().zip([1000, 3000]) {
        assert_eq!(xattr(file).expect("told"), vec![b'v'; length]);
    }
    for name in ["few", "many"] {
        fs::remove_file(shared.at(name)).expect("removed");
        wait_for("it to go", SOON, || !beside.dir().join(name).exists());
    }
    let [few, many] = files;
    wait_for(
        "the left-overs to go with what is written next",
        SOON,
        || {
            fs::write(shared.at("replaced"), "anew").expect("written");
            errno(xattr(&many)) == libc::ESTALE
        },
    );
    assert_eq!(xattr(&few).expect("told"), vec![b'v'; 1000]);
}

fn set_xattr(path: &Path, value: &[u8]) {
    // SAFETY: the path and the name end with a NUL, and the value is as long as it is said to be.
    let set = unsafe {
        libc::setxattr(
            c(path).as_ptr(),
            c"user.v".as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            0,
        )
    };
    sys(set).expect("set");
}

fn xattr(file: &File) -> std::io::Result<Vec<u8>> {
    let mut value = vec![0; 1 << 16];
    // SAFETY: the name ends with a NUL, and the buffer is as long as it is said to be.
    let length = unsafe {
        libc::fgetxattr(
            file.as_raw_fd(),
            c"user.v".as_ptr(),
            value.as_mut_ptr().cast(),
            value.len(),
        )
    };
    value.truncate(sys(length as i64)? as usize);
    Ok(value)
}
