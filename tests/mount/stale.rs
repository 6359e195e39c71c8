//! What a daemon that was killed, or cut off from the kernel, leaves behind, and who is told of it.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use crate::support::process::{Place, Server, abort, kill, system, types_at, wait_for};

const SOON: Duration = Duration::from_secs(30);

/// Kills the daemon; its mount stays, and answers nobody.
fn killed(server: Server) {
    server.signal(libc::SIGKILL);
    server.ended(SOON);
}

fn is_served(place: &Place) -> bool {
    fs::read(place.point().join("a")).is_ok_and(|found| found == b"s3cret")
}

#[test]
fn a_daemon_in_the_foreground_that_was_killed_serves_again_every_time() {
    let place = Place::with_vault();
    let mut server = place.serve(&[]);
    fs::write(place.point().join("a"), "s3cret").expect("written");
    let mut held = Vec::new();
    for round in 0..20 {
        // Somebody has a file of the dead mount open, some of the times.
        if round % 3 == 0 {
            held.push(File::open(place.point().join("a")).expect("opened"));
        }
        killed(server);
        assert_eq!(types_at(&place.point()), ["fuse.secretfs"]);
        assert!(!is_served(&place));
        server = place.serve(&[]);
        assert_eq!(types_at(&place.point()), ["fuse.secretfs"], "{round}");
        assert!(is_served(&place), "{round}");
    }
    for mut file in held {
        file.read_to_end(&mut Vec::new()).expect_err("it is dead");
    }
    server.signal(libc::SIGTERM);
    let (code, log) = server.ended(SOON);
    assert_eq!(code, Some(0), "{log}");
    assert!(
        log.contains("whose daemon was gone") && log.contains("replaced=1"),
        "{log}"
    );
    assert_eq!(types_at(&place.point()), Vec::<String>::new());
}

/// As they are left where each start was told to mount over what was there.
#[test]
fn all_dead_mounts_of_the_vault_that_are_stacked_are_replaced() {
    let place = Place::with_vault();
    let aside = place.path().join("aside");
    fs::create_dir(&aside).expect("made");
    let point = place.point();
    for _ in 0..3 {
        let server = place.serve(&[]);
        killed(server);
        // Out of the way of the next one, and kept.
        let args = ["--bind".as_ref(), point.as_os_str(), aside.as_os_str()];
        system("mount", &args);
        system("umount", &["-l".as_ref(), point.as_os_str()]);
    }
    assert_eq!(types_at(&aside).len(), 3);
    while let Some(top) = types_at(&aside).pop() {
        assert_eq!(top, "fuse.secretfs");
        let args = ["--bind".as_ref(), aside.as_os_str(), point.as_os_str()];
        system("mount", &args);
        system("umount", &["-l".as_ref(), aside.as_os_str()]);
    }
    assert_eq!(types_at(&point).len(), 3);
    let server = place.serve(&[]);
    fs::write(point.join("a"), "s3cret").expect("written");
    assert!(is_served(&place));
    assert_eq!(types_at(&point), ["fuse.secretfs"]);
    server.signal(libc::SIGTERM);
    let (_, log) = server.ended(SOON);
    assert!(log.contains("replaced=3"), "{log}");
}

#[test]
fn a_dead_mount_is_replaced_where_that_is_asked_for_and_only_there() {
    let place = Place::with_vault();
    killed(place.serve(&[]));
    place.mount(&[]).failed(7, "replace-stale");
    place.mount(&["-oreplace-stale"]).succeeded();
    assert_eq!(types_at(&place.point()), ["fuse.secretfs"]);
    for pid in place.daemons() {
        kill(pid, libc::SIGKILL);
    }
    // The connection ends some time after the process is seen to be gone.
    wait_for("the end of the connection", SOON, || {
        let looked = std::fs::metadata(place.point());
        looked.is_err_and(|error| error.raw_os_error() == Some(libc::ENOTCONN))
    });
    place
        .mount(&["-f", "-o", "noreplace-stale"])
        .failed(7, "whose daemon is gone");
    let mut command = place.command();
    command.env("SECRETFS_REPLACE_STALE", "false");
    command.args(["mount", "-f"]).arg(place.vault());
    let refused = command.arg(place.point()).output().expect("it runs");
    crate::support::process::Ran(refused).failed(7, "whose daemon is gone");
    // A check alone takes nothing away.
    let link = place.path().join("mount.secretfs");
    std::os::unix::fs::symlink(crate::support::process::PROGRAM, &link).expect("linked");
    let checked = std::process::Command::new(&link)
        .arg(place.vault())
        .arg(place.point())
        .args(["-f", "-o", "replace-stale"])
        .status()
        .expect("it runs");
    assert!(checked.success());
    assert_eq!(types_at(&place.point()), ["fuse.secretfs"]);
}

#[test]
fn nothing_but_a_dead_mount_of_the_same_vault_is_ever_replaced() {
    let place = Place::with_vault();
    let foreground = ["-f", "-o", "replace-stale"];
    // A live one, of this vault and of another.
    let server = place.serve(&[]);
    place.mount(&foreground).failed(7, "already mounted");
    let other = Place::with_vault();
    let mount_other = || {
        let mut command = other.command();
        command.arg("mount").arg(other.vault()).arg(place.point());
        crate::support::process::Ran(command.args(foreground).output().expect("it runs"))
    };
    mount_other().failed(7, "is already a mount point");
    assert!(place.point().join(".secretfs/status").exists());
    // A dead one of another vault.
    killed(server);
    mount_other().failed(7, "a mount of another vault");
    assert_eq!(types_at(&place.point()), ["fuse.secretfs"]);
    // Another file system over a dead one.
    let point = place.point();
    let tmpfs = ["-t", "tmpfs", "none"].map(AsRef::<std::ffi::OsStr>::as_ref);
    system("mount", &[tmpfs[0], tmpfs[1], tmpfs[2], point.as_os_str()]);
    place.mount(&foreground).failed(7, "type tmpfs");
    assert_eq!(types_at(&point), ["fuse.secretfs", "tmpfs"]);
    // What is refused for another reason takes nothing away.
    system("umount", &[point.as_os_str()]);
    let log = format!("log-file={}", point.join("log").display());
    place
        .mount(&["-f", "-o", &log])
        .failed(1, "lies under the mount point");
    assert_eq!(types_at(&point), ["fuse.secretfs"]);
}

/// They would be taken away together with it.
#[test]
fn a_dead_mount_with_another_mount_below_is_not_replaced() {
    let place = Place::with_vault();
    let server = place.serve(&[]);
    let below = place.point().join("below");
    fs::create_dir(&below).expect("made");
    let tmpfs = ["-t", "tmpfs", "none"].map(AsRef::<std::ffi::OsStr>::as_ref);
    system("mount", &[tmpfs[0], tmpfs[1], tmpfs[2], below.as_os_str()]);
    killed(server);
    let told = format!(
        "since {0} is mounted below it; `umount {0}` first",
        below.display()
    );
    place.mount(&["-oreplace-stale"]).failed(7, &told);
    assert_eq!(types_at(&below), ["tmpfs"]);
}

/// A service that tells `socket` of its state.
fn notifying(place: &Place) -> (Server, UnixDatagram) {
    let path = place.path().join("notify");
    let _ = fs::remove_file(&path);
    let socket = UnixDatagram::bind(&path).expect("a socket");
    socket.set_read_timeout(Some(SOON)).expect("a timeout");
    let mut command = place.command();
    command
        .env("NOTIFY_SOCKET", &path)
        .arg("mount")
        .arg(place.vault())
        .arg(place.point())
        .arg("-f");
    let server = Server::start(command);
    assert!(hear(&socket).contains("READY=1"));
    (server, socket)
}

fn hear(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer).expect("a message");
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

#[test]
fn systemd_is_told_when_an_operator_cuts_the_connection() {
    type Cut = fn(&Place);
    let cuts: [(&str, Cut); 2] = [
        ("abort", abort),
        // While something is open, it aborts and does not unmount.
        ("umount -f", |place| {
            let open = File::open(place.point().join(".secretfs/status")).expect("opened");
            let point = place.point();
            let forced = std::process::Command::new("umount")
                .arg("-f")
                .arg(&point)
                .output()
                .expect("umount runs");
            assert!(!forced.status.success());
            drop(open);
        }),
    ];
    for (what, cut) in cuts {
        let place = Place::with_vault();
        let (server, socket) = notifying(&place);
        cut(&place);
        let told = hear(&socket);
        assert!(told.contains("STOPPING=1"), "{what}: {told}");
        assert!(
            told.contains("STATUS=the connection to the kernel was aborted"),
            "{what}: {told}"
        );
        let (code, log) = server.ended(SOON);
        assert_eq!(code, Some(1), "{what}: {log}");
        assert!(
            log.contains("ERROR") && log.contains("was aborted"),
            "{what}: {log}"
        );
        assert!(!place.is_mounted());
    }
}

#[test]
fn systemd_is_told_when_somebody_unmounts() {
    for flags in [&[][..], &["-l"], &["-f"]] {
        let place = Place::with_vault();
        let (server, socket) = notifying(&place);
        let status = std::process::Command::new("umount")
            .args(flags)
            .arg(place.point())
            .status()
            .expect("umount runs");
        assert!(status.success());
        let told = hear(&socket);
        assert!(told.contains("STOPPING=1"), "{flags:?}: {told}");
        assert!(!told.contains("STATUS="), "{flags:?}: {told}");
        let (code, log) = server.ended(SOON);
        assert_eq!(code, Some(0), "{flags:?}: {log}");
    }
}
