//! Vaults that are taken away, replaced, or lie where none should, and daemons that are stopped or
//! starved: programs are told, and nothing is acknowledged that is not stored.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::clock::faketime;
use crate::support::evil::{copy, footprint};
use crate::support::ledger::{Ledger, content};
use crate::support::process::{self, OnFailure, Place, Ran, Server, detach, system, wait_for};
use crate::support::tree::needs;

const SOON: Duration = Duration::from_secs(30);

fn status(place: &Place) -> serde_json::Value {
    process::status(&place.point())
}

fn check(place: &Place) -> Ran {
    place.run(["check".as_ref(), place.vault().as_os_str()])
}

/// A mounted vault with some secrets in it.
fn written(place: &Place) -> Ledger {
    let mut ledger = Ledger::new(place.point());
    for at in 0..6 {
        assert!(ledger.write(&format!("kept-{at}"), &content(at, 1 + at * 40_000)));
    }
    ledger
}

/// Every kind of change is refused with EIO, and the log says why in words.
fn everything_is_refused(ledger: &mut Ledger) {
    for at in 0..3 {
        let name = format!("kept-{at}");
        assert!(!ledger.write(&name, &content(99, 5000)));
        assert!(!ledger.append(&name, b"more"));
        assert!(!ledger.rename(&name, "elsewhere"));
        assert!(!ledger.remove(&name));
    }
    assert_eq!(ledger.errors(), [libc::EIO]);
}

#[test]
fn a_vault_that_was_deleted_under_its_mount_takes_nothing_more() {
    let place = Place::with_vault();
    let server = place.serve(&[]);
    let mut ledger = written(&place);
    fs::remove_dir_all(place.vault()).expect("removed");
    everything_is_refused(&mut ledger);
    // The daemon holds the files open: what it reads is right.
    ledger.holds("deleted");
    assert!(fs::metadata(place.vault()).is_err(), "nothing is made anew");
    place.run(["umount".as_ref(), place.point().as_os_str()]);
    let (_, log) = server.ended(SOON);
    assert!(log.contains("moved, removed or replaced"), "{log}");
    place.mount(&[]).failed(3, "");
}

#[test]
fn a_vault_that_was_replaced_under_its_mount_is_not_touched_and_takes_nothing() {
    for other in [false, true] {
        let place = Place::with_vault();
        let backup = place.path().join("backup");
        // An older copy of itself, or another vault.
        match other {
            true => {
                place.run(["init".as_ref(), backup.as_os_str()]).succeeded();
            }
            false => copy(&place.vault(), &backup),
        }
        let server = place.serve(&[]);
        let mut ledger = written(&place);
        let right = place.path().join("right");
        fs::rename(place.vault(), &right).expect("moved");
        fs::rename(&backup, place.vault()).expect("moved");
        let before = footprint(&[place.vault()]);
        everything_is_refused(&mut ledger);
        ledger.holds("replaced");
        assert_eq!(footprint(&[place.vault()]), before);
        place.run(["umount".as_ref(), place.point().as_os_str()]);
        server.ended(SOON);
        assert_eq!(footprint(&[place.vault()]), before);
        // Put back, it has all that was acknowledged.
        fs::rename(place.vault(), &backup).expect("moved");
        fs::rename(&right, place.vault()).expect("moved");
        check(&place).succeeded();
        place.mount(&[]).succeeded();
        ledger.holds("put back");
    }
}

/// Writers that go on until they are told to stop; each has files of its own.
struct Load<'a> {
    stop: &'a AtomicBool,
    done: &'a AtomicUsize,
}

impl Load<'_> {
    fn run(&self, point: PathBuf, writer: usize) -> Ledger {
        fs::create_dir(&point).expect("made");
        let mut ledger = Ledger::new(point);
        for number in 0.. {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            let name = format!("secret-{}", number % 5);
            ledger.write(
                &name,
                &content(number * 10 + writer, 1 + number * 997 % 200_000),
            );
            if number % 7 == 6 {
                ledger.remove(&name);
            }
            self.done.fetch_add(1, Ordering::Relaxed);
        }
        ledger
    }
}

#[test]
fn a_daemon_that_is_stopped_under_load_goes_on_where_it_was() {
    let place = Place::with_vault();
    let server = place.serve(&[]);
    let (stop, done) = (AtomicBool::new(false), AtomicUsize::new(0));
    let written = || done.load(Ordering::Relaxed);
    let load = Load {
        stop: &stop,
        done: &done,
    };
    let ledgers: Vec<Ledger> = std::thread::scope(|scope| {
        let (load, place) = (&load, &place);
        let _release = OnFailure(|| {
            stop.store(true, Ordering::Relaxed);
            server.signal(libc::SIGKILL);
        });
        let writers: Vec<_> = (0..3)
            .map(|at| {
                let point = place.point().join(format!("writer-{at}"));
                scope.spawn(move || load.run(point, at))
            })
            .collect();
        for _ in 0..3 {
            let before = written();
            wait_for("writes", SOON, || written() > before + 20);
            server.signal(libc::SIGSTOP);
            let stat = format!("/proc/{}/stat", server.pid());
            wait_for("the stop", SOON, || {
                fs::read_to_string(&stat).expect("stat").contains(") T ")
            });
            std::thread::sleep(Duration::from_secs(2));
            server.signal(libc::SIGCONT);
        }
        let before = written();
        wait_for("writes", SOON, || written() > before + 20);
        stop.store(true, Ordering::Relaxed);
        writers
            .into_iter()
            .map(|writer| writer.join().expect("no panic"))
            .collect()
    });
    for mut ledger in ledgers {
        assert_eq!(ledger.errors(), [0; 0]);
        ledger.holds("gone on");
    }
    place
        .run(["umount".as_ref(), place.point().as_os_str()])
        .succeeded();
    check(&place).succeeded();
}

fn prlimit(pid: i32, limit: &str) {
    let pid = pid.to_string();
    system("prlimit", &["--pid", &pid, limit].map(AsRef::as_ref));
}

#[test]
fn a_daemon_without_descriptors_refuses_or_serves_and_loses_nothing() {
    let place = Place::with_vault();
    let server = place.serve(&[]);
    let mut ledger = written(&place);
    let pid = server.pid();
    let taken = move || -> BTreeSet<u64> {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).expect("fds");
        let numbers = open.map(|fd| fd.expect("a descriptor").file_name());
        let numbers = numbers.map(|number| number.to_str().expect("a number").parse());
        numbers.map(|number| number.expect("a number")).collect()
    };
    // A new one would be the lowest that is free, which is what the limit forbids.
    let open = taken();
    let limit = (0..).find(|number| !open.contains(number)).expect("one");
    // Soft only, so that it can be raised again.
    prlimit(server.pid(), &format!("--nofile={limit}:"));
    let none_is_free = || {
        let open = taken();
        assert!((0..limit).all(|number| open.contains(&number)), "{open:?}");
    };
    none_is_free();
    let readers: Vec<_> = (0..200)
        .map(|at| fs::File::open(place.point().join(format!("kept-{}", at % 6))))
        .collect();
    assert!(readers.iter().all(Result::is_ok), "files take none");
    std::thread::scope(|scope| {
        // Many at a time, so that more connections to the database are wanted than there are.
        for _ in 0..8 {
            scope.spawn(|| ledger.holds("without descriptors"));
        }
    });
    for at in 0..6 {
        ledger.write(&format!("kept-{at}"), &content(at, 100_000));
        ledger.write(&format!("new-{at}"), &content(at, 1000));
        ledger.rename(&format!("kept-{at}"), &format!("renamed-{at}"));
    }
    none_is_free();
    let errors = ledger.errors();
    println!("without descriptors: {errors:?}");
    assert!(
        errors
            .iter()
            .all(|errno| [libc::EIO, libc::ENFILE, libc::EMFILE].contains(errno)),
        "{errors:?}"
    );
    ledger.holds("without descriptors");
    drop(readers);
    prlimit(server.pid(), "--nofile=1024:");
    for at in 0..6 {
        assert!(ledger.write(&format!("new-{at}"), &content(at, 1000)));
    }
    ledger.holds("with descriptors again");
    place
        .run(["umount".as_ref(), place.point().as_os_str()])
        .succeeded();
    assert_eq!(server.ended(SOON).0, Some(0));
    check(&place).succeeded();
    place.mount(&[]).succeeded();
    ledger.holds("mounted again");
}

/// A shell does not look at what closing says, so the opening must tell.
#[test]
fn what_cannot_be_stored_any_more_is_refused_when_a_file_is_opened_for_replacing() {
    let place = Place::with_vault();
    let server = place.serve(&[]);
    let mut ledger = written(&place);
    prlimit(server.pid(), "--fsize=1000000:");
    assert!(!ledger.write("large", &content(1, 4 << 20)), "it fits");
    // It has stopped writing: that some room is there again changes nothing.
    prlimit(server.pid(), "--fsize=unlimited:");
    for _ in 0..3 {
        let opened = fs::File::create(place.point().join("kept-3"));
        let error = opened.expect_err("nothing is written any more");
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
    }
    ledger.holds("when nothing is written any more");
    drop(server);
    detach(&place.point());
    place.mount(&[]).succeeded();
    ledger.holds("mounted again");
    place
        .run(["umount".as_ref(), place.point().as_os_str()])
        .succeeded();
    check(&place).succeeded();
}

#[test]
fn a_limit_of_file_sizes_that_stops_writing_is_named_with_what_to_do() {
    let place = Place::with_vault();
    let server = place.serve(&[]);
    let mut ledger = written(&place);
    prlimit(server.pid(), "--fsize=1000000:");
    assert!(!ledger.write("large", &content(1, 4 << 20)), "it fits");
    server.signal(libc::SIGTERM);
    let (_, log) = server.ended(SOON);
    for part in [
        "the process may write no larger file",
        "raise the limit (`ulimit -f`",
    ] {
        assert!(log.contains(part), "{log}");
    }
    place.mount(&[]).succeeded();
    ledger.holds("mounted again");
}

/// It tells ENOMEM or ENOSPC where a content finds no room. Where its own small needs find none, it
/// ends, as every program does that cannot go on; that is a crash like any other.
#[test]
fn a_daemon_without_memory_refuses_or_ends_and_loses_nothing() {
    let place = Place::with_vault();
    let mut server = place.serve(&["-o", "max-secret-size=64M"]);
    let mut ledger = written(&place);
    let used = fs::read_to_string(format!("/proc/{}/statm", server.pid())).expect("statm");
    let used: u64 = used
        .split(' ')
        .next()
        .expect("pages")
        .parse()
        .expect("a number");
    prlimit(server.pid(), &format!("--as={}:", used * 4096 + (16 << 20)));
    for at in 0..4 {
        ledger.write("large", &content(at, 40 << 20));
        ledger.write("small", &content(at, 1000));
    }
    let errors = ledger.errors();
    assert!(!errors.is_empty(), "a content of 40 MiB found room in 16");
    let refusals = [libc::ENOMEM, libc::ENOSPC];
    if !errors.iter().all(|errno| refusals.contains(errno)) {
        // Only its end says anything else; it may be about to come.
        wait_for("the daemon's end", SOON, || !server.is_running());
    }
    if server.is_running() {
        ledger.holds("without memory");
        prlimit(server.pid(), "--as=unlimited:");
        assert!(ledger.write("large", &content(9, 40 << 20)));
        ledger.holds("with memory again");
        place
            .run(["umount".as_ref(), place.point().as_os_str()])
            .succeeded();
        assert_eq!(server.ended(SOON).0, Some(0));
    } else {
        detach(&place.point());
    }
    check(&place).succeeded();
    place.mount(&["-o", "max-secret-size=64M"]).succeeded();
    ledger.holds("mounted again");
}

#[test]
fn a_clock_that_is_set_back_breaks_nothing() {
    let place = Place::with_vault();
    let clock = place.path().join("clock");
    // Read anew for every question, so that it can be set while the daemon runs.
    let set = |time: &str| {
        let new = place.path().join("clock.new");
        fs::write(&new, format!("@{time}\n")).expect("written");
        fs::rename(new, &clock).expect("set");
    };
    let with_clock = |args: &[&std::ffi::OsStr]| {
        let mut command = place.command();
        command
            .args(args)
            .env("LD_PRELOAD", faketime())
            .env("FAKETIME_TIMESTAMP_FILE", &clock)
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        command
    };
    let (vault, point) = (place.vault(), place.point());
    let serve = || {
        Server::start(with_clock(&[
            "mount".as_ref(),
            vault.as_os_str(),
            point.as_os_str(),
            "-f".as_ref(),
        ]))
    };
    let mut ledger = Ledger::new(point.clone());
    let changed = |name: &str| fs::metadata(point.join(name)).expect("there").ctime();
    set("2030-06-01 12:00:00");
    let server = serve();
    assert!(ledger.write("first", &content(1, 1000)));
    assert_eq!(
        changed("first") / 86_400,
        22_066,
        "the clock is not the daemon's"
    );
    let times = [
        "2030-05-01 12:00:00",
        "2001-01-01 00:00:00",
        "1970-01-02 00:00:00",
        "2037-01-01 00:00:00",
        "2001-01-01 00:00:00",
    ];
    for (at, time) in times.into_iter().enumerate() {
        set(time);
        let mut reader = fs::File::open(point.join("first")).expect("opened");
        assert!(ledger.write("first", &content(at, 200_000)));
        assert!(ledger.append("first", b"more"));
        assert!(ledger.write(&format!("new-{at}"), &content(at, 10)));
        assert!(ledger.rename(&format!("new-{at}"), &format!("renamed-{at}")));
        assert!(ledger.write("gone", b"x") && ledger.remove("gone"));
        ledger.holds(time);
        let mut seen = Vec::new();
        std::io::Read::read_to_end(&mut reader, &mut seen).expect("read");
        // What a program sets stays.
        let file = fs::File::options().write(true).open(point.join("first"));
        let stamp = std::time::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        file.expect("opened").set_modified(stamp).expect("set");
        let modified = fs::metadata(point.join("first")).expect("there").modified();
        assert_eq!(modified.expect("a time"), stamp);
        assert_eq!(status(&place)["integrity"], "verified", "{time}");
    }
    assert!(changed("renamed-4") < changed("renamed-3"));
    detach(&point);
    let (code, log) = server.ended(SOON);
    assert_eq!((code, log.contains("panicked")), (Some(0), false), "{log}");
    // The anchor knows no time: an older clock is no older vault.
    for time in [
        "1999-01-01 00:00:00",
        "2035-01-01 00:00:00",
        "2000-01-01 00:00:00",
    ] {
        set(time);
        let server = serve();
        ledger.holds(time);
        assert!(ledger.write("first", &content(7, 3000)));
        detach(&point);
        let (code, log) = server.ended(SOON);
        assert_eq!(code, Some(0), "{log}");
        let checked = with_clock(&["check".as_ref(), vault.as_os_str()]).output();
        Ran(checked.expect("it runs")).succeeded();
    }
    place.mount(&[]).succeeded();
    ledger.holds("the right time");
}

/// A read beside the writer sees what is new within `ttl`, whatever the clocks say.
#[test]
fn a_reader_whose_clock_is_wrong_sees_what_is_published() {
    let place = Place::with_vault();
    place.mount(&[]).succeeded();
    let (vault, read) = (place.vault(), place.path().join("r"));
    fs::create_dir(&read).expect("made");
    let mut command = place.command();
    command
        .args(["mount", "-f", "-o", "ro"])
        .arg(vault)
        .arg(&read);
    command
        .env("LD_PRELOAD", faketime())
        .env("FAKETIME", "-10y")
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    let server = Server::start(command);
    for number in 0..3 {
        let text = content(number, 2000);
        fs::write(place.point().join("secret"), &text).expect("written");
        wait_for("the new content", SOON, || {
            fs::read(read.join("secret")).is_ok_and(|found| found == text)
        });
    }
    detach(&read);
    assert_eq!(server.ended(SOON).0, Some(0));
}

/// Refused wherever it lies, by every command that would write, and named with its option.
fn refused_as(place: &Place, vault: &Path, env: &[(&str, &Path)], name: &str) {
    let run = |args: &[&std::ffi::OsStr]| {
        let mut command = place.command();
        command.args(args).envs(env.iter().copied());
        Ran(command.output().expect("it runs"))
    };
    let point = place.point();
    let mount = ["mount".as_ref(), vault.as_os_str(), point.as_os_str()];
    let said = run(&mount).failed(1, name).stderr();
    assert!(said.contains("-o unsafe-filesystem"), "{said}");
    let read_only = [&mount[..], &["-o".as_ref(), "ro".as_ref()]].concat();
    run(&read_only).failed(1, "-o unsafe-filesystem");
    assert!(!place.is_mounted());
    let new = vault.with_file_name("new");
    run(&["init".as_ref(), new.as_os_str()]).failed(1, "unsafe-filesystem");
    assert!(!new.exists());
}

#[test]
fn a_vault_on_fuse_is_refused_unless_that_is_asked_for() {
    needs(&["bindfs"]);
    let place = Place::with_vault();
    let (below, bound) = (place.path().join("below"), place.path().join("bound"));
    for directory in [&below, &bound] {
        fs::create_dir(directory).expect("made");
    }
    copy(&place.vault(), &below.join("v"));
    system("bindfs", &[below.as_os_str(), bound.as_os_str()]);
    let _bound = Unmounted(bound.clone());
    refused_as(&place, &bound.join("v"), &[], "FUSE");
    // Who asks for it gets it.
    let vault = bound.join("v");
    let mut command = place.command();
    command.arg("mount").arg(vault).arg(place.point());
    command.args(["-o", "unsafe-filesystem", "--accept-rollback"]);
    Ran(command.output().expect("it runs")).succeeded();
    let mut ledger = written(&place);
    ledger.holds("on FUSE");
    assert_eq!(ledger.errors(), [0; 0]);
    place
        .run(["umount".as_ref(), place.point().as_os_str()])
        .succeeded();
}

#[test]
fn a_vault_in_a_mount_of_secretfs_is_refused() {
    let outer = Place::with_vault();
    outer.mount(&[]).succeeded();
    let place = Place::with_vault();
    let inner = outer.point().join("v");
    copy(&place.vault(), &inner);
    refused_as(&place, &inner, &[], "FUSE");
}

/// No NFS and no 9p can be had on every machine, so the answer of statfs(2) is all that is theirs.
#[test]
fn vaults_on_nfs_9p_and_smb_are_refused_by_what_statfs_says() {
    let place = Place::with_vault();
    let source = place.path().join("statfs.c");
    fs::write(
        &source,
        r#"
        #define _GNU_SOURCE
        #include <dlfcn.h>
        #include <stdlib.h>
        #include <sys/vfs.h>
        static int answer(const char *name, const char *path, void *out) {
            int (*real)(const char *, void *) = dlsym(RTLD_NEXT, name);
            int result = real(path, out);
            ((struct statfs *)out)->f_type = strtoul(getenv("STATFS_TYPE"), 0, 16);
            return result;
        }
        int statfs(const char *path, struct statfs *out) { return answer("statfs", path, out); }
        int statfs64(const char *path, struct statfs64 *out) { return answer("statfs64", path, out); }
        "#,
    )
    .expect("written");
    let library = place.path().join("statfs.so");
    let args = ["-shared", "-fPIC", "-o"].map(AsRef::as_ref);
    let paths = [library.as_os_str(), source.as_os_str()];
    system("cc", &[&args[..], &paths].concat());
    for (number, name) in [
        ("6969", "NFS"),
        ("1021997", "9p"),
        ("ff534d42", "CIFS"),
        ("fe534d42", "SMB2"),
        ("65735546", "virtiofs"),
    ] {
        let env = [
            ("LD_PRELOAD", &*library),
            ("STATFS_TYPE", Path::new(number)),
        ];
        refused_as(&place, &place.vault(), &env, name);
    }
    // That of ext4 is none of them.
    let mut command = place.command();
    command.arg("mount").arg(place.vault()).arg(place.point());
    command
        .env("LD_PRELOAD", library)
        .env("STATFS_TYPE", "ef53");
    Ran(command.output().expect("it runs")).succeeded();
}

/// A mount point that is free again when the test ends.
struct Unmounted(PathBuf);

impl Drop for Unmounted {
    fn drop(&mut self) {
        let mut umount = Command::new("umount");
        umount.arg("-l").arg(&self.0).stderr(Stdio::null());
        let _ = umount.status();
    }
}
