//! Mounting, unmounting and ending, on real mounts.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::child::limited;
use crate::support::process::{Place, Server, abort, detach, kill, system, types_at, wait_for};
use nix::sys::resource::Resource;

const SOON: Duration = Duration::from_secs(10);

/// A file that exists in the mount.
fn some_file(point: &Path) -> std::path::PathBuf {
    point.join(".secretfs/status")
}

#[test]
fn mount_returns_when_the_mount_answers_and_umount_when_all_is_over() {
    let place = Place::with_vault();
    let ran = place.mount(&[]).succeeded();
    let line = format!(
        "{} is mounted on {}\n",
        place.vault().display(),
        place.point().display()
    );
    assert_eq!(ran.stdout(), line);
    assert!(place.is_mounted());
    assert!(std::fs::read(some_file(&place.point())).is_ok());
    assert_eq!(place.daemons().len(), 1);
    place
        .run(["umount".as_ref(), place.point().as_os_str()])
        .succeeded();
    assert!(!place.is_mounted());
    wait_for("the daemon's end", SOON, || place.daemons().is_empty());
}

#[test]
fn the_daemon_belongs_to_nobody_and_holds_nothing_of_its_caller() {
    let place = Place::with_vault();
    place.mount(&[]).succeeded();
    let pid = place.daemons()[0];
    let link = |name: &str| std::fs::read_link(format!("/proc/{pid}/{name}")).expect("a link");
    assert_eq!(link("cwd"), Path::new("/"));
    for fd in ["fd/0", "fd/1", "fd/2"] {
        assert_eq!(link(fd), Path::new("/dev/null"));
    }
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    let session: i32 = stat
        .rsplit(") ")
        .next()
        .and_then(|s| s.split(' ').nth(3)?.parse().ok())
        .expect("a session");
    assert_eq!(session, pid);
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("limits");
    let core = limits
        .lines()
        .find(|l| l.starts_with("Max core file size"))
        .expect("a limit");
    assert_eq!(core.split_whitespace().nth(4), Some("0"));
}

#[test]
fn umount_and_fusermount_end_the_daemon_too() {
    let place = Place::with_vault();
    for (program, args) in [("umount", &[][..]), ("fusermount3", &["-u"])] {
        let mut server = place.serve(&[]);
        assert!(server.is_running());
        let mut all: Vec<&std::ffi::OsStr> = args.iter().map(AsRef::as_ref).collect();
        let point = place.point();
        all.push(point.as_os_str());
        system(program, &all);
        let (code, log) = server.ended(SOON);
        assert_eq!(code, Some(0), "{log}");
        assert!(!place.is_mounted());
    }
}

#[test]
fn sigterm_and_sigint_end_an_idle_mount() {
    let place = Place::with_vault();
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        let server = place.serve(&[]);
        server.signal(signal);
        let (code, log) = server.ended(SOON);
        assert_eq!(code, Some(0), "{log}");
        assert!(!place.is_mounted());
    }
}

#[test]
fn sigterm_serves_what_is_open_until_it_is_closed() {
    let place = Place::with_vault();
    let mut server = place.serve(&[]);
    let mut open = File::open(some_file(&place.point())).expect("open");
    server.signal(libc::SIGTERM);
    wait_for("the mount to go", SOON, || !place.is_mounted());
    std::thread::sleep(Duration::from_millis(300));
    assert!(server.is_running());
    let mut text = String::new();
    open.read_to_string(&mut text).expect("served on");
    assert!(text.starts_with('{'));
    drop(open);
    let (code, log) = server.ended(SOON);
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains("cut off"), "{log}");
}

#[test]
fn what_stays_open_is_cut_off_after_the_drain_timeout_and_counted() {
    let place = Place::with_vault();
    let server = place.serve(&["-o", "drain-timeout=300ms"]);
    let open = File::open(some_file(&place.point())).expect("open");
    let asked = Instant::now();
    server.signal(libc::SIGTERM);
    let (code, log) = server.ended(SOON);
    assert_eq!(code, Some(0), "{log}");
    assert!(asked.elapsed() >= Duration::from_millis(300));
    assert!(
        log.contains("cut off") && log.contains("open_files=1"),
        "{log}"
    );
    assert!(!place.is_mounted());
    drop(open);
}

#[test]
fn a_second_sigterm_ends_at_once() {
    let place = Place::with_vault();
    let server = place.serve(&["-o", "drain-timeout=1h"]);
    let _open = File::open(some_file(&place.point())).expect("open");
    server.signal(libc::SIGTERM);
    wait_for("the mount to go", SOON, || !place.is_mounted());
    server.signal(libc::SIGTERM);
    server.ended(Duration::from_secs(2));
    assert!(!place.is_mounted());
}

#[test]
fn after_a_lazy_umount_the_daemon_stays_until_the_last_close() {
    let place = Place::with_vault();
    let mut server = place.serve(&[]);
    let mut open = File::open(some_file(&place.point())).expect("open");
    system("umount", &["-l".as_ref(), place.point().as_os_str()]);
    std::thread::sleep(Duration::from_millis(300));
    assert!(server.is_running());
    let mut text = String::new();
    open.read_to_string(&mut text).expect("served on");
    drop(open);
    assert_eq!(server.ended(SOON).0, Some(0));
}

#[test]
fn an_unrelated_mount_on_the_same_path_is_never_unmounted() {
    let place = Place::with_vault();
    let mount_tmpfs = || {
        let args = ["-t", "tmpfs", "unrelated"].map(AsRef::<std::ffi::OsStr>::as_ref);
        let point = place.point();
        system("mount", &[args[0], args[1], args[2], point.as_os_str()]);
    };
    // In the place of ours, which is gone but still open.
    let server = place.serve(&["-o", "drain-timeout=300ms"]);
    let open = File::open(some_file(&place.point())).expect("open");
    system("umount", &["-l".as_ref(), place.point().as_os_str()]);
    mount_tmpfs();
    server.signal(libc::SIGTERM);
    assert_eq!(server.ended(SOON).0, Some(0));
    drop(open);
    assert_eq!(types_at(&place.point()), ["tmpfs"]);
    system("umount", &[place.point().as_os_str()]);

    // Over ours, which is still there.
    let server = place.serve(&["-o", "drain-timeout=300ms"]);
    mount_tmpfs();
    server.signal(libc::SIGTERM);
    let (_, log) = server.ended(SOON);
    assert!(log.contains("something else is mounted over"), "{log}");
    assert_eq!(
        types_at(&place.point()).last().map(String::as_str),
        Some("tmpfs")
    );
}

#[test]
fn an_aborted_connection_leaves_no_dead_mount() {
    let place = Place::with_vault();
    let server = place.serve(&[]);
    abort(&place);
    let (code, log) = server.ended(SOON);
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("aborted"), "{log}");
    assert!(!place.is_mounted());
}

#[test]
fn the_dead_mount_of_a_killed_daemon_is_named_and_can_be_removed() {
    let place = Place::with_vault();
    let server = place.serve(&[]);
    kill(server.pid(), libc::SIGKILL);
    server.ended(SOON);
    assert!(place.is_mounted());
    place.mount(&[]).failed(7, "whose daemon is gone");
    place
        .run(["status".as_ref(), place.point().as_os_str()])
        .failed(1, "is gone");
    place
        .run(["umount".as_ref(), place.point().as_os_str()])
        .succeeded();
    place.mount(&[]).succeeded();
}

#[test]
fn a_mount_in_use_is_not_unmounted() {
    let place = Place::with_vault();
    place.mount(&[]).succeeded();
    let open = File::open(some_file(&place.point())).expect("open");
    place
        .run(["umount".as_ref(), place.point().as_os_str()])
        .failed(7, "in use");
    drop(open);
    place
        .run(["umount".as_ref(), place.point().as_os_str()])
        .succeeded();
}

#[test]
fn a_descriptor_passed_by_a_mounter_is_served_and_left_to_it() {
    let place = Place::with_vault();
    let device = File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .expect("/dev/fuse");
    let data = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions",
        device.as_raw_fd()
    );
    let (source, fs_type) = ("test", "fuse.secretfs");
    nix::mount::mount(
        Some(source),
        &place.point(),
        Some(fs_type),
        nix::mount::MsFlags::MS_NODEV | nix::mount::MsFlags::MS_NOSUID,
        Some(data.as_str()),
    )
    .expect("mounted");
    let fd = device.as_raw_fd();
    let mut command = place.command();
    command
        .arg("mount")
        .arg(place.vault())
        .arg("/dev/fd/77")
        .arg("-f");
    // SAFETY: dup2 may be called between fork and exec.
    unsafe {
        command.pre_exec(move || match libc::dup2(fd, 77) {
            -1 => Err(std::io::Error::last_os_error()),
            _ => Ok(()),
        });
    }
    let server = Server::start(command);
    drop(device);
    assert!(std::fs::read(some_file(&place.point())).is_ok());
    system("umount", &[place.point().as_os_str()]);
    let (code, log) = server.ended(SOON);
    assert_eq!(code, Some(0), "{log}");
}

#[test]
fn a_descriptor_that_cannot_be_served_is_refused() {
    let place = Place::with_vault();
    let mount =
        |target: &str| place.run(["mount".as_ref(), place.vault().as_os_str(), target.as_ref()]);
    mount("/dev/fd/1").failed(2, "3 or more");
    mount("/dev/fd/x").failed(2, "/dev/fd/N");
    mount("/dev/fd/99").failed(1, "/dev/fd/99");
    let device = File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .expect("/dev/fuse");
    let null = File::open("/dev/null").expect("/dev/null");
    for (fd, why) in [
        (device.as_raw_fd(), "not mounted"),
        (null.as_raw_fd(), "not one of /dev/fuse"),
    ] {
        let mut command = place.command();
        command.arg("mount").arg(place.vault()).arg("/dev/fd/77");
        // SAFETY: dup2 may be called between fork and exec.
        unsafe {
            command.pre_exec(move || match libc::dup2(fd, 77) {
                -1 => Err(std::io::Error::last_os_error()),
                _ => Ok(()),
            });
        }
        crate::support::process::Ran(command.output().expect("it runs")).failed(1, why);
    }
}

#[test]
fn systemd_is_told_of_readiness_and_of_the_end() {
    let place = Place::with_vault();
    let path = place.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("a socket");
    socket.set_read_timeout(Some(SOON)).expect("a timeout");
    let mut command = place.command();
    command.env("NOTIFY_SOCKET", &path);
    command
        .arg("mount")
        .arg(place.vault())
        .arg(place.point())
        .arg("-f");
    let server = Server::start(command);
    let hear = || {
        let mut buffer = [0; 4096];
        let length = socket.recv(&mut buffer).expect("a message");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let ready = hear();
    assert!(
        ready.contains("READY=1") && ready.contains(&format!("MAINPID={}", server.pid())),
        "{ready}"
    );
    server.signal(libc::SIGTERM);
    assert!(hear().contains("STOPPING=1"));
    assert_eq!(server.ended(SOON).0, Some(0));
}

#[test]
fn the_log_is_json_on_request_and_reopened_on_a_hangup() {
    let place = Place::with_vault();
    let log = place.path().join("log");
    let file = log.to_str().expect("UTF-8");
    place
        .mount(&["--log-format", "json", "--log-file", file, "-o", "dev"])
        .succeeded();
    let lines = || std::fs::read_to_string(&log).unwrap_or_default();
    wait_for("the log", SOON, || lines().lines().count() >= 2);
    for line in lines().lines() {
        let value: serde_json::Value = serde_json::from_str(line).expect("JSON");
        assert!(value["level"].is_string(), "{line}");
    }
    assert!(lines().contains("`dev` is not granted"));
    std::fs::rename(&log, place.path().join("log.1")).expect("rotated");
    kill(place.daemons()[0], libc::SIGHUP);
    wait_for("the new log", SOON, || lines().contains("reopened"));
    assert!(place.is_mounted());
}

#[test]
fn paths_that_are_not_utf8_work() {
    let mut place = Place::new();
    let odd = place
        .path()
        .join(std::ffi::OsStr::from_bytes(b"odd \xff,\\\n"));
    std::fs::create_dir(&odd).expect("made");
    let (vault, point) = (odd.join("v"), odd.join("m"));
    std::fs::create_dir(&point).expect("made");
    place.run(["init".as_ref(), vault.as_os_str()]).succeeded();
    place
        .run(["mount".as_ref(), vault.as_os_str(), point.as_os_str()])
        .succeeded();
    assert!(std::fs::read(some_file(&point)).is_ok());
    place
        .run(["mount".as_ref(), vault.as_os_str(), point.as_os_str()])
        .failed(7, "already mounted");
    place
        .run(["status".as_ref(), point.as_os_str()])
        .succeeded();
    place
        .run(["umount".as_ref(), point.as_os_str()])
        .succeeded();
    let _ = &mut place;
}

#[test]
fn a_reader_that_leaves_early_is_no_failure() {
    let place = Place::new();
    let mut child = place
        .command()
        .args(["completions", "bash"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("it runs");
    drop(child.stdout.take());
    let mut said = String::new();
    child
        .stderr
        .take()
        .expect("piped")
        .read_to_string(&mut said)
        .expect("read");
    assert!(child.wait().expect("ended").success());
    assert_eq!(said, "");
    // A full disk is one.
    let full = File::options()
        .write(true)
        .open("/dev/full")
        .expect("/dev/full");
    let output = place
        .command()
        .args(["completions", "bash"])
        .stdout(full)
        .output()
        .expect("it runs");
    crate::support::process::Ran(output).failed(1, "standard output");
    std::io::stdout().flush().expect("flushed");
}

#[test]
fn a_daemon_that_runs_out_of_address_space_leaves_no_mount_and_the_limit_is_named() {
    let place = Place::with_vault();
    let mut dead = 0;
    for mib in (40..=400).step_by(20) {
        let mut command = place.command();
        command.arg("mount").arg(place.vault()).arg(place.point());
        limited(&mut command, Resource::RLIMIT_AS, mib << 20);
        let ran = command.output().expect("the program runs");
        if ran.status.success() {
            detach(&place.point());
        } else {
            assert_eq!(types_at(&place.point()), [""; 0], "{mib} MiB");
            let said = String::from_utf8_lossy(&ran.stderr);
            let has_died = said.contains("SIGABRT") || said.contains("does not answer");
            assert_eq!(has_died, said.contains("ulimit -v"), "{mib} MiB: {said}");
            dead += u32::from(has_died);
        }
        wait_for("the daemon's end", SOON, || place.daemons().is_empty());
    }
    assert!(dead > 0, "the least limit is enough");
}
