//! Nothing readable at rest: what was written, and what it is called, is nowhere in what a disk, a
//! swap device, a core file or a list of processes may show.

mod locked;

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::support::child::{limited, traceable};
use crate::support::core_pattern::CoreFiles;
use crate::support::memory::{self, Found, Needle};
use crate::support::process::{PROGRAM, Place, Ran, Server, detach, kill, status, wait_for};
use crate::support::tree::{as_user, c, needs, sys};
use nix::sys::resource::{RLIM_INFINITY, Resource};

const SOON: Duration = Duration::from_secs(20);
/// An ordinary user.
const NOBODY: u32 = 65534;
/// What an ordinary user may lock, on most machines.
const LOCKABLE: u64 = 8 << 20;

/// A line that stands for the secret of this name.
fn marker(what: &str) -> Vec<u8> {
    format!("<the secret called {what}, 7Qx9>").into_bytes()
}

/// A content of so many bytes that shows in every part of it which one it is.
fn content(what: &str, size: usize) -> Vec<u8> {
    marker(what).repeat(size / marker(what).len() + 1)[..size].to_vec()
}

/// Names that are in the vault.
const NAMES: [&str; 8] = [
    "directory-of-all",
    "small-and-read",
    "large-and-read",
    "replaced-and-read",
    "edited-in-place",
    "new-and-open",
    "renamed-from-here",
    "renamed-to-there",
];
const CONTENTS: [&str; 9] = [
    "small",
    "large",
    "old",
    "replacement",
    "edit",
    "new",
    "renamed",
    "link target",
    "attribute",
];

fn needles() -> Vec<Needle> {
    let names = NAMES.map(|name| (format!("the name {name}"), name.into()));
    let contents = CONTENTS.map(|what| (format!("the content of {what}"), marker(what)));
    names.into_iter().chain(contents).collect()
}

/// Secrets in a mount, some of them open.
struct Secrets {
    at: PathBuf,
    open: Vec<File>,
}

impl Secrets {
    /// Written, read back, replaced, renamed and left open in every way there is.
    fn in_use(point: &Path, large: usize) -> Self {
        let at = point.join(NAMES[0]);
        fs::create_dir(&at).expect("made");
        let write = |name: &str, what: &str, size| {
            fs::write(at.join(name), content(what, size)).expect("written");
        };
        write(NAMES[1], "small", 40);
        write(NAMES[2], "large", large);
        write(NAMES[3], "old", 3000);
        write(NAMES[4], "old", 3000);
        write(NAMES[6], "renamed", 100_000);
        fs::rename(at.join(NAMES[6]), at.join(NAMES[7])).expect("renamed");
        symlink(
            String::from_utf8(marker("link target")).expect("UTF-8"),
            at.join("link"),
        )
        .expect("linked");
        let value = marker("attribute");
        // SAFETY: path, name and value outlive the call.
        sys(unsafe {
            libc::setxattr(
                c(at.join(NAMES[1])).as_ptr(),
                c"user.what".as_ptr(),
                value.as_ptr().cast(),
                value.len(),
                0,
            )
        })
        .expect("set");
        let mut secrets = Self { at, open: vec![] };
        for name in [NAMES[1], NAMES[2], NAMES[3], NAMES[7]] {
            let mut file = File::open(secrets.at.join(name)).expect("opened");
            // To the end, so that readers of pieces hold the last.
            std::io::copy(&mut file, &mut std::io::sink()).expect("read");
            file.read_at(&mut [0; 100], 0).expect("read");
            secrets.open.push(file);
        }
        let draft = |options: &mut OpenOptions, name: &str, what: &str| {
            let file = options.open(secrets.at.join(name)).expect("opened");
            file.write_all_at(&content(what, 200_000), 0)
                .expect("written");
            file
        };
        let opened = [
            draft(
                OpenOptions::new().write(true).truncate(true),
                NAMES[3],
                "replacement",
            ),
            draft(OpenOptions::new().read(true).write(true), NAMES[4], "edit"),
            draft(
                OpenOptions::new().write(true).create_new(true),
                NAMES[5],
                "new",
            ),
        ];
        secrets.open.extend(opened);
        let names = fs::read_dir(&secrets.at).expect("listed");
        assert_eq!(names.count(), 7);
        fs::read_link(secrets.at.join("link")).expect("read");
        secrets
    }
}

/// The program, as an ordinary user runs it who may lock little memory.
fn as_nobody(place: &Place) -> Command {
    let program = place.path().join("secretfs");
    let mut command = Command::new(program);
    for (name, value) in place.command().get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.uid(NOBODY).gid(NOBODY);
    limited(&mut command, Resource::RLIMIT_MEMLOCK, LOCKABLE);
    command
}

/// A place with a vault of an ordinary user.
fn place_of_nobody() -> Place {
    let place = Place::new();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).expect("opened");
    fs::copy(PROGRAM, place.path().join("secretfs")).expect("copied");
    for path in [place.path(), &place.point()] {
        chown(path, Some(NOBODY), Some(NOBODY)).expect("given away");
    }
    let made = as_nobody(&place).arg("init").arg(place.vault()).output();
    Ran(made.expect("it runs")).succeeded();
    place
}

/// Serves it. The mount itself is made by root and passed on, so that the daemon never had any
/// privilege and has no helper.
fn serve_as_nobody(place: &Place, prepare: impl FnOnce(&mut Command)) -> Server {
    let mut device = File::options();
    let device = device.read(true).write(true).open("/dev/fuse");
    let fd = device.as_ref().expect("/dev/fuse").as_raw_fd();
    let data =
        format!("fd={fd},rootmode=40000,user_id={NOBODY},group_id={NOBODY},default_permissions");
    nix::mount::mount(
        Some("test"),
        &place.point(),
        Some("fuse.secretfs"),
        nix::mount::MsFlags::MS_NODEV | nix::mount::MsFlags::MS_NOSUID,
        Some(data.as_str()),
    )
    .expect("mounted");
    let mut command = as_nobody(place);
    command
        .arg("mount")
        .arg(place.vault())
        .args(["/dev/fd/77", "-f"]);
    prepare(&mut command);
    // SAFETY: dup2 may be called between fork and exec.
    unsafe {
        command.pre_exec(move || sys(libc::dup2(fd, 77)).map(drop));
    }
    Server::start(command)
}

/// Who serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Root,
    Nobody,
}

/// A mounted vault, and who serves it.
struct Mount {
    place: Place,
    server: Server,
    who: Who,
}

impl Mount {
    fn of(who: Who) -> Self {
        Self::prepared(who, |_| ())
    }

    fn prepared(who: Who, prepare: impl FnOnce(&mut Command)) -> Self {
        let (place, server) = match who {
            Who::Nobody => {
                let place = place_of_nobody();
                let server = serve_as_nobody(&place, prepare);
                (place, server)
            }
            Who::Root => {
                let place = Place::with_vault();
                let mut command = place.command();
                command.arg("mount").arg(place.vault()).arg(place.point());
                command.arg("-f");
                prepare(&mut command);
                let server = Server::start(command);
                (place, server)
            }
        };
        Self { place, server, who }
    }

    /// What `call` returns when the owner of the mount makes it.
    fn with<T: Send>(&self, call: impl FnOnce(&Path) -> T + Send) -> T {
        match self.who {
            Who::Root => call(&self.place.point()),
            Who::Nobody => as_user(NOBODY, &[], || call(&self.place.point())),
        }
    }

    fn status(&self) -> serde_json::Value {
        self.with(status)
    }

    fn keys(&self) -> Vec<Needle> {
        self.with(|_| crate::support::keys::of(&self.place))
    }

    /// Looks for everything in the memory of the daemon.
    fn search(&self) -> Found {
        let mut all = needles();
        all.extend(self.keys());
        memory::search(self.server.pid(), &all)
    }

    /// Ends the mount, which must be sound.
    fn ended(self) -> (Place, String) {
        detach(&self.place.point());
        let (code, log) = self.server.ended(SOON);
        assert_eq!(code, Some(0), "{log}");
        let checked = match self.who {
            Who::Root => self.place.command(),
            Who::Nobody => as_nobody(&self.place),
        }
        .arg("check")
        .arg(self.place.vault())
        .output();
        Ran(checked.expect("it runs")).succeeded();
        (self.place, log)
    }
}

/// Everything that is on disk.
fn files(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let (mut left, mut found) = (vec![directory.to_owned()], Vec::new());
    while let Some(path) = left.pop() {
        let kind = fs::symlink_metadata(&path).expect("there");
        if kind.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        } else if kind.is_file() {
            found.push((path.clone(), fs::read(&path).expect("read")));
        }
    }
    found
}

#[test]
fn nothing_that_was_written_is_in_any_file_of_vault_anchor_key_or_log() {
    let place = Place::with_vault();
    let log = place.path().join("log");
    let log_file = format!("log-file={},log-level=trace", log.display());
    let mounted = |options: &str| place.mount(&["-o", &log_file, "-o", options]).succeeded();
    let unmount = || {
        place
            .run(["umount".as_ref(), place.point().as_os_str()])
            .succeeded();
        wait_for("the daemon's end", SOON, || place.daemons().is_empty());
    };
    let nowhere = |stage: &str, keys: &[Needle]| {
        let mut seen = Vec::new();
        for directory in ["v", "kms", "anchors", "log", "config", "data", "state"] {
            let path = place.path().join(directory);
            if !path.exists() {
                continue;
            }
            for (path, bytes) in files(&path) {
                for (what, needle) in needles().iter().chain(keys) {
                    let times = memory::count_of(&bytes, needle);
                    assert_eq!(times, 0, "{stage}: {what} in {}", path.display());
                }
                seen.push(path.file_name().expect("a name").to_owned());
            }
        }
        seen
    };
    mounted("rw");
    let secrets = Secrets::in_use(&place.point(), 4 << 20);
    let keys = crate::support::keys::of(&place);
    // So the needles are what a look at the mount finds.
    let small = fs::read(secrets.at.join(NAMES[1])).expect("read");
    assert_eq!(memory::count_of(&small, &marker("small")), 1);
    let seen = nowhere("in use", &keys);
    for name in ["vault.db", "vault.db-wal", "vault.db-shm", "lock", "log"] {
        assert!(seen.iter().any(|seen| seen == name), "{name}: {seen:?}");
    }
    assert!(seen.len() >= 7, "{seen:?}");
    drop(secrets);
    // What fails is named in the log by number.
    for options in ["max-secret-size=64k", "ro"] {
        unmount();
        mounted(options);
        let path = place.point().join(NAMES[0]).join(NAMES[6]);
        let refused =
            File::create(path).and_then(|file| file.write_all_at(&marker("new"), 100_000));
        assert!(refused.is_err(), "{options}");
        fs::read(place.point().join(NAMES[0]).join(NAMES[3])).expect("read");
        nowhere(options, &keys);
    }
    unmount();
    nowhere("unmounted", &keys);
    place
        .run(["check".as_ref(), place.vault().as_os_str()])
        .succeeded();
}

#[test]
fn neither_command_line_nor_environment_shows_anything() {
    let mount = Mount::of(Who::Root);
    let secrets = mount.with(|point| Secrets::in_use(point, 1 << 20));
    let pid = mount.server.pid();
    for file in ["cmdline", "environ", "comm", "maps", "status"] {
        let shown = fs::read(format!("/proc/{pid}/{file}")).expect(file);
        assert!(!shown.is_empty());
        for (what, needle) in needles().into_iter().chain(mount.keys()) {
            assert_eq!(memory::count_of(&shown, &needle), 0, "{what} in {file}");
        }
    }
    drop(secrets);
    mount.ended();
}

/// Core files as a machine writes them that has them switched on.
#[test]
fn a_daemon_that_crashes_leaves_no_core_file() {
    let cores = tempfile::tempdir().expect("a directory");
    fs::set_permissions(cores.path(), fs::Permissions::from_mode(0o777)).expect("opened");
    let _pattern = CoreFiles::go_to(cores.path());
    let with_cores = |command: &mut Command| {
        command.current_dir(cores.path());
        limited(command, Resource::RLIMIT_CORE, RLIM_INFINITY);
    };
    let cores_left = || {
        let left = fs::read_dir(cores.path()).expect("a directory").flatten();
        left.map(|core| core.path()).collect::<Vec<_>>()
    };
    // So this machine would write one.
    for who in [0, NOBODY] {
        let mut other = Command::new("sleep");
        with_cores(other.arg("1000").uid(who).gid(who));
        let mut other = other.spawn().expect("it runs");
        kill(other.id() as i32, libc::SIGSEGV);
        other.wait().expect("it ended");
        let [core] = &cores_left()[..] else {
            panic!("not one core file: {:?}", cores_left());
        };
        fs::remove_file(core).expect("removed");
    }
    for who in [Who::Root, Who::Nobody] {
        for signal in [libc::SIGSEGV, libc::SIGABRT, libc::SIGBUS] {
            let mut mount = Mount::prepared(who, with_cores);
            let at = fs::read_link(format!("/proc/{}/cwd", mount.server.pid()));
            assert_eq!(at.expect("a directory"), cores.path());
            let secrets = mount.with(|point| Secrets::in_use(point, 100_000));
            // The runtime lets the first one pass and takes the next as it comes.
            wait_for("its end", SOON, || {
                mount.server.signal(signal);
                !mount.server.is_running()
            });
            drop(secrets);
            assert!(cores_left().is_empty(), "{who:?}, signal {signal}");
        }
    }
}

#[test]
fn the_user_who_runs_the_daemon_cannot_look_into_it() {
    needs(&["gdb", "gcore"]);
    let mount = Mount::prepared(Who::Nobody, traceable);
    let pid = mount.server.pid();
    // What a process may not be looked into belongs to root.
    assert_eq!(
        fs::metadata(format!("/proc/{pid}/mem"))
            .expect("there")
            .uid(),
        0
    );
    let denied = |what: &str, result: std::io::Result<()>| {
        let error = result.expect_err(what);
        assert!(
            matches!(error.raw_os_error(), Some(libc::EACCES | libc::EPERM)),
            "{what}: {error}"
        );
    };
    mount.with(|_| {
        for file in ["mem", "maps", "smaps", "environ", "auxv", "fd", "pagemap"] {
            let path = format!("/proc/{pid}/{file}");
            denied(
                file,
                fs::read(&path)
                    .map(drop)
                    .or_else(|error| match error.raw_os_error() {
                        Some(libc::EISDIR) => fs::read_dir(&path).map(drop),
                        _ => Err(error),
                    }),
            );
        }
        let (mut byte, at) = ([0_u8], PROGRAM.as_ptr());
        let local = libc::iovec {
            iov_base: byte.as_mut_ptr().cast(),
            iov_len: 1,
        };
        let remote = libc::iovec {
            iov_base: at.cast_mut().cast(),
            iov_len: 1,
        };
        // SAFETY: one byte of this process is written to; the other process's is none of ours.
        let read =
            unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
        denied("process_vm_readv", sys(read as i64).map(drop));
        // SAFETY: no memory of this process is involved.
        let attached = unsafe { libc::ptrace(libc::PTRACE_ATTACH, pid, 0, 0) };
        denied("ptrace", sys(attached).map(drop));
    });
    // The same user may look into any other process of theirs.
    let core = mount.place.path().join("core");
    let gcore = |pid: u32| {
        Command::new("gcore")
            .arg("-o")
            .arg(&core)
            .arg(pid.to_string())
            .current_dir("/")
            .uid(NOBODY)
            .gid(NOBODY)
            .output()
            .expect("gcore runs")
    };
    let mut other = Command::new("sleep");
    traceable(other.arg("1000").uid(NOBODY).gid(NOBODY));
    let mut other = other.spawn().expect("it runs");
    let (allowed, refused) = (gcore(other.id()), gcore(pid as u32));
    other.kill().expect("killed");
    other.wait().expect("ended");
    assert!(allowed.status.success(), "{allowed:?}");
    assert!(!refused.status.success(), "{refused:?}");
    let made = |pid: u32| core.with_extension(pid.to_string()).exists();
    assert!(made(other.id()) && !made(pid as u32));
    mount.ended();
}
