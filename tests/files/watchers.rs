//! Who watches files learns of every change, however it was made, and is told of it when it can be
//! read: by inotify without `IN_CLOSE_WRITE`, as Go's fsnotify, node and watchdog use it.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use nix::mount::{MsFlags, mount};
use nix::sys::inotify::AddWatchFlags;

use crate::support::process::{Place, Server, kill, status, system, wait_for};
use crate::support::watching::{Beside, Bind, SOON, Watcher, all_end_with_the_last_value};

/// How many changes of each kind.
const ROUNDS: u32 = 50;
const BESIDE: u32 = 12;

fn watchers(file: &Path) -> [Watcher; 2] {
    [Watcher::of_file(file), Watcher::of_directory(file)]
}

#[test]
fn every_watcher_ends_with_the_last_value_on_the_mount_and_on_a_read_only_bind() {
    let place = Place::with_vault();
    let _server = place.serve(&[]);
    let file = place.point().join("d/f");
    fs::create_dir(place.point().join("d")).expect("made");
    fs::write(&file, "first").expect("written");
    let bind = Bind::of(&place.point(), place.path().join("b"), true);
    assert_eq!(status(&place.point())["watchers"], "woken");
    let all: Vec<_> = watchers(&file)
        .into_iter()
        .chain(watchers(&bind.0.join("d/f")))
        .collect();
    all_end_with_the_last_value(&file, &all, ROUNDS);
    assert_eq!(status(&place.point())["watchers"], "woken");
}

#[test]
fn every_watcher_of_a_mount_that_reads_beside_the_writer_ends_with_the_last_value() {
    let place = Place::with_vault();
    let _server = place.serve(&[]);
    let file = place.point().join("d/f");
    fs::create_dir(place.point().join("d")).expect("made");
    fs::write(&file, "first").expect("written");
    let beside = Beside::of(&place);
    let point = beside.point.as_path();
    let all = watchers(&point.join("d/f"));
    all_end_with_the_last_value(&file, &all, BESIDE);
    assert_eq!(status(point)["watchers"], "woken");
}

#[test]
fn who_keeps_the_file_open_wakes_watchers_by_fsync_and_who_truncates_it_at_once() {
    let place = Place::with_vault();
    let _server = place.serve(&[]);
    let file = place.point().join("f");
    fs::write(&file, "first").expect("written");
    let all = watchers(&file);
    let mut open = OpenOptions::new().append(true).open(&file).expect("opened");
    for n in 0..20 {
        writeln!(open, "line {n}").expect("written");
        open.sync_all().expect("published");
        for watcher in &all {
            watcher.ends_with(&fs::read(&file).expect("read"), "fsync");
        }
    }
    drop(open);
    system("truncate", &["-s3".as_ref(), file.as_os_str()]);
    all.iter().for_each(|one| one.ends_with(b"fir", "truncate"));
    // A descriptor that a child has inherited: its end publishes, and nobody waits for that.
    let mut open = File::create(&file).expect("opened");
    open.write_all(b"left behind").expect("written");
    let mut child = Command::new("cat")
        .stdin(Stdio::piped())
        .stdout(open)
        .spawn()
        .expect("a child");
    let mut pipe = child.stdin.take().expect("piped");
    pipe.write_all(b" by a child").expect("written");
    drop(pipe);
    child.wait().expect("ended");
    for watcher in &all {
        watcher.ends_with(b"left behind by a child", "the end of a child");
    }
}

#[test]
fn directories_of_a_mount_that_reads_tell_of_names_that_come_and_go() {
    let place = Place::with_vault();
    let _server = place.serve(&[]);
    let written = place.point().join("d");
    fs::create_dir(&written).expect("made");
    for name in ["f", "never-looked-at", "goes", "moves"] {
        fs::write(written.join(name), name).expect("written");
    }
    let beside = Beside::of(&place);
    let point = beside.point.as_path();
    let read = point.join("d");
    let directory = Watcher::of_directory(&read.join("f"));
    let going = Watcher::of_file(&read.join("goes"));
    let told = |what: &str, name: Option<&str>, change: &dyn Fn()| {
        let before = directory.count(AddWatchFlags::IN_MODIFY, name);
        change();
        wait_for(what, SOON, || {
            directory.count(AddWatchFlags::IN_MODIFY, name) > before
        });
    };
    told("a new file", Some("new"), &|| {
        fs::write(written.join("new"), "n").expect("written");
    });
    told("a change of it", Some("new"), &|| {
        fs::write(written.join("new"), "n2").expect("written");
    });
    told(
        "a file nobody has looked at",
        Some("never-looked-at"),
        &|| {
            fs::write(written.join("never-looked-at"), "changed").expect("written");
        },
    );
    told("a new directory", Some("sub"), &|| {
        fs::create_dir(written.join("sub")).expect("made");
    });
    told("another name", Some("moved"), &|| {
        fs::rename(written.join("moves"), written.join("moved")).expect("renamed");
    });
    told("a link that leads nowhere", Some("link"), &|| {
        std::os::unix::fs::symlink("/nowhere", written.join("link")).expect("linked");
    });
    told("a file that is gone", None, &|| {
        fs::remove_file(written.join("goes")).expect("removed");
    });
    wait_for("the end of what was watched", SOON, || {
        going.count(AddWatchFlags::IN_DELETE_SELF, None) > 0
    });
    drop(going);
    assert!(!read.join("goes").exists() && read.join("moved").exists());
    let mut names: Vec<_> = fs::read_dir(&read)
        .expect("listed")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    names.sort();
    assert_eq!(
        names,
        ["f", "link", "moved", "never-looked-at", "new", "sub"]
    );
}

#[test]
fn waking_watchers_commits_nothing_and_moves_no_time_and_others_set_times_as_ever() {
    let place = Place::with_vault();
    let _server = place.serve(&[]);
    let file = place.point().join("f");
    fs::write(&file, "first").expect("written");
    let watcher = Watcher::of_file(&file);
    let commit = || {
        status(&place.point())["commit_sequence"]
            .as_u64()
            .expect("a number")
    };
    let before = commit();
    for n in 0..20 {
        let began = SystemTime::now();
        fs::write(&file, n.to_string()).expect("written");
        watcher.ends_with(n.to_string().as_bytes(), "a change");
        let modified = fs::metadata(&file)
            .expect("stat")
            .modified()
            .expect("a time");
        assert!(modified >= began && modified <= SystemTime::now());
    }
    assert_eq!(commit() - before, 20);
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_234_567);
    let open = File::open(&file).expect("opened");
    open.set_modified(time).expect("set");
    assert_eq!(commit() - before, 21);
    assert_eq!(fs::metadata(&file).expect("stat").mtime(), 1_234_567);
}

#[test]
fn a_touch_takes_nothing_from_who_writes_through_a_mapping() {
    let place = Place::with_vault();
    let _server = place.serve(&[]);
    let file = place.point().join("f");
    fs::write(&file, "short").expect("written");
    let watcher = Watcher::of_file(&file);
    let ran = Command::new("python3")
        .args(["-c", MAPPING])
        .arg(&file)
        .output();
    let said = String::from_utf8(ran.expect("python").stderr).expect("text");
    assert_eq!(said, "");
    watcher.ends_with(&fs::read(&file).expect("read"), "a mapping");
}

/// Publishes, so that the file is about to be touched, and has by then mapped more than that.
const MAPPING: &str = r#"
import mmap, os, sys, time
for n in range(20):
    with open(sys.argv[1], "w") as file:
        file.write("short")
    fd = os.open(sys.argv[1], os.O_RDWR)
    os.ftruncate(fd, 9000)
    m = mmap.mmap(fd, 9000)
    began = time.monotonic()
    m[:] = b"a" * 9000
    while time.monotonic() < began + 0.03:
        time.sleep(0.001)
    m[4500:4600] = b"b" * 100
    m.flush()
    m.close()
    os.close(fd)
    with open(sys.argv[1], "rb") as file:
        read = file.read()
    assert read == b"a" * 4500 + b"b" * 100 + b"a" * 4400, (n, len(read), read[:9], read[-9:])
"#;

#[test]
fn a_mount_for_reading_looks_as_ever_and_stays_one_through_a_bind_and_a_remount_for_writing() {
    let place = Place::with_vault();
    let server = place.serve(&[]);
    fs::write(place.point().join("f"), "text").expect("written");
    let beside = Beside::of(&place);
    let point = beside.point.as_path();
    let line = |path: &str| {
        let text = fs::read_to_string(path).expect("readable");
        let shown = format!(" {} ", point.display());
        let line = text.lines().find(|line| line.contains(&shown));
        line.expect("it is mounted").to_owned()
    };
    let source = place.vault().display().to_string();
    let wanted = format!(
        "{source} {} fuse.secretfs ro,nosuid,nodev,noexec,",
        point.display()
    );
    assert!(
        line("/proc/mounts").starts_with(&wanted),
        "{}",
        line("/proc/mounts")
    );
    let found = Command::new("findmnt")
        .args(["-no", "SOURCE,FSTYPE,OPTIONS"])
        .arg(point)
        .output();
    let found = String::from_utf8(found.expect("findmnt").stdout).expect("text");
    let options = "ro,nosuid,nodev,noexec,relatime,user_id=0,group_id=0,default_permissions";
    assert_eq!(
        found.split_whitespace().collect::<Vec<_>>(),
        [
            &source,
            "fuse.secretfs",
            &format!("{options},max_read=135168")
        ]
    );
    let flags = nix::sys::statvfs::statvfs(point).expect("statvfs").flags();
    assert!(flags.contains(nix::sys::statvfs::FsFlags::ST_RDONLY));
    let refused = |point: &Path| {
        let error = fs::write(point.join("f"), "other").expect_err("read-only");
        assert_eq!(error.raw_os_error(), Some(libc::EROFS));
        let c = |name: &str| {
            std::ffi::CString::new(point.join(name).as_os_str().as_bytes()).expect("no NUL")
        };
        let (at, from, to) = (libc::AT_FDCWD, c("f"), c("g"));
        let flags = libc::RENAME_WHITEOUT;
        // SAFETY: both are C strings that live through the call.
        let result = unsafe { libc::renameat2(at, from.as_ptr(), at, to.as_ptr(), flags) };
        let error = std::io::Error::last_os_error();
        assert_eq!((result, error.raw_os_error()), (-1, Some(libc::EROFS)));
        assert_eq!(fs::read(point.join("f")).expect("read"), b"text");
    };
    refused(point);
    let bind = Bind::of(point, place.path().join("b"), false);
    refused(&bind.0);
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT;
    mount(None::<&str>, point, None::<&str>, flags, None::<&str>).expect("remounted");
    refused(point);
    drop(bind);
    drop(server);
}

#[test]
fn no_mount_outlives_its_umount_for_the_sake_of_watchers_and_a_bind_of_it_goes_on() {
    let place = Place::with_vault();
    for options in [&[][..], &["-o", "ro"]] {
        let mut server = place.serve(options);
        if options.is_empty() {
            fs::write(place.point().join("f"), "text").expect("written");
        }
        let watcher = Watcher::of_file(&place.point().join("f"));
        assert_eq!(fs::read(place.point().join("f")).expect("read"), b"text");
        drop(watcher);
        let bind = Bind::of(&place.point(), place.path().join("b"), false);
        system("umount", &[place.point().as_os_str()]);
        assert!(server.is_running());
        // While a mount of it is to be seen, whoever watches there is told.
        if options.is_empty() {
            let file = bind.0.join("f");
            let all = watchers(&file);
            fs::write(&file, "through the bind").expect("written");
            for watcher in &all {
                watcher.ends_with(b"through the bind", "a change through the bind");
            }
            drop(all);
            fs::write(&file, "text").expect("written");
        }
        assert_eq!(status(&bind.0)["watchers"], "woken");
        system("umount", &[bind.0.as_os_str()]);
        let (code, log) = server.ended(SOON);
        assert_eq!(code, Some(0), "{log}");
    }
}

#[test]
fn a_touch_that_hangs_is_told_and_a_daemon_that_is_killed_meanwhile_is_gone_at_once() {
    let place = Place::with_vault();
    let mut command = place.command();
    command.arg("mount").arg(place.vault()).arg(place.point());
    command.args(["-f", "-o", "threads=2"]);
    command.env("FAILPOINTS", "answer-to-touch=pause");
    let server = Server::start(command);
    let file = place.point().join("f");
    // Whoever closes does not wait for the touch.
    fs::write(&file, "published").expect("written");
    wait_for("the touch", SOON, || {
        let threads = fs::read_dir(format!("/proc/{}/task", server.pid())).expect("threads");
        threads.flatten().any(|thread| {
            let of_it = |name: &str| fs::read_to_string(thread.path().join(name));
            of_it("comm").is_ok_and(|name| name == "toucher\n")
                && of_it("wchan").is_ok_and(|function| function.contains("request_wait"))
        })
    });
    wait_for("it to be told", SOON, || {
        let said = status(&place.point())["watchers"].to_string();
        said.contains("not woken: the kernel has not answered for")
    });
    kill(server.pid(), libc::SIGKILL);
    server.ended(SOON);
    system("umount", &[place.point().as_os_str()]);
    let server = place.serve(&[]);
    assert_eq!(fs::read(&file).expect("read"), b"published");
    drop(server);
}

#[test]
fn node_watching_a_file_ends_with_the_last_value() {
    let place = Place::with_vault();
    let _server = place.serve(&[]);
    let file = place.point().join("f");
    fs::write(&file, "first").expect("written");
    let log = place.path().join("seen");
    let script = "const fs = require('fs'); const [file, log] = process.argv.slice(1);
        const look = () => fs.writeFileSync(log, fs.readFileSync(file));
        fs.watch(file, look); look();";
    let mut node = Command::new("node");
    crate::support::child::not_outliving_us(&mut node);
    let mut node = node
        .args(["-e", script])
        .args([&file, &log])
        .spawn()
        .expect("node");
    let sees = |value: &str| {
        wait_for(value, SOON, || {
            fs::read(&log).is_ok_and(|seen| seen == value.as_bytes())
        });
    };
    sees("first");
    for n in 0..30 {
        let mut open = File::create(&file).expect("opened");
        let value = format!("value {n}");
        open.write_all(value.as_bytes()).expect("written");
        // Node reads in between, and too early.
        std::thread::sleep(Duration::from_millis(10));
        drop(open);
        sees(&value);
    }
    node.kill().expect("killed");
    node.wait().expect("ended");
}
