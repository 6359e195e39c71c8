//! A mount that is gone may leave its vault held: by a bind of it, by another mount namespace, by files
//! that are open. `umount` says by whom, and never that the vault is free while it is not.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use crate::support::process::{
    Place, Ran, abort, detach, in_own_namespace, kill, root_of, system, wait_for,
};

const SOON: Duration = Duration::from_secs(30);

/// `umount` of the mount point, which is going to wait for as long as it takes.
struct Waiting {
    child: Child,
    stderr: BufReader<std::process::ChildStderr>,
    stdout: ChildStdout,
}

impl Waiting {
    fn begin(place: &Place) -> Self {
        let mut command = place.command();
        command
            .arg("umount")
            .arg(place.point())
            .args(["--drain-timeout", "1h"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("it runs");
        Self {
            stderr: BufReader::new(child.stderr.take().expect("piped")),
            stdout: child.stdout.take().expect("piped"),
            child,
        }
    }

    /// What it says of those who have the vault, while it waits for them.
    fn told(&mut self) -> String {
        let mut line = String::new();
        self.stderr.read_line(&mut line).expect("a line");
        assert!(line.contains("is unmounted, but its vault"), "{line}");
        assert!(line.contains("waiting for that"), "{line}");
        let ended = self.child.try_wait().expect("a child");
        assert_eq!(ended, None, "{line}");
        line
    }

    /// Its end, in which it says that all is well, and nothing more on standard error.
    fn ends_well(mut self) {
        let mut said = String::new();
        self.stdout.read_to_string(&mut said).expect("read");
        let mut complaints = String::new();
        self.stderr.read_to_string(&mut complaints).expect("read");
        assert!(
            self.child.wait().expect("ended").success(),
            "{said}{complaints}"
        );
        assert!(
            said.contains("m is unmounted, its vault at commit"),
            "{said}"
        );
        assert_eq!(complaints, "");
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn umount(place: &Place, more: &[&str]) -> Ran {
    let mut command = place.command();
    command.arg("umount").arg(place.point()).args(more);
    Ran(command.output().expect("it runs"))
}

/// A bind of the mount, taken away in the end.
struct Bind(PathBuf);

impl Bind {
    fn of(place: &Place) -> Self {
        let path = place.path().join("bind");
        fs::create_dir_all(&path).expect("made");
        let point = place.point();
        system(
            "mount",
            &["--bind".as_ref(), point.as_os_str(), path.as_os_str()],
        );
        Self(path)
    }
}

impl Drop for Bind {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

/// A process with a mount namespace of its own, which has a copy of the mount.
struct Apart(Child);

impl Apart {
    fn begin(place: &Place) -> Self {
        let mut command = in_own_namespace(place);
        command
            .args(["sh", "-c", "echo ready; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        crate::support::child::not_outliving_us(&mut command);
        let mut child = command.spawn().expect("unshare runs");
        let mut said = [0; 6];
        let mut stdout = child.stdout.take().expect("piped");
        stdout.read_exact(&mut said).expect("it is ready");
        child.stdout = Some(stdout);
        let id = child.id();
        wait_for("cat", SOON, || {
            fs::read(format!("/proc/{id}/comm")).is_ok_and(|name| name == b"cat\n")
        });
        Self(child)
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs the first command that a message names between backquotes.
fn run_what_is_said(line: &str) {
    let command = line.split('`').nth(1).expect("a command");
    system("sh", &["-c".as_ref(), command.as_ref()]);
}

#[test]
fn umount_waits_for_a_bind_tells_of_it_and_what_it_says_helps() {
    for options in ["-orw", "-oro"] {
        let place = Place::with_vault();
        place.mount(&[options]).succeeded();
        let bind = Bind::of(&place);
        let mut waiting = Waiting::begin(&place);
        let line = waiting.told();
        let named = format!("it is still mounted on {}", bind.0.display());
        assert!(line.contains(&named), "{options}: {line}");
        assert!(!place.is_mounted());
        assert!(bind.0.join(".secretfs/status").exists());
        run_what_is_said(&line);
        waiting.ends_well();
        wait_for("the daemon's end", SOON, || place.daemons().is_empty());
    }
}

/// As a daemon does at its end, which takes a moment more.
#[test]
fn umount_waits_for_a_daemon_that_has_taken_its_name_out_of_the_lock() {
    let place = Place::with_vault();
    place.mount(&[]).succeeded();
    let bind = Bind::of(&place);
    let mut waiting = Waiting::begin(&place);
    waiting.told();
    fs::write(place.vault().join("lock"), "").expect("emptied");
    // It looks a hundred times a second, and waits two seconds for a last word of the daemon.
    std::thread::sleep(Duration::from_secs(3));
    let ended = waiting.child.try_wait().expect("a child");
    assert_eq!(ended, None, "the vault is held");
    drop(bind);
    waiting.ends_well();
}

#[test]
fn umount_waits_for_another_mount_namespace_and_names_a_process_in_it() {
    for options in ["-orw", "-oro"] {
        let place = Place::with_vault();
        place.mount(&[options]).succeeded();
        let apart = Apart::begin(&place);
        let mut waiting = Waiting::begin(&place);
        let line = waiting.told();
        let named = format!(
            "it is mounted on {} in the mount namespace of process {} (cat)",
            place.point().display(),
            apart.0.id()
        );
        assert!(line.contains(&named), "{options}: {line}");
        drop(apart);
        waiting.ends_well();
    }
}

#[test]
fn umount_names_who_has_files_open_where_no_mount_is_left() {
    let place = Place::with_vault();
    place.mount(&[]).succeeded();
    fs::write(place.point().join("a"), "s3cret").expect("written");
    let bind = Bind::of(&place);
    let open = File::open(bind.0.join("a")).expect("opened");
    detach(&bind.0);
    let mut waiting = Waiting::begin(&place);
    let line = waiting.told();
    let named = format!("process {} (", std::process::id());
    assert!(line.contains(&named), "{line}");
    assert!(line.contains("has files of it open"), "{line}");
    drop(open);
    waiting.ends_well();
}

#[test]
fn umount_fails_when_the_vault_is_held_for_longer_than_the_drain_timeout() {
    for options in ["-orw", "-oro"] {
        let place = Place::with_vault();
        place.mount(&[options]).succeeded();
        let bind = Bind::of(&place);
        let named = format!("it is still mounted on {}", bind.0.display());
        umount(&place, &["--drain-timeout", "100ms"]).failed(7, &named);
        assert!(!place.is_mounted());
        // As it is set for mounts, too.
        drop(bind);
        wait_for("the daemon's end", SOON, || place.daemons().is_empty());
        place.mount(&[options]).succeeded();
        let bind = Bind::of(&place);
        let mut command = place.command();
        command
            .env("SECRETFS_DRAIN_TIMEOUT", "100ms")
            .arg("umount")
            .arg(place.point());
        Ran(command.output().expect("it runs")).failed(7, "is still held after 0.1 s");
        drop(bind);
        wait_for("the daemon's end", SOON, || place.daemons().is_empty());
    }
}

#[test]
fn umount_without_waiting_says_that_the_vault_is_still_held() {
    for options in ["-orw", "-oro"] {
        let place = Place::with_vault();
        place.mount(&[options]).succeeded();
        let bind = Bind::of(&place);
        let said = umount(&place, &["--no-wait"]).succeeded().stdout();
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.contains("its vault is still held"), "{said}");
        assert!(said.contains(&bind.0.display().to_string()), "{said}");
        assert!(!place.is_mounted());
    }
}

/// Where somebody else mounts the vault at once, the first daemon is gone all the same.
#[test]
fn umount_does_not_wait_for_who_has_the_vault_next() {
    let place = Place::with_vault();
    for round in 0..5 {
        let server = place.serve(&[]);
        let waiting = Waiting::begin(&place);
        wait_for("the mount to go", SOON, || !place.is_mounted());
        let next = place.serve(&[]);
        let mut waiting = waiting;
        let mut said = String::new();
        waiting.stdout.read_to_string(&mut said).expect("read");
        assert!(said.contains("m is unmounted"), "{round}: {said}");
        assert_eq!(server.ended(SOON).0, Some(0));
        drop(waiting);
        system("umount", &[place.point().as_os_str()]);
        assert_eq!(next.ended(SOON).0, Some(0));
    }
}

/// The daemon of a mount elsewhere, of which this namespace has only a copy.
#[test]
fn umount_of_a_copy_names_the_namespace_of_the_daemon() {
    let place = Place::with_vault();
    let server = crate::support::process::apart(&place, "m", "rw");
    let inside = root_of(&place, &server, "m");
    assert!(inside.join(".secretfs/status").exists());
    let id = server.pid().to_string();
    // Another mount of it, in the namespace of the daemon, and unmounted there.
    let run = |args: &[&str]| {
        let mut command = Command::new("nsenter");
        command.args(["-t", &id, "-m"]).args(args);
        for (name, value) in place.command().get_envs() {
            if let Some(value) = value {
                command.env(name, value);
            }
        }
        Ran(command.output().expect("nsenter runs"))
    };
    let copy = place.path().join("copy");
    fs::create_dir(&copy).expect("made");
    let (point, copy) = (place.point(), copy.display().to_string());
    run(&["mount", "--bind", &point.display().to_string(), &copy]).succeeded();
    let program = crate::support::process::PROGRAM;
    run(&[program, "umount", &copy, "--drain-timeout", "100ms"])
        .failed(7, &format!("it is still mounted on {}", point.display()));
    assert!(Path::new(&inside).join(".secretfs/status").exists());
}

/// Its mount cannot be asked, and is not kept busy by a question that hangs.
#[test]
fn umount_of_a_reader_that_does_not_answer_is_not_kept_busy_by_umount() {
    let place = Place::with_vault();
    place.mount(&["-oro"]).succeeded();
    let daemons = place.daemons();
    daemons.iter().for_each(|pid| kill(*pid, libc::SIGSTOP));
    let ran = umount(&place, &[]);
    daemons.iter().for_each(|pid| kill(*pid, libc::SIGCONT));
    ran.succeeded();
    assert!(!place.is_mounted());
    wait_for("the daemon's end", SOON, || place.daemons().is_empty());
}

#[test]
fn drain_timeout_is_not_for_a_daemon_that_nobody_keeps_alive() {
    let place = Place::with_vault();
    place.mount(&[]).succeeded();
    let daemons = place.daemons();
    daemons.iter().for_each(|pid| kill(*pid, libc::SIGSTOP));
    let mut command = place.command();
    command.arg("umount").arg(place.point());
    command.args(["--drain-timeout", "100ms"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut waiting = command.spawn().expect("it runs");
    wait_for("the mount to go", SOON, || {
        let ended = waiting.try_wait().expect("a child");
        if ended.is_some() && place.is_mounted() {
            let mut said = String::new();
            let stderr = waiting.stderr.as_mut().expect("piped");
            stderr.read_to_string(&mut said).expect("read");
            panic!("it did not unmount: {said}");
        }
        !place.is_mounted()
    });
    std::thread::sleep(Duration::from_secs(1));
    daemons.iter().for_each(|pid| kill(*pid, libc::SIGCONT));
    Ran(waiting.wait_with_output().expect("ended")).succeeded();
    wait_for("the daemon's end", SOON, || place.daemons().is_empty());
}

#[test]
fn a_broken_configuration_file_keeps_nobody_from_unmounting() {
    let place = Place::with_vault();
    place.mount(&[]).succeeded();
    let config = place.path().join("broken.toml");
    fs::write(&config, "drain-timeout = \"soon\"\n").expect("written");
    let umount = |more: &[&str]| {
        let mut command = place.command();
        command.env("SECRETFS_CONFIG", &config).arg("umount");
        Ran(command
            .arg(place.point())
            .args(more)
            .output()
            .expect("it runs"))
    };
    umount(&["--drain-timeout", "never"]).failed(2, "never");
    assert!(place.is_mounted());
    let ran = umount(&[]);
    let said = ran.stderr();
    assert!(ran.0.status.success(), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(
        said.contains("unmounting without configuration files"),
        "{said}"
    );
    assert!(!place.is_mounted());
}

/// mount(8) starts it under the names of its helpers.
#[test]
fn umount_knows_a_reader_that_mount_has_started() {
    let place = Place::with_vault();
    for name in ["mount.secretfs", "mount.fuse.secretfs"] {
        let link = place.path().join(name);
        std::os::unix::fs::symlink(crate::support::process::PROGRAM, &link).expect("linked");
        let own = place.command();
        let mut command = Command::new(&link);
        command
            .envs(own.get_envs().filter_map(|(k, v)| Some((k, v?))))
            .arg(place.vault())
            .arg(place.point())
            .args(["-o", "ro"]);
        let ran = Ran(command.output().expect("it runs"));
        assert!(ran.0.status.success(), "{}", ran.stderr());
        let said = umount(&place, &[]).succeeded().stdout();
        assert!(said.contains("its vault at commit"), "{name}: {said}");
    }
}

/// A vault beside that of the place.
fn another_vault(place: &Place, path: &Path) {
    place.run(["init".as_ref(), path.as_os_str()]).succeeded();
}

/// What `umount` says when it is done. It may have told of other tests, whose namespaces have copies of
/// every mount while they begin.
#[track_caller]
fn unmounted(ran: &Ran) -> String {
    let said = ran.stdout();
    assert!(ran.0.status.success(), "{said}{}", ran.stderr());
    assert!(said.contains("m is unmounted"), "{said}");
    said
}

/// The path that a mount was made from may by now be that of another vault, which somebody serves.
#[test]
fn umount_waits_for_the_daemon_of_the_mount_and_not_for_that_of_another_vault_at_its_path() {
    let place = Place::with_vault();
    let mut server = place.serve(&[]);
    fs::rename(place.vault(), place.path().join("moved")).expect("moved");
    another_vault(&place, &place.vault());
    let other = place.path().join("other");
    fs::create_dir(&other).expect("made");
    let mount = ["mount".into(), place.vault(), other.clone()];
    place.run(mount).succeeded();
    let said = unmounted(&umount(&place, &["--drain-timeout", "5s"]));
    assert!(!server.is_running(), "{said}");
    // Nothing was asked of the other, and nothing of what it says is told.
    assert!(!said.contains("commit"), "{said}");
    assert!(other.join(".secretfs/status").exists());
    place
        .run(["umount".as_ref(), other.as_os_str()])
        .succeeded();
}

/// Nobody has the vault that a bind has put over the one that is mounted.
#[test]
fn umount_says_that_a_vault_is_held_though_another_one_at_its_path_is_not() {
    let place = Place::with_vault();
    place.mount(&[]).succeeded();
    let bind = Bind::of(&place);
    let other = place.path().join("w");
    another_vault(&place, &other);
    let vault = place.vault();
    system(
        "mount",
        &["--bind".as_ref(), other.as_os_str(), vault.as_os_str()],
    );
    let over = Bind(vault);
    let said = umount(&place, &["--no-wait"]).succeeded().stdout();
    assert!(said.contains("its vault is still held"), "{said}");
    assert!(said.contains(&bind.0.display().to_string()), "{said}");
    drop((bind, over));
    wait_for("the daemon's end", SOON, || place.daemons().is_empty());
}

/// Whoever has the vault at its path does not answer: it may be another's.
#[test]
fn umount_says_so_when_it_cannot_tell_whether_the_vault_is_still_held() {
    let place = Place::with_vault();
    place.mount(&[]).succeeded();
    let daemons = place.daemons();
    daemons.iter().for_each(|pid| kill(*pid, libc::SIGSTOP));
    let mut command = place.command();
    command.arg("umount").arg(place.point());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let waiting = command.spawn().expect("it runs");
    wait_for("the mount to go", SOON, || !place.is_mounted());
    daemons.iter().for_each(|pid| kill(*pid, libc::SIGCONT));
    let said = unmounted(&Ran(waiting.wait_with_output().expect("ended")));
    assert!(
        said.contains("whether its vault is still held cannot be told"),
        "{said}"
    );
    assert!(
        said.contains("did not say whether this mount is its own"),
        "{said}"
    );
    wait_for("the daemon's end", SOON, || place.daemons().is_empty());
}

/// A bind says that it is read-only, its daemon says nothing, and the vault is no longer at its path.
#[test]
fn umount_of_a_read_only_bind_whose_daemon_is_silent_does_not_say_that_the_vault_is_free() {
    let place = Place::with_vault();
    place.mount(&[]).succeeded();
    let bind = Bind::of(&place);
    let read_only = ["-o", "remount,bind,ro"].map(AsRef::as_ref);
    system("mount", &[read_only[0], read_only[1], bind.0.as_os_str()]);
    system("umount", &[place.point().as_os_str()]);
    fs::rename(place.vault(), place.path().join("moved")).expect("moved");
    let daemons = place.daemons();
    daemons.iter().for_each(|pid| kill(*pid, libc::SIGSTOP));
    let mut command = place.command();
    command.arg("umount").arg(&bind.0);
    let ran = Ran(command.output().expect("it runs"));
    daemons.iter().for_each(|pid| kill(*pid, libc::SIGCONT));
    let said = ran.succeeded().stdout();
    assert!(said.contains("may still be writing"), "{said}");
    wait_for("the daemon's end", SOON, || place.daemons().is_empty());
}

#[test]
fn umount_of_an_aborted_mount_whose_vault_is_not_seen_does_not_say_that_it_is_free() {
    for is_killed in [false, true] {
        let place = Place::with_vault();
        place.mount(&[]).succeeded();
        let daemons = place.daemons();
        daemons.iter().for_each(|pid| kill(*pid, libc::SIGSTOP));
        abort(&place);
        let moved = place.path().join("moved");
        match is_killed {
            true => daemons.iter().for_each(|pid| kill(*pid, libc::SIGKILL)),
            false => fs::rename(place.vault(), &moved).expect("moved"),
        }
        let ran = umount(&place, &[]);
        daemons.iter().for_each(|pid| kill(*pid, libc::SIGCONT));
        let said = ran.succeeded().stdout();
        // That nobody has the vault which is at its path is seen.
        assert_eq!(said.contains("may still be writing"), !is_killed, "{said}");
        wait_for("the daemon's end", SOON, || place.daemons().is_empty());
    }
}

/// A bind of a directory is without `.secretfs`.
#[test]
fn the_status_of_a_bind_of_a_directory_is_that_of_its_mount_where_that_can_be_asked() {
    for mode in ["rw", "ro"] {
        let place = Place::with_vault();
        place.mount(&[]).succeeded();
        fs::create_dir(place.point().join("sub")).expect("made");
        umount(&place, &[]).succeeded();
        place.mount(&["-o", mode]).succeeded();
        let bind = place.path().join("bind");
        fs::create_dir(&bind).expect("made");
        let sub = place.point().join("sub");
        let args = ["--bind".as_ref(), sub.as_os_str(), bind.as_os_str()];
        system("mount", &args);
        let bind = Bind(bind);
        let ran = place.run(["status".as_ref(), bind.0.as_os_str()]);
        match mode {
            "rw" => assert!(ran.succeeded().stdout().contains("mode: read-write")),
            _ => drop(ran.failed(1, "name that mount, or the vault")),
        }
        drop(bind);
        umount(&place, &[]).succeeded();
    }
}
