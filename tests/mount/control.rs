//! The control directory: who may command the keys, who sees what, and what it costs.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::time::Duration;

use crate::support::keys::local_kms;
use crate::support::layer::{Layer, caller_as};
use crate::support::process::{OnFailure, PROGRAM, Place, Ran, Server, status, wait_for};
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

/// The names of members.
fn members(value: &Value) -> Vec<&str> {
    let members = value.as_object().expect("an object").keys();
    members.map(String::as_str).collect()
}

const PUBLIC: [&str; 8] = [
    "format",
    "integrity",
    "integrity_since",
    "integrity_since_time",
    "mode",
    "program",
    "state",
    "view",
];

#[test]
fn who_may_not_command_sees_the_public_part_of_status_alone() {
    let place = Place::with_vault();
    let server = shared(&place, &[]);
    let text_for = |uid: Option<u32>| {
        let read = || {
            let told = fs::metadata(file(&place, "status")).expect("stat").len();
            let text = fs::read_to_string(file(&place, "status")).expect("readable");
            assert_eq!(told, text.len() as u64);
            text
        };
        match uid {
            Some(uid) => as_user(uid, &[], read),
            None => read(),
        }
    };
    // By turns: what the kernel keeps of one is not told to the other.
    for _ in 0..20 {
        let public = text_for(Some(BOB));
        let parsed: Value = serde_json::from_str(&public).expect("JSON");
        assert_eq!(members(&parsed), PUBLIC, "{public}");
        assert_eq!(parsed["state"], "unlocked");
        assert_eq!(parsed["integrity"], "verified");
        for hidden in [
            place.path().to_str().expect("UTF-8"),
            "kms",
            "pid",
            "arn:",
            "\"locked\"",
        ] {
            assert!(!public.contains(hidden), "{hidden}: {public}");
        }
        let full: Value = serde_json::from_str(&text_for(None)).expect("JSON");
        assert_eq!(full["view"], "full");
        assert!(full["pid"].is_number() && full["mountpoint"].is_string());
        for name in PUBLIC.into_iter().filter(|name| *name != "view") {
            assert_eq!(full[name], parsed[name], "{name}");
        }
    }
    // Together, too.
    std::thread::scope(|scope| {
        for uid in [None, Some(ALICE), Some(BOB)] {
            scope.spawn(move || (0..200).for_each(|_| drop(text_for(uid))));
        }
    });
    // The command prints what there is.
    let program = place.path().join("program");
    fs::copy(PROGRAM, &program).expect("copied");
    let mut asked = Command::new("setpriv");
    asked.args(["--reuid", "4002", "--regid", "4002", "--clear-groups"]);
    asked.arg(&program).arg("status").arg(place.point());
    let told = Ran(asked.output().expect("setpriv runs")).succeeded();
    assert!(told.stdout().contains("integrity: verified"));
    assert!(told.stdout().contains("view: public"));
    ended(server);
}

#[test]
fn what_is_wrong_is_told_to_everybody_in_a_word_and_what_it_is_to_who_may_command() {
    let place = Place::with_vault();
    let server = shared(&place, &[]);
    let elsewhere = place.path().join("elsewhere");
    fs::rename(place.vault(), &elsewhere).expect("moved");
    let full = status(&place.point())["integrity"].clone();
    let full = full.as_str().expect("words");
    assert!(
        full.starts_with("failed: ") && full.contains(place.vault().to_str().expect("UTF-8")),
        "{full}"
    );
    let public = as_user(BOB, &[], || status(&place.point()));
    assert_eq!(public["integrity"], "failed");
    fs::rename(&elsewhere, place.vault()).expect("back");
    ended(server);
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

/// What is the same for a while.
fn settled(figure: &dyn Fn() -> u64) -> u64 {
    let mut last = (figure(), 0);
    while last.1 < 20 {
        std::thread::sleep(Duration::from_millis(10));
        let now = figure();
        last = (now, if now == last.0 { last.1 + 1 } else { 0 });
    }
    last.0
}

#[test]
fn control_files_are_bounded_for_each_user_and_nobody_else_is_refused() {
    let place = Place::with_vault();
    let server = shared(&place, &[]);
    let memory = || {
        let text = fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("alive");
        let line = text.lines().find(|line| line.starts_with("VmRSS:"));
        let digits = line.expect("told").split_ascii_whitespace().nth(1);
        digits.expect("a number").parse::<u64>().expect("a number") << 10
    };
    let open = |name: &str| File::open(file(&place, name));
    let limit = nix::sys::resource::Resource::RLIMIT_NOFILE;
    let (_, most) = nix::sys::resource::getrlimit(limit).expect("a limit");
    nix::sys::resource::setrlimit(limit, most, most).expect("raised");
    for (uid, name, many) in [
        (0, "status", 1_500),
        (0, "audit", 20_000),
        (0, "control", 20_000),
        (BOB, "status", 20_000),
    ] {
        // What the daemon maps once, as the stack of a thread that it starts meanwhile, is in memory as a
        // whole, and does not grow with what is open: before the second time, it is there.
        let few: Vec<_> = (0..100)
            .map(|_| open(name).expect("one of a few"))
            .collect();
        drop(few);
        let before = settled(&memory);
        let as_them = |call: &(dyn Fn() -> Vec<i32> + Sync)| match uid {
            0 => call(),
            uid => as_user(uid, &[], call),
        };
        let held = std::sync::Mutex::new(Vec::new());
        let refused = as_them(&|| {
            let mut held = held.lock().expect("whole");
            let mut refused = Vec::new();
            for _ in 0..many {
                match open(name) {
                    Ok(file) => held.push(file),
                    Err(error) => refused.push(error.raw_os_error().expect("an errno")),
                }
            }
            refused
        });
        assert_eq!(refused.len(), many - 1024, "{name} by {uid}");
        assert!(refused.iter().all(|errno| *errno == libc::EMFILE));
        let grown = memory().saturating_sub(before);
        assert!(grown < 2 << 20, "{grown} bytes for {name} by {uid}");
        // Somebody else.
        as_user(ALICE, &[], || drop(open("status").expect("not refused")));
        if uid != 0 {
            command(&place.point(), "rotate").expect("not refused");
            wait_for_the_end(&place.point());
        }
        held.into_inner().expect("whole").clear();
        crate::support::process::wait_for("what was closed to be gone", SOON, || {
            let opened = as_them(&|| vec![errno(open(name))]);
            opened == [0]
        });
    }
    let log = ended(server);
    let told = "has as many open as one user may";
    assert!(log.contains(told), "{log}");
}

#[test]
fn stat_of_the_history_reads_it_once_until_it_grows() {
    // Fail points are those of the whole process.
    let scenario = fail::FailScenario::setup();
    let layer = Layer::new();
    let fs = layer.open();
    let root = caller_as(1, 0);
    let audit = fs.lookup_as(root, 1 << 63, b"audit").expect("there");
    let reads = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counted = std::sync::Arc::clone(&reads);
    fail::cfg_callback("read-history", move || {
        counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    })
    .expect("a fail point");
    let stat = || {
        for _ in 0..100 {
            let found = fs.getattr_as(root, audit.ino, None).expect("there");
            let opened = fs.open_as(root, audit.ino, libc::O_RDONLY).expect("opened");
            assert!(found.size >= audit.size);
            fs.release(opened);
        }
        reads.swap(0, std::sync::atomic::Ordering::SeqCst)
    };
    assert_eq!(stat(), 0);
    fs.0.vault()
        .begin(&secretfs::vault::Request::Rotate)
        .expect("begun");
    let longer = fs.lookup_as(root, 1 << 63, b"audit").expect("there");
    assert!(longer.size > audit.size);
    scenario.teardown();
}

#[test]
fn what_stat_tells_is_what_is_then_read_and_nothing_stands_behind_it() {
    crate::support::tree::needs(&["python3"]);
    let place = Place::with_vault();
    let server = shared(&place, &[]);
    command(&place.point(), "nonsense").expect_err("refused");
    let script = r#"
import json, os, subprocess, sys
def run(*args): return subprocess.run(args, check=True, capture_output=True).stdout
for name in sys.argv[1:]:
    for n in range(20):
        told = int(run("stat", "-c", "%s", name))
        assert told == len(run("cat", name)), (name, n)
        assert os.stat(name).st_size == len(open(name, "rb").read()), name
        with open(name, "rb") as f: assert os.fstat(f.fileno()).st_size == len(f.read()), name
        text = open(name).read()
        assert int(run("wc", "-c", name).split()[0]) == len(run("dd", "status=none", "if=" + name)), name
        assert text == text.rstrip() + "\n" and "  \n" not in text, name
        run("cp", name, "/dev/null")
json.loads(open(sys.argv[1]).read())
"#;
    let python = |program: &mut Command, names: &[&str]| {
        let names = names.iter().map(|name| file(&place, name));
        let output = program.args(["-c", script]).args(names).output();
        let ran = Ran(output.expect("python3 runs"));
        assert!(ran.0.status.success(), "{}", ran.stderr());
    };
    python(
        &mut Command::new("/usr/bin/python3"),
        &["status", "control", "audit"],
    );
    let mut by_bob = Command::new("setpriv");
    by_bob.args(["--reuid", "4002", "--regid", "4002", "--clear-groups"]);
    python(by_bob.arg("/usr/bin/python3"), &["status"]);
    ended(server);
}

#[test]
fn what_was_told_is_not_shown_once_a_command_has_changed_it() {
    let place = Place::with_vault();
    let server = place.serve(&[]);
    for round in 0..5 {
        let before = fs::metadata(file(&place, "control")).expect("stat").len();
        let text = ["nonsense", "rotate now"][round % 2];
        command(&place.point(), text).expect_err("refused");
        let said = fs::read_to_string(file(&place, "control")).expect("readable");
        assert_ne!(said.len() as u64, before, "{said}");
        // Told, changed over the socket, and read.
        fs::metadata(file(&place, "control")).expect("stat");
        ask(&place.vault(), "control rewrap nonsense");
        let said = fs::read_to_string(file(&place, "control")).expect("readable");
        assert!(said.contains("nonsense"), "{said}");
    }
    ended(server);
}

/// What stands beside the seconds is the same time.
fn check_times(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                let beside = members.get(&format!("{name}_time"));
                match (name.as_str(), member.as_i64(), beside) {
                    (_, Some(seconds), Some(time)) => {
                        let time = time.as_str().expect("text");
                        let date = Command::new("date")
                            .args(["-u", "-d", time, "+%s"])
                            .output()
                            .expect("date runs");
                        let date = String::from_utf8_lossy(&date.stdout).trim().to_owned();
                        assert_eq!(date, seconds.to_string(), "{name}: {time}");
                        assert_eq!(time.len(), "2026-11-30T06:09:07Z".len());
                        found.push(name.clone());
                    }
                    ("at" | "created" | "since" | "started" | "retired", Some(_), None) => {
                        panic!("no date beside {name}")
                    }
                    _ => check_times(member, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| check_times(item, found)),
        _ => {}
    }
}

#[test]
fn every_time_is_told_in_seconds_and_as_a_date() {
    let place = Place::with_vault();
    let server = place.serve(&[]);
    command(&place.point(), "rotate").expect("begun");
    let now = wait_for_the_end(&place.point());
    let mut found = Vec::new();
    check_times(&now, &mut found);
    for name in ["integrity_since", "created", "retired", "at"] {
        assert!(found.iter().any(|n| n == name), "{name}: {now:#}");
    }
    assert!(now["last_rotations_time"]["rotate"].is_string(), "{now:#}");
    let history = fs::read_to_string(file(&place, "audit")).expect("readable");
    let mut dates = Vec::new();
    for line in history.lines() {
        check_times(&serde_json::from_str(line).expect("JSON"), &mut dates);
    }
    assert_eq!(dates.len(), history.lines().count());
    let said = fs::read_to_string(file(&place, "control")).expect("readable");
    let mut words = said.split(' ');
    let (at, time) = (
        words.next().expect("seconds"),
        words.next().expect("a date"),
    );
    let both = serde_json::json!({"at": at.parse::<i64>().expect("a number"), "at_time": time});
    check_times(&both, &mut dates);
    ended(server);
}

#[test]
fn the_log_as_json_shows_values_as_they_are() {
    let place = Place::with_vault();
    let server = place.serve(&["-o", "log-format=json,log-level=trace"]);
    fs::write(place.point().join("a"), "s3cret").expect("written");
    command(&place.point(), "nonsense").expect_err("refused");
    command(&place.point(), "rewrap local-kms://other").expect_err("refused");
    command(&place.point(), "rotate").expect("begun");
    wait_for_the_end(&place.point());
    let log = ended(server);
    let mut mounted = false;
    for line in log.lines() {
        let event: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        for (name, value) in event.as_object().expect("an object") {
            let text = value.as_str().unwrap_or_default();
            let debug = ["Some(", "None", "Ok(", "Err(", "{ ", "\""];
            assert!(!debug.iter().any(|form| text.contains(form)), "{line}");
            // A word with a capital is the name of something in the program.
            let is_name = text.chars().next().is_some_and(char::is_uppercase);
            let may_be = ["level", "message"].contains(&name.as_str());
            assert!(may_be || !is_name, "{line}");
        }
        if event["message"] == "mounted" {
            mounted = true;
            assert!(["all", "arena", "none"].contains(&event["locked"].as_str().expect("text")));
        }
    }
    assert!(mounted, "{log}");
}

/// A passed descriptor of a file shows what its opener may see, and no more is told of it.
#[test]
fn a_file_that_is_open_can_be_read_by_whom_it_was_passed_on_to() {
    let place = Place::with_vault();
    let server = shared(&place, &[]);
    let mut status = File::open(file(&place, "status")).expect("opened");
    let text = as_user(BOB, &[], || {
        let mut text = String::new();
        status.read_to_string(&mut text).expect("readable");
        text
    });
    assert!(text.contains("\"view\": \"full\""), "{text}");
    // It is not his to open again; by its name he opens what he may see.
    let again = format!("/proc/self/fd/{}", status.as_raw_fd());
    let refused = as_user(BOB, &[], || {
        fs::read_to_string(&again).expect_err("not his")
    });
    assert_eq!(refused.raw_os_error(), Some(libc::EACCES));
    drop(status);
    ended(server);
}

/// An overlay asks for everybody as who has mounted it: the mode keeps others out.
#[test]
fn who_may_not_command_sees_no_more_through_an_overlay() {
    let place = Place::with_vault();
    let server = shared(&place, &[]);
    let over = ["upper", "work", "over"].map(|name| place.path().join(name));
    for directory in &over {
        fs::create_dir(directory).expect("made");
    }
    let [upper, work, over] = over;
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        place.point().display(),
        upper.display(),
        work.display()
    );
    let options = ["-t", "overlay", "overlay", "-o", &options].map(std::ffi::OsStr::new);
    crate::support::process::system("mount", &[&options[..], &[over.as_os_str()]].concat());
    let status = over.join(".secretfs/status");
    let other = as_user(BOB, &[], || fs::read_to_string(&status));
    let own = fs::read_to_string(&status).expect("root's");
    crate::support::process::system("umount", &[over.as_os_str()]);
    assert!(own.contains("\"view\": \"full\""), "{own}");
    let seen = other.unwrap_or_default();
    assert!(!seen.contains("full"), "{seen}");
    ended(server);
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

/// A history grows for as long as there is a vault. Here less is let in than it usually is.
#[test]
fn a_history_that_is_longer_than_all_texts_may_be_is_told_of_and_read_whatever_else_is_open() {
    const MOST: u64 = 6000;
    let place = Place::with_vault();
    let server = serve_with(&place, &format!("control-bytes=return({MOST})"));
    let (point, audit) = (place.point(), file(&place, "audit"));
    let length = || fs::metadata(&audit).expect("stat").len();
    let rewrap = || {
        command(&point, "rewrap").expect("begun");
        wait_for_the_end(&point);
    };
    while length() <= MOST {
        rewrap();
    }
    let held = File::open(file(&place, "status")).expect("opened");
    let told = length();
    assert!(told > MOST);
    let mut open = File::open(&audit).expect("opened beside another");
    assert_eq!(open.metadata().expect("fstat").len(), told);
    let mut text = String::new();
    open.read_to_string(&mut text).expect("readable");
    assert_eq!(text.len() as u64, told);
    // Two long ones are too many for one user, which is told as programs know it.
    rewrap();
    assert!(length() > told);
    assert_eq!(errno(File::open(&audit)), libc::EMFILE);
    drop(open);
    wait_for("what was closed to be gone", SOON, || {
        File::open(&audit).is_ok()
    });
    drop(held);
    let log = ended(server);
    assert!(log.contains("has as many open as one user may"), "{log}");
}

/// Where a fail point holds whoever comes there.
#[derive(Default)]
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default)]
struct GateState {
    somebody_is_there: bool,
    is_open: bool,
}

impl Gate {
    fn wait(&self) {
        let mut state = self.state.lock().expect("whole");
        state.somebody_is_there = true;
        while !state.is_open {
            state = self.changed.wait(state).expect("whole");
        }
    }

    fn open(&self) {
        self.state.lock().expect("whole").is_open = true;
        self.changed.notify_all();
    }
}

/// While the anchor is stored, which is two syncs, `status` waits for what it is going to be.
#[test]
fn who_looks_at_status_while_the_anchor_is_stored_keeps_nobody_else_waiting() {
    // Fail points are those of the whole process.
    let scenario = fail::FailScenario::setup();
    let layer = Layer::new();
    let fs = layer.open();
    let gate = Arc::new(Gate::default());
    let _let_go = OnFailure(|| gate.open());
    let held = Arc::clone(&gate);
    fail::cfg_callback("anchor-stores", move || held.wait()).expect("a fail point");
    // Something to be remembered.
    let (_, fh) = fs.create(1, b"f", 0o644);
    fs.write(fh, 0, b"s3cret").expect("written");
    fs.fsync(fh).expect("stored");
    wait_for("the anchor to be stored", SOON, || {
        gate.state.lock().expect("whole").somebody_is_there
    });
    let (tell, told) = mpsc::channel();
    let (root, bob) = (caller_as(1, 0), caller_as(2, BOB));
    let asked = Arc::clone(&fs.0);
    // All of them come to one thread, as requests do.
    let requests = std::thread::spawn(move || {
        for (who, by, directory, name) in [
            ("root's status", root, 1 << 63, &b"status"[..]),
            ("root's history", root, 1 << 63, b"audit"),
            ("bob's status", bob, 1 << 63, b"status"),
            ("bob's secret", bob, 1, b"f"),
        ] {
            let tell = tell.clone();
            let done: secretfs::fs::Done<secretfs::fs::Attr> = Box::new(move |attr| {
                let size = attr.expect("there").size;
                tell.send((who, size)).expect("heard");
            });
            asked.lookup_for(by, directory, name, done);
        }
    });
    let next = || {
        told.recv_timeout(Duration::from_secs(20))
            .expect("answered")
    };
    let mut answered = [next().0, next().0];
    answered.sort_unstable();
    assert_eq!(answered, ["bob's secret", "bob's status"]);
    requests.join().expect("nothing keeps it");
    gate.open();
    let (who, size) = next();
    assert_eq!((who, size > 1000), ("root's status", true));
    assert_eq!(next().0, "root's history");
    fail::remove("anchor-stores");
    fs.release(fh);
    fs.finish();
    scenario.teardown();
}

/// The names of all members, those of members behind a dot.
fn all_members(of: &str, value: &Value, found: &mut std::collections::BTreeSet<String>) {
    match value {
        // Kinds of rotations are its names, and the newest event has members of its own.
        _ if ["last_rotations", "last_event"].contains(&of) => {}
        Value::Object(members) => {
            for (name, member) in members {
                let is_date = |of: &str| members.contains_key(of);
                if name.strip_suffix("_time").is_some_and(is_date) {
                    continue;
                }
                let name = match of {
                    "" => name.clone(),
                    of => format!("{of}.{name}"),
                };
                all_members(&name, member, found);
                found.insert(name);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| all_members(of, item, found)),
        _ => {}
    }
}

#[test]
fn every_member_of_status_stands_in_its_man_page() {
    let place = Place::with_vault();
    let mut found = std::collections::BTreeSet::new();
    let shown = |path: &Path| -> Value {
        let ran = place.run(["status".as_ref(), path.as_os_str(), "--json".as_ref()]);
        serde_json::from_str(&ran.succeeded().stdout()).expect("JSON")
    };
    all_members("", &shown(&place.vault()), &mut found);
    // One rotation has ended, and one stays in its middle.
    let server = place.serve(&[]);
    command(&place.point(), "rotate").expect("begun");
    wait_for_the_end(&place.point());
    ended(server);
    let server = serve_with(&place, "migrate-before=pause");
    command(&place.point(), "reencrypt").expect("begun");
    for path in [place.point(), place.vault()] {
        let now = shown(&path);
        assert!(now["rotation"].is_object(), "{now:#}");
        all_members("", &now, &mut found);
    }
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("man/secretfs-status.1");
    let page = fs::read_to_string(page).expect("a page");
    let table: Vec<&str> = page
        .lines()
        .skip_while(|line| *line != ".SH MEMBERS")
        .filter_map(|line| line.strip_prefix(".B "))
        .collect();
    for name in &found {
        assert!(table.contains(&name.as_str()), "{name} is not in the page");
    }
    for name in [
        "rotation.trouble",
        "held_for_writing_by.pid",
        "anchor.commit",
    ] {
        assert!(found.contains(name), "{found:?}");
    }
    drop(server);
}
