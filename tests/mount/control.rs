//! The control directory: who may command the keys, who sees what, and what it costs.

mod bounded;
mod shown;

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::support::keys::local_kms;
use crate::support::layer::{Layer, caller_as};
use crate::support::process::{PROGRAM, Place, Ran, Server, status};
use crate::support::rotating::{command, serve_with, wait_for_the_end};
use crate::support::socket::{ask, connect};
use crate::support::tree::{ALICE, BOB, as_user, errno, sys};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);
const NOBODY: u32 = 65534;
const SHARED: [&str; 2] = ["-o", "allow-other"];

fn open_to_all(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("opened");
}

/// A mount that all users reach, and its server.
fn shared(place: &Place, more: &[&str]) -> Server {
    open_to_all(place.path(), 0o755);
    place.serve(&[&SHARED[..], more].concat())
}

fn file(place: &Place, name: &str) -> PathBuf {
    place.point().join(".secretfs").join(name)
}

fn open_to_write(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

/// What a command has changed, if anything.
fn keys(place: &Place) -> (Value, Value) {
    let now = status(&place.point());
    (now["keyring_sequence"].clone(), now["generations"].clone())
}

fn ended(server: Server) -> String {
    server.signal(libc::SIGTERM);
    let (code, log) = server.ended(SOON);
    assert_eq!(code, Some(0), "{log}");
    log
}

const ATTACKS: [&str; 3] = [
    "rewrap --yes-leave-aws local-kms://default",
    "rotate",
    "reencrypt --retire-despite",
];

#[test]
fn who_owns_the_top_directory_commands_nothing_and_sees_no_more_than_others() {
    for by_init in [true, false] {
        let place = Place::new();
        let vault = place.vault();
        let owner = ["--uid", "65534", "--gid", "65534"];
        let owner = owner.map(std::ffi::OsStr::new);
        let mut init = vec!["init".as_ref(), vault.as_os_str()];
        init.extend(owner.iter().filter(|_| by_init));
        place.run(init).succeeded();
        let server = shared(&place, &[]);
        if !by_init {
            std::os::unix::fs::chown(place.point(), Some(NOBODY), Some(NOBODY)).expect("chown");
        }
        assert_eq!(fs::metadata(place.point()).expect("stat").uid(), NOBODY);
        let before = keys(&place);
        for name in ["control", "audit", "status"] {
            let found = fs::metadata(file(&place, name)).expect("stat");
            assert_eq!((found.uid(), found.gid()), (0, 0), "{name}");
        }
        let mode = fs::metadata(file(&place, "control")).expect("stat").mode();
        assert_eq!(mode & 0o7777, 0o600);
        as_user(NOBODY, &[], || {
            for attack in ATTACKS {
                let written = fs::write(file(&place, "control"), attack);
                assert_eq!(errno(written), libc::EACCES, "{attack}");
            }
            for name in ["control", "audit"] {
                assert_eq!(errno(File::open(file(&place, name))), libc::EACCES);
                let found = fs::metadata(file(&place, name)).expect("stat");
                assert_eq!((found.uid(), found.len()), (0, 0), "{name}");
                let mode = fs::set_permissions(file(&place, name), Permissions::from_mode(0o666));
                assert_eq!(errno(mode), libc::EPERM, "{name}");
            }
            assert_eq!(status(&place.point())["view"], "public");
        });
        let vault = place.vault();
        for what in ["rotate", "rewrap"] {
            let mut asked = Command::new("setpriv");
            asked.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
            let program = place.path().join("program");
            if !program.exists() {
                fs::copy(PROGRAM, &program).expect("copied");
            }
            asked.arg(program).arg(what).arg(place.point());
            let told = Ran(asked.output().expect("setpriv runs"));
            told.failed(1, "only root, the user of its daemon");
        }
        assert_eq!(keys(&place), before);
        // The owner of the daemon does.
        command(&place.point(), "rotate").expect("begun");
        assert_eq!(wait_for_the_end(&place.point())["active_generation"], 2);
        ended(server);
        place.run(["check".as_ref(), vault.as_os_str()]).succeeded();
    }
}

#[test]
fn a_descriptor_that_is_passed_on_commands_nothing() {
    let place = Place::with_vault();
    let server = shared(&place, &[]);
    let before = keys(&place);
    let control = open_to_write(&file(&place, "control")).expect("root may");
    let by_path = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(file(&place, "control"))
        .expect("root may");
    as_user(NOBODY, &[], || {
        for attack in ATTACKS {
            assert_eq!(errno((&control).write(attack.as_bytes())), libc::EPERM);
        }
        let again = format!("/proc/self/fd/{}", by_path.as_raw_fd());
        assert_eq!(errno(open_to_write(Path::new(&again))), libc::EACCES);
    });
    // It is the writer who counts, as he is when he writes.
    assert_eq!(keys(&place), before);
    (&control).write_all(b"rotate").expect("root may");
    assert_eq!(wait_for_the_end(&place.point())["active_generation"], 2);
    drop((control, by_path));
    let log = ended(server);
    let told = log
        .lines()
        .find(|line| line.contains("refused a command to .secretfs/control"));
    let told = told.expect("it is logged");
    assert!(
        told.contains("user 65534") && told.contains("user 0 has opened"),
        "{told}"
    );
}

#[test]
fn what_is_written_through_a_mapping_commands_nothing() {
    let place = Place::with_vault();
    let server = shared(&place, &[]);
    let before = keys(&place);
    let control = open_to_write(&file(&place, "control")).expect("root may");
    let length = control.metadata().expect("stat").len() as usize;
    // The kernel writes pages back in nobody's name, which looks like root's.
    let outcome = as_user(NOBODY, &[], || {
        // SAFETY: the mapping is used within its length only, and unmapped below.
        unsafe {
            let at = libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                control.as_raw_fd(),
                0,
            );
            assert_ne!(at, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
            std::ptr::write_bytes(at.cast::<u8>(), b' ', length);
            std::ptr::copy_nonoverlapping(b"rotate".as_ptr(), at.cast(), 6);
            let synced = sys(libc::msync(at, length, libc::MS_SYNC));
            libc::munmap(at, length);
            synced
        }
    });
    assert_ne!(errno(outcome), 0);
    drop(control);
    assert_eq!(keys(&place), before);
    assert_eq!(status(&place.point())["rotation"], Value::Null);
    let log = ended(server);
    assert!(log.contains("it came through a mapping"), "{log}");
}

#[test]
fn a_key_that_is_not_named_and_leaving_aws_are_refused_through_the_mount_and_taken_by_command() {
    let place = Place::with_vault();
    let kms = local_kms(&place);
    for name in ["b", "c"] {
        kms.create(name).expect("made");
    }
    let server = place.serve(&[]);
    let point = place.point();
    let before = keys(&place);
    for (text, why) in [
        ("rewrap local-kms://b", "local-kms://b, which"),
        (
            "rewrap local-kms://default local-kms://b",
            "local-kms://b, which",
        ),
        ("rewrap --yes-leave-aws local-kms://default", "leaving AWS"),
        ("rewrap --yes-leave-aws", "leaving AWS"),
    ] {
        assert_eq!(errno(command(&point, text)), libc::EPERM, "{text}");
        let said = fs::read_to_string(file(&place, "control")).expect("readable");
        assert!(said.contains(why), "{said}");
        let instead = format!("`secretfs rewrap {}", place.vault().display());
        assert!(said.contains(&instead), "{said}");
    }
    assert_eq!(keys(&place), before);
    // Under those that it has.
    command(&point, "rewrap local-kms://default").expect("begun");
    wait_for_the_end(&point);
    // What is refused is taken by the command, whichever path it is given.
    for (path, key) in [(&point, "b"), (&place.vault(), "c"), (&point, "default")] {
        let uri = format!("local-kms://{key}");
        let args = ["rewrap", path.to_str().expect("UTF-8"), "--wait"];
        let ran = place.run(args.into_iter().chain(["--kms-key", &uri]));
        assert!(ran.0.status.success(), "{}", ran.stderr());
        let now = status(&point);
        assert_eq!(now["generations"][0]["wraps"][0]["kms_key"], *uri);
    }
    // Where the vault was is no place to go back to.
    assert_eq!(errno(command(&point, "rewrap local-kms://b")), libc::EPERM);
    let log = ended(server);
    let told = log
        .lines()
        .filter(|line| line.contains("refused to user 0: ") && line.contains("secretfs rewrap"));
    assert_eq!(told.count(), 5, "{log}");

    // Keys that the mount names may be gone to.
    let named = "kms-key=local-kms://default,kms-key=local-kms://b";
    let server = place.serve(&["-o", named]);
    command(&point, "rewrap local-kms://b").expect("begun");
    let now = wait_for_the_end(&point);
    assert_eq!(
        now["generations"][0]["wraps"][0]["kms_key"],
        "local-kms://b"
    );
    assert_eq!(errno(command(&point, "rewrap local-kms://c")), libc::EPERM);
    ended(server);
}

#[test]
fn a_mount_that_only_calls_itself_one_of_a_vault_has_nothing_done_to_it() {
    let place = Place::with_vault();
    let kms = local_kms(&place);
    kms.create("b").expect("made");
    let server = place.serve(&[]);
    let (other, point) = (place.path().join("other"), place.path().join("p"));
    place.run(["init".as_ref(), other.as_os_str()]).succeeded();
    fs::create_dir(&point).expect("made");
    // It is served over a passed descriptor, and its mounter says what it is a mount of.
    let device = open_to_write(Path::new("/dev/fuse")).expect("/dev/fuse");
    let fd = device.as_raw_fd();
    let data = format!("fd={fd},rootmode=40000,user_id=0,group_id=0,default_permissions");
    nix::mount::mount(
        Some(&place.vault()),
        &point,
        Some("fuse.secretfs"),
        nix::mount::MsFlags::MS_NODEV | nix::mount::MsFlags::MS_NOSUID,
        Some(data.as_str()),
    )
    .expect("mounted");
    let mut serve = place.command();
    serve.arg("mount").arg(&other).args(["/dev/fd/77", "-f"]);
    // SAFETY: dup2 may be called between fork and exec.
    unsafe {
        std::os::unix::process::CommandExt::pre_exec(&mut serve, move || {
            sys(libc::dup2(fd, 77)).map(drop)
        });
    }
    let liar = Server::start(serve);
    let before = keys(&place);
    let path = point.to_str().expect("UTF-8");
    place
        .run(["rewrap", path, "--kms-key", "local-kms://b"])
        .failed(1, "local-kms://b, which");
    let ran = place.run(["rotate", path, "--wait"]);
    assert!(ran.0.status.success(), "{}", ran.stderr());
    assert_eq!(status(&point)["active_generation"], 2);
    assert_eq!(keys(&place), before);
    crate::support::process::detach(&point);
    drop(liar);
    ended(server);
}

#[test]
fn whom_control_uid_names_commands_known_keys_and_takes_the_vault_nowhere_else() {
    let place = Place::with_vault();
    local_kms(&place).create("b").expect("made");
    let server = shared(&place, &["-o", "control-uid=4001"]);
    let (point, vault) = (place.point(), place.vault());
    open_to_all(&vault, 0o755);
    as_user(ALICE, &[], || {
        assert_eq!(status(&point)["view"], "full");
        let found = fs::metadata(file(&place, "control")).expect("stat");
        assert_eq!((found.uid(), found.mode() & 0o7777), (ALICE, 0o600));
        command(&point, "rotate").expect("begun");
        assert_eq!(wait_for_the_end(&point)["active_generation"], 2);
        let history = fs::read_to_string(file(&place, "audit")).expect("readable");
        assert!(history.contains("change-finished"), "{history}");
        let asked = |question: &str| ask(&vault, question);
        assert_eq!(asked("control rewrap local-kms://default"), "begun");
        wait_for_the_end(&point);
        assert_eq!(asked("control reencrypt"), "begun");
        assert_eq!(wait_for_the_end(&point)["active_generation"], 3);
        for beyond in ["rewrap local-kms://b", "rewrap --yes-leave-aws"] {
            assert_eq!(errno(command(&point, beyond)), libc::EPERM);
            let refused = asked(&format!("control {beyond}"));
            assert_eq!(refused["refused"]["errno"], "EPERM", "{refused}");
        }
    });
    // To nobody else is anything different.
    for uid in [BOB, NOBODY] {
        as_user(uid, &[], || {
            assert_eq!(errno(command(&point, "rotate")), libc::EACCES);
            assert_eq!(status(&point)["view"], "public");
            let refused = ask(&vault, "control rotate");
            assert_eq!(refused["refused"]["errno"], "EPERM", "{refused}");
        });
    }
    let found = fs::metadata(file(&place, "control")).expect("stat");
    assert_eq!((found.uid(), found.mode() & 0o7777), (0, 0o600));
    command(&point, "rotate").expect("root goes on to");
    assert_eq!(wait_for_the_end(&point)["active_generation"], 4);
    // Both at once: neither is refused because of what the kernel was told for the other.
    std::thread::scope(|scope| {
        for uid in [0, ALICE] {
            let read = || (0..200).for_each(|_| drop(fs::read(file(&place, "audit")).expect("r")));
            scope.spawn(move || match uid {
                0 => read(),
                uid => as_user(uid, &[], read),
            });
        }
    });
    let log = ended(server);
    let told = |uid: u32| log.contains(&format!("refused at control.sock: user {uid}"));
    assert!(told(BOB) && told(NOBODY), "{log}");
    assert!(log.contains("refused to user 4001: leaving AWS"), "{log}");
    // Without the setting, the socket is for one user.
    let server = place.serve(&[]);
    let refused = as_user(ALICE, &[], || errno(connect(&vault)));
    assert_eq!(refused, libc::EACCES);
    ended(server);
}

#[test]
fn whom_the_kernel_cannot_name_commands_nothing() {
    // Fail points are those of the whole process.
    let scenario = fail::FailScenario::setup();
    let layer = Layer::new();
    let fs = layer.open();
    let control = fs.lookup(1 << 63, b"control");
    assert_eq!(control.map(drop), Err(secretfs::fs::Errno(libc::ENOENT)));
    let (root, unknown) = (caller_as(1, 0), caller_as(1, u32::MAX));
    let found = |by, name: &[u8]| fs.lookup_as(by, 1 << 63, name).expect("there");
    assert_ne!(found(root, b"control").ino, found(unknown, b"control").ino);
    for flags in [libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR] {
        for name in [&b"control"[..], b"audit"] {
            for whose in [root, unknown] {
                let refused = fs.open_as(unknown, found(whose, name).ino, flags);
                assert_eq!(refused.err(), Some(secretfs::fs::Errno(libc::EPERM)));
            }
        }
    }
    assert!(
        fs.open_as(root, found(root, b"control").ino, libc::O_RDWR)
            .is_ok()
    );
    let public = found(unknown, b"status").size;
    assert!(0 < public && public < found(root, b"status").size);
    scenario.teardown();
}

/// Whichever way somebody asks. The kernel, which looks at the mode of a file first, says EACCES.
#[test]
fn who_may_not_command_is_told_so_by_one_errno_and_one_exit_code() {
    let place = Place::with_vault();
    let server = shared(&place, &["-o", "control-uid=4001"]);
    let (point, vault) = (place.point(), place.vault());
    open_to_all(&vault, 0o755);
    let control = open_to_write(&file(&place, "control")).expect("root may");
    as_user(BOB, &[], || {
        assert_eq!(errno((&control).write(b"rotate")), libc::EPERM);
        for question in ["status", "audit", "control rotate"] {
            let refused = ask(&vault, question);
            assert_eq!(refused["refused"]["errno"], "EPERM", "{refused}");
        }
    });
    drop(control);
    let program = place.path().join("program");
    fs::copy(PROGRAM, &program).expect("copied");
    for path in [&point, &vault] {
        for what in ["rotate", "rewrap", "reencrypt"] {
            let mut asked = Command::new("setpriv");
            asked.args(["--reuid", "4002", "--regid", "4002", "--clear-groups"]);
            asked.arg(&program).arg(what).arg(path);
            Ran(asked.output().expect("setpriv runs")).failed(1, " may");
        }
    }
    assert_eq!(status(&point)["active_generation"], 1);
    // Who may is served by either path, though the files of the vault are not hers to open.
    for (path, generation) in [(&point, 2), (&vault, 3)] {
        let mut asked = Command::new("setpriv");
        asked.args(["--reuid", "4001", "--regid", "4001", "--clear-groups"]);
        asked.arg(&program).arg("rotate").arg(path).arg("--wait");
        let ran = Ran(asked.output().expect("setpriv runs"));
        assert!(ran.0.status.success(), "{}", ran.stderr());
        assert_eq!(status(&point)["active_generation"], generation);
    }
    ended(server);
}

#[test]
fn after_a_command_that_dies_whoever_asked_is_told_and_the_next_one_is_taken() {
    let place = Place::with_vault();
    let server = serve_with(&place, "command-begins=2*panic");
    let (point, vault) = (place.point(), place.vault());
    assert_eq!(errno(command(&point, "rotate")), libc::EIO);
    let said = fs::read_to_string(file(&place, "control")).expect("readable");
    assert!(said.contains("rotate: failed: it died"), "{said}");
    let refused = ask(&vault, "control rotate");
    assert_eq!(refused["refused"]["errno"], "EIO", "{refused}");
    assert_eq!(ask(&vault, "control rotate"), "begun");
    assert_eq!(wait_for_the_end(&point)["active_generation"], 2);
    let log = ended(server);
    assert!(log.contains("internal error at"), "{log}");
}
