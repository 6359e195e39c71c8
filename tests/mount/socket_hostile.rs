//! Who asks at `control.sock` without the right to, who answers there without it, and who asks
//! without end.

use std::fs::Permissions;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::support::process::{Place, status, wait_for};
use crate::support::rotating::{all_is_there, fill};
use crate::support::socket::{ask, connect, line, send, socket_of};
use crate::support::tree::{BOB, as_user};

const SECRETS: usize = 50;
const SOON: Duration = Duration::from_secs(60);

fn open_to_all(path: &Path, mode: u32) {
    std::fs::set_permissions(path, Permissions::from_mode(mode)).expect("opened");
}

#[test]
fn another_user_is_refused_and_the_log_says_who_it_was() {
    let place = Place::with_vault();
    let server = place.serve(&[]);
    let vault = place.vault();
    open_to_all(place.path(), 0o755);
    open_to_all(&vault, 0o755);
    let denied = as_user(BOB, &[], || connect(&vault).map(drop));
    let denied = denied.expect_err("its mode forbids it");
    assert_eq!(denied.kind(), std::io::ErrorKind::PermissionDenied);
    // And if it did not.
    open_to_all(&socket_of(&vault), 0o666);
    for question in ["status", "audit", "control rotate"] {
        let refused = as_user(BOB, &[], || ask(&vault, question));
        assert_eq!(refused["refused"]["errno"], "EPERM", "{refused}");
        let why = refused["refused"]["why"].as_str().expect("words");
        assert!(why.contains(&format!("user {BOB} may not ask")), "{why}");
    }
    assert_eq!(status(&place.point())["active_generation"], 1);
    assert!(status(&place.point())["rotation"].is_null());
    server.signal(libc::SIGTERM);
    let (code, log) = server.ended(SOON);
    assert_eq!(code, Some(0));
    assert_eq!(told_of(&log, "refused at control.sock", BOB).0, 3, "{log}");
}

/// How many refusals of a user the log tells of, with those that it says were left out; and in how many
/// lines.
fn told_of(log: &str, what: &str, user: u32) -> (u64, u64) {
    let whose = format!("user {user}");
    let lines = log.lines().filter(|line| line.contains(what));
    let (mut refusals, mut count) = (0, 0);
    for line in lines.filter(|line| line.contains(&whose)) {
        count += 1;
        // The last line is about nothing but those that were left out.
        refusals += u64::from(line.contains("process"));
        if let Some(at) = line.find(" more like that") {
            let number = line[..at].rsplit(' ').next().expect("a number");
            refusals += number.parse::<u64>().expect("a number");
        }
    }
    (refusals, count)
}

/// With `control-uid` everybody can connect, and descriptors can be passed on to anybody.
#[test]
fn who_is_refused_again_and_again_fills_no_log_and_hides_nobody() {
    const MANY: u64 = 300;
    let place = Place::with_vault();
    open_to_all(place.path(), 0o755);
    let server = place.serve(&["-o", "allow-other,control-uid=4001"]);
    let (vault, begun) = (place.vault(), Instant::now());
    open_to_all(&vault, 0o755);
    let control = std::fs::OpenOptions::new()
        .write(true)
        .open(place.point().join(".secretfs/control"))
        .expect("root may");
    for user in [BOB, 4003] {
        as_user(user, &[], || {
            for _ in 0..MANY {
                ask(&vault, "status");
                (&control).write_all(b"rotate").expect_err("refused");
            }
        });
    }
    drop(control);
    server.signal(libc::SIGTERM);
    let (_, log) = server.ended(SOON);
    let minutes = begun.elapsed().as_secs() / 60;
    for user in [BOB, 4003] {
        let (refusals, lines) = told_of(&log, "refused at control.sock", user);
        assert_eq!(refusals, MANY, "{log}");
        // One at once, one a minute, and one at the end.
        assert!(lines <= minutes + 2, "{lines} lines: {log}");
        let (refusals, lines) = told_of(&log, "to .secretfs/control", user);
        assert_eq!(refusals, MANY, "{log}");
        assert!(lines <= minutes + 2, "{lines} lines: {log}");
    }
}

/// Takes whoever calls, and tells them that all is done.
fn answer_anything(listener: &UnixListener, stop: &AtomicBool, heard: &AtomicU64) {
    for stream in listener.incoming() {
        if stop.load(Ordering::SeqCst) {
            return;
        }
        let mut stream = stream.expect("somebody");
        let _ = stream.write_all(b"\"begun\"\n");
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said);
        heard.fetch_add(said.len() as u64, Ordering::SeqCst);
    }
}

#[test]
fn the_socket_of_another_user_is_told_nothing_and_not_believed() {
    let place = Place::with_vault();
    let _server = place.serve(&[]);
    fill(&place.point(), SECRETS);
    let vault = place.vault();
    // Somebody may write there who has no key; the owner is root.
    open_to_all(place.path(), 0o755);
    open_to_all(&vault, 0o777);
    let (stop, heard) = (AtomicBool::new(false), AtomicU64::new(0));
    let listener = as_user(BOB, &[], || {
        std::fs::remove_file(socket_of(&vault)).expect("removed");
        let listener = UnixListener::bind(socket_of(&vault)).expect("planted");
        open_to_all(&socket_of(&vault), 0o777);
        listener
    });
    std::thread::scope(|scope| {
        let (listener, stop, heard) = (&listener, &stop, &heard);
        scope.spawn(move || answer_anything(listener, stop, heard));
        let run = |args: &[&str]| {
            let (name, more) = args.split_first().expect("a command");
            let mut command = place.command();
            command.arg(name).arg(&vault).args(more);
            crate::support::process::Ran(command.output().expect("it runs"))
        };
        let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for what in ["rotate", "reencrypt", "rewrap"] {
                for more in [&[what][..], &[what, "--wait"]] {
                    let told = run(more).failed(7, &format!("is that of user {BOB}"));
                    assert_eq!(told.stdout(), "");
                }
            }
            // What can be read without it, is.
            let seen = run(&["status", "--json"]).succeeded().stdout();
            let seen: serde_json::Value = serde_json::from_str(&seen).expect("JSON");
            assert_eq!(seen["active_generation"], 1, "{seen:#}");
            run(&["audit", "--verify"]).succeeded();
        }));
        stop.store(true, Ordering::SeqCst);
        drop(connect(&vault));
        told.unwrap_or_else(|why| std::panic::resume_unwind(why));
    });
    assert_eq!(heard.load(Ordering::SeqCst), 0, "bytes were said to it");
    assert_eq!(status(&place.point())["active_generation"], 1);
    // A link to a socket is not followed to whoever has that.
    std::fs::remove_file(socket_of(&vault)).expect("removed");
    let elsewhere = place.path().join("elsewhere");
    let _listener = UnixListener::bind(&elsewhere).expect("bound");
    std::os::unix::fs::symlink(&elsewhere, socket_of(&vault)).expect("linked");
    place
        .run(["rotate".as_ref(), vault.as_os_str(), "--wait".as_ref()])
        .failed(7, "name the mount point");
}

/// The path that a mount tells may be one of another mount namespace, and anybody's here.
#[test]
fn whoever_owns_the_directory_that_a_mount_names_is_not_taken_for_its_daemon() {
    let place = Place::with_vault();
    open_to_all(place.path(), 0o755);
    place.mount(&[]).succeeded();
    let (vault, point) = (place.vault(), place.point());
    std::fs::rename(&vault, place.path().join("moved")).expect("moved");
    std::fs::create_dir(&vault).expect("made");
    std::os::unix::fs::chown(&vault, Some(BOB), Some(BOB)).expect("given away");
    let listener = as_user(BOB, &[], || {
        UnixListener::bind(socket_of(&vault)).expect("planted")
    });
    let (stop, heard) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let (listener, stop, heard) = (&listener, &stop, &heard);
        scope.spawn(move || answer_anything(listener, stop, heard));
        let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            // The daemon itself is asked.
            place
                .run(["rotate".as_ref(), point.as_os_str(), "--wait".as_ref()])
                .failed(1, "the vault was moved");
            place
                .run(["umount".as_ref(), point.as_os_str()])
                .succeeded();
        }));
        stop.store(true, Ordering::SeqCst);
        drop(connect(&vault));
        told.unwrap_or_else(|why| std::panic::resume_unwind(why));
    });
    assert_eq!(heard.load(Ordering::SeqCst), 0, "bytes were said to it");
}

#[test]
fn who_asks_half_or_without_end_or_leaves_early_holds_up_neither_files_nor_others() {
    let place = Place::with_vault();
    let server = place.serve(&[]);
    let vault = place.vault();
    let point = place.point();
    fill(&point, SECRETS);
    let whole = line(&vault, "control rotate");
    let over = AtomicBool::new(false);
    let written = AtomicU64::new(0);
    std::thread::scope(|scope| {
        // Who works in the mount.
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                all_is_there(&point, SECRETS);
                std::fs::write(point.join("written"), "anew").expect("written");
                written.fetch_add(1, Ordering::SeqCst);
            }
        });
        let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            // More than are served at once, all of whom say half of something and wait.
            let half = |_| {
                let mut stream = connect(&vault).expect("it listens");
                stream
                    .write_all(&whole.as_bytes()[..whole.len() - 1])
                    .expect("said");
                stream
            };
            let halves: Vec<UnixStream> = (0..20).map(half).collect();
            let before = written.load(Ordering::SeqCst);
            wait_for("the files to be served", SOON, || {
                written.load(Ordering::SeqCst) > before + 1
            });
            // One among them who asks properly gets an answer, once they have been sent away.
            assert!(ask(&vault, "status")["status"]["vault"].is_string());
            for mut stream in halves {
                let mut told = Vec::new();
                let ended = stream.read_to_end(&mut told);
                assert!(ended.is_ok() || told.is_empty(), "{ended:?}");
                assert_eq!(told, b"", "nothing was asked");
            }
            // A line without end is ended, in words.
            let endless = send(&vault, &vec![b'x'; 1 << 20]);
            let endless: serde_json::Value = serde_json::from_slice(&endless).expect("JSON");
            assert_eq!(endless["refused"]["errno"], "EINVAL", "{endless}");
            let odd = send(&vault, b"\xff\xfe\n");
            assert!(odd.starts_with(b"{\"refused\""), "{odd:?}");
            // One byte after the other, slower than it may be.
            let mut slow = connect(&vault).expect("it listens");
            let mut said = 0;
            while slow.write_all(b"1").is_ok() {
                std::thread::sleep(Duration::from_millis(50));
                said += 1;
                assert!(said < 1200, "it listens for ever");
            }
            // Gone before they are answered, and never reading.
            for question in ["status", "audit", "nonsense"] {
                let asked = line(&vault, question);
                for _ in 0..20 {
                    let mut stream = connect(&vault).expect("it listens");
                    stream.write_all(asked.as_bytes()).expect("said");
                }
            }
            let mute: Vec<UnixStream> = (0..20)
                .map(|_| {
                    let mut stream = connect(&vault).expect("it listens");
                    let asked = line(&vault, "status");
                    stream.write_all(asked.as_bytes()).expect("said");
                    stream
                })
                .collect();
            assert!(ask(&vault, "status")["status"]["vault"].is_string());
            drop(mute);
            assert_eq!(
                status(&point)["active_generation"],
                1,
                "half a command is none"
            );
            // A whole one is done, also for who has left.
            let mut stream = connect(&vault).expect("it listens");
            stream.write_all(whole.as_bytes()).expect("said");
            drop(stream);
            wait_for("the rotation", SOON, || {
                let now = status(&point);
                now["active_generation"] == 2 && now["rotation"].is_null()
            });
        }));
        over.store(true, Ordering::SeqCst);
        told.unwrap_or_else(|why| std::panic::resume_unwind(why));
    });
    // Nobody is left waiting for a turn.
    assert!(ask(&vault, "audit")["audit"].is_array());
    server.signal(libc::SIGTERM);
    assert_eq!(server.ended(SOON).0, Some(0));
    assert!(!socket_of(&vault).exists());
}

#[test]
fn who_asks_is_told_no_secret() {
    let place = Place::with_vault();
    let server = place.serve(&[]);
    let vault = place.vault();
    fill(&place.point(), SECRETS);
    std::fs::create_dir(place.point().join("a-telling-name")).expect("made");
    let mut told = Vec::new();
    for question in [
        "status",
        "audit",
        "control rotate",
        "control rotate",
        "control x",
    ] {
        told.extend(send(&vault, line(&vault, question).as_bytes()));
    }
    wait_for("the rotation", SOON, || {
        status(&place.point())["rotation"].is_null()
    });
    for question in ["status", "audit"] {
        told.extend(send(&vault, line(&vault, question).as_bytes()));
    }
    let told = String::from_utf8(told).expect("UTF-8");
    assert!(told.contains("\"active_generation\":2"), "{told}");
    for secret in ["a-telling-name", "secret-", "the content of"] {
        assert!(!told.contains(secret), "{secret}: {told}");
    }
    // No key, and no wrap of one, neither as it is stored nor as text.
    let database = rusqlite::Connection::open(vault.join("vault.db")).expect("open");
    let record =
        |sql: &str| -> Vec<u8> { database.query_row(sql, [], |row| row.get(0)).expect(sql) };
    let keyring = record("SELECT value FROM keyring");
    let id = status(&place.point())["vault"].as_str().map(str::to_owned);
    for piece in keyring.windows(16) {
        let hex: String = piece.iter().map(|byte| format!("{byte:02x}")).collect();
        let listed = piece
            .iter()
            .map(u8::to_string)
            .collect::<Vec<_>>()
            .join(",");
        assert!(!told.contains(&listed), "a wrap is told: {listed}");
        assert!(
            id.as_ref() == Some(&hex) || !told.contains(&hex),
            "a wrap is told: {hex}"
        );
    }
    server.signal(libc::SIGTERM);
    assert_eq!(server.ended(SOON).0, Some(0));
}
