//! Commands on a vault whose mount they do not see: its daemon is asked over `control.sock`, as that
//! of a sidecar container is.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::process::{Place, Ran, Server, apart, detach, root_of, status, wait_for};
use crate::support::rotating::{
    all_is_there, check_is_clean, command, fill, json, wait_for_the_end, wait_for_the_middle,
};
use crate::support::socket::{ask, socket_of};
use serde_json::Value;

const SECRETS: usize = 300;
const SOON: Duration = Duration::from_secs(60);

/// A vault mounted where nobody outside sees the mount. Who asks has no KMS key.
struct Sidecar {
    place: Place,
    server: Server,
}

impl Sidecar {
    fn start() -> Self {
        let place = Place::with_vault();
        let server = apart(&place, "w", "rw");
        let sidecar = Self { place, server };
        fill(&sidecar.point(), SECRETS);
        sidecar
    }

    /// The mount, through the eyes of the daemon.
    fn point(&self) -> PathBuf {
        root_of(&self.place, &self.server, "w")
    }

    fn run(&self, args: &[&str]) -> Ran {
        run(&self.place, &self.place.vault(), args)
    }

    fn status(&self) -> Value {
        let ran = self.run(&["status", "--json"]).succeeded();
        serde_json::from_str(&ran.stdout()).expect("JSON")
    }
}

/// A command on a vault, where its KMS key is not.
fn run(place: &Place, vault: &Path, args: &[&str]) -> Ran {
    let (name, more) = args.split_first().expect("a command");
    let mut command = place.command();
    command.env("SECRETFS_LOCAL_KMS_DIR", place.path().join("no-keys"));
    command.arg(name).arg(vault).args(more);
    Ran(command.output().expect("the program runs"))
}

#[track_caller]
fn done(ran: &Ran, what: &str) {
    assert!(ran.0.status.success(), "{what}: {}", ran.stderr());
    assert_eq!(ran.stdout(), crate::support::rotating::done(what));
}

#[test]
fn a_vault_mounted_in_another_mount_namespace_is_asked_from_outside() {
    let sidecar = Sidecar::start();
    for (what, generation) in [("rotate", 2), ("rewrap", 2), ("reencrypt", 3)] {
        done(&sidecar.run(&[what, "--wait"]), what);
        let now = sidecar.status();
        assert_eq!(now["active_generation"], generation, "{now:#}");
        assert!(now["last_rotations"][what].is_number(), "{now:#}");
    }
    let now = sidecar.status();
    assert_eq!(
        now["mountpoint"],
        *sidecar.place.path().join("w").display().to_string()
    );
    assert_eq!(now["held_for_writing_by"]["pid"], sidecar.server.pid());
    assert_eq!(now, {
        let mut seen = status(&sidecar.point());
        for name in [
            "held_for_writing_by",
            "uptime_seconds",
            "open_files",
            "anchor",
            "memory",
        ] {
            seen[name] = now[name].clone();
        }
        seen
    });
    // One that is not waited for.
    let begun = sidecar.run(&["rotate"]).succeeded();
    assert!(
        begun.stdout().starts_with("rotate has begun; "),
        "{}",
        begun.stdout()
    );
    wait_for_the_end(&sidecar.point());
    assert_eq!(sidecar.status()["active_generation"], 4);
    let told = sidecar.run(&["audit", "--verify"]).succeeded().stdout();
    let events = sidecar.run(&["audit", "--json"]).succeeded().stdout();
    let count = events.lines().count();
    assert_eq!(told, format!("{count} events, none missing or changed\n"));
    // The same as whoever has the key reads.
    let vault = sidecar.place.vault();
    all_is_there(&sidecar.point(), SECRETS);
    sidecar.server.signal(libc::SIGTERM);
    assert_eq!(sidecar.server.ended(SOON).0, Some(0));
    let read = sidecar
        .place
        .run(["audit".as_ref(), vault.as_os_str(), "--json".as_ref()]);
    assert_eq!(read.succeeded().stdout(), events);
    check_is_clean(&sidecar.place);
}

#[test]
fn what_runs_is_told_from_outside_and_can_be_joined() {
    let place = Place::with_vault();
    let mut slow = crate::support::process::in_own_namespace(&place);
    slow.arg(crate::support::process::PROGRAM)
        .env("FAILPOINTS", "migrate-before=sleep(150)");
    slow.arg("mount")
        .arg(place.vault())
        .arg(place.point())
        .arg("-f");
    let server = Server::start(slow);
    let point = root_of(&place, &server, "m");
    fill(&point, SECRETS);
    run(&place, &place.vault(), &["rotate"]).succeeded();
    wait_for_the_middle(&point);
    let under_way = "rotate is under way since ";
    for other in [
        &["reencrypt", "--wait"][..],
        &["rewrap", "--wait"],
        &["rotate"],
    ] {
        let told = run(&place, &place.vault(), other).failed(7, under_way);
        assert!(
            told.stderr().contains(" of 606 keys done"),
            "{}",
            told.stderr()
        );
    }
    let refused = &ask(&place.vault(), "control reencrypt")["refused"];
    assert_eq!(refused["errno"], "EBUSY");
    assert!(
        refused["why"].as_str().expect("words").contains(under_way),
        "{refused}"
    );
    let joined = run(&place, &place.vault(), &["rotate", "--wait"]);
    done(&joined, "rotate");
    assert!(
        joined.stderr().contains("one is under way already"),
        "{}",
        joined.stderr()
    );
    assert_eq!(status(&point)["active_generation"], 2);
    // A daemon that dies meanwhile.
    run(&place, &place.vault(), &["rotate"]).succeeded();
    wait_for_the_middle(&point);
    let mut waiting = place.command();
    waiting.arg("rotate").arg(place.vault()).arg("--wait");
    waiting
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let mut waiting = waiting.spawn().expect("it runs");
    let mut told = String::new();
    let stderr = waiting.stderr.take().expect("piped");
    let mut told_so = std::io::BufReader::new(stderr);
    while !told.contains("one is under way already") {
        let read = std::io::BufRead::read_line(&mut told_so, &mut told);
        assert!(read.expect("a line") > 0, "{told}");
    }
    server.signal(libc::SIGKILL);
    server.ended(SOON);
    std::io::Read::read_to_string(&mut told_so, &mut told).expect("UTF-8");
    assert_eq!(waiting.wait().expect("a child").code(), Some(1), "{told}");
    assert!(told.contains("the mount has ended"), "{told}");
}

#[test]
fn errors_are_told_by_the_name_of_the_errno_and_in_words() {
    let sidecar = Sidecar::start();
    let vault = sidecar.place.vault();
    let before = sidecar.status();
    let refused = |question: &str, errno: &str, words: &str| {
        let refused = &ask(&vault, question)["refused"];
        assert_eq!(refused["errno"], errno, "{question}: {refused}");
        let why = refused["why"].as_str().expect("words");
        assert!(why.contains(words), "{question}: {why}");
    };
    refused("control nonsense", "EINVAL", "unknown command");
    refused("control rewrap nonsense", "EINVAL", "nonsense");
    refused("control ", "EINVAL", "empty");
    refused(
        &format!("control rewrap {}", "x".repeat(4090)),
        "EINVAL",
        "too long",
    );
    refused("metrics", "EINVAL", "unknown question");
    refused("", "EINVAL", "unknown question");
    refused("control rewrap local-kms://absent", "EKEYREVOKED", "absent");
    sidecar
        .run(&["rewrap", "--kms-key", "local-kms://absent"])
        .failed(4, "absent");
    // Its key is put away.
    std::fs::rename(
        sidecar.place.path().join("kms"),
        sidecar.place.path().join("away"),
    )
    .expect("moved");
    refused("control rotate", "EKEYREVOKED", "local-kms://default");
    sidecar
        .run(&["rotate", "--wait"])
        .failed(4, "local-kms://default");
    let said = std::fs::read_to_string(sidecar.point().join(".secretfs/control"));
    assert!(
        said.expect("readable").contains("rotate: failed: "),
        "one room"
    );
    let after = sidecar.status();
    assert_eq!(after["keyring_sequence"], before["keyring_sequence"]);
    // The history was changed meanwhile; who asks could not tell.
    let edit = "UPDATE event SET value = x'00' WHERE sequence = 1";
    let database = rusqlite::Connection::open(vault.join("vault.db")).expect("open");
    assert_eq!(database.execute(edit, []).expect("edited"), 1);
    sidecar.run(&["audit", "--verify"]).failed(6, "history");
}

#[test]
fn a_socket_is_there_for_as_long_as_a_mount_for_writing_and_a_stale_one_is_in_nobodys_way() {
    let place = Place::with_vault();
    let vault = place.vault();
    let socket = socket_of(&vault);
    place.mount(&["-o", "ro"]).succeeded();
    assert!(!socket.exists(), "of a mount for reading");
    place
        .run(["umount".as_ref(), place.point().as_os_str()])
        .succeeded();

    let server = place.serve(&[]);
    fill(&place.point(), 10);
    let found = std::fs::metadata(&socket).expect("a socket");
    assert!(found.file_type().is_socket());
    assert_eq!(found.permissions().mode() & 0o7777, 0o600);
    server.signal(libc::SIGKILL);
    server.ended(SOON);
    detach(&place.point());
    assert!(socket.exists(), "nobody could remove it");

    // Copies of the vault have it, too.
    let copy = place.path().join("copy");
    crate::support::process::system("cp", &["-a".as_ref(), vault.as_os_str(), copy.as_os_str()]);
    assert!(socket_of(&copy).exists());
    for vault in [&vault, &copy] {
        place.run(["check".as_ref(), vault.as_os_str()]).succeeded();
        place
            .run(["status".as_ref(), vault.as_os_str()])
            .succeeded();
        place
            .run(["audit".as_ref(), vault.as_os_str(), "--verify".as_ref()])
            .succeeded();
    }
    std::fs::remove_dir_all(&copy).expect("removed");
    // Nobody has it mounted: the command does the work.
    let ran = place.run(["rotate".as_ref(), vault.as_os_str()]);
    done(&ran, "rotate");
    let server = place.serve(&[]);
    done(&run(&place, &vault, &["rotate", "--wait"]), "rotate");
    assert_eq!(status(&place.point())["active_generation"], 3);
    place
        .run(["umount".as_ref(), place.point().as_os_str()])
        .succeeded();
    assert_eq!(server.ended(SOON).0, Some(0));
    assert!(!socket.exists(), "an orderly end removes it");

    // Where there was a vault, there is room for another.
    let server = place.serve(&[]);
    server.signal(libc::SIGKILL);
    server.ended(SOON);
    detach(&place.point());
    for name in ["vault.db", "vault.db-wal", "vault.db-shm", "lock"] {
        let _ = std::fs::remove_file(vault.join(name));
    }
    assert!(socket.exists());
    place.run(["init".as_ref(), vault.as_os_str()]).succeeded();
    // But only a socket is taken for a left-over.
    let taken = place.path().join("taken");
    std::fs::create_dir(&taken).expect("made");
    std::fs::write(socket_of(&taken), "").expect("written");
    place
        .run(["init".as_ref(), taken.as_os_str()])
        .failed(1, "not empty");
}

#[test]
fn the_path_of_a_vault_may_be_longer_than_that_of_a_socket() {
    let place = Place::new();
    let deep = place.path().join("d".repeat(120)).join("e".repeat(120));
    std::fs::create_dir_all(&deep).expect("made");
    let vault = deep.join("v");
    place.run(["init".as_ref(), vault.as_os_str()]).succeeded();
    let mount = [
        "mount".as_ref(),
        vault.as_os_str(),
        place.point().into_os_string().as_os_str(),
    ]
    .map(std::ffi::OsStr::to_owned);
    place.run(mount).succeeded();
    fill(&place.point(), 10);
    assert!(socket_of(&vault).exists());
    done(&run(&place, &vault, &["rotate", "--wait"]), "rotate");
    assert_eq!(status(&place.point())["active_generation"], 2);
    place
        .run(["umount".as_ref(), place.point().as_os_str()])
        .succeeded();
    assert!(!socket_of(&vault).exists());
}

#[test]
fn a_vault_without_a_socket_is_mounted_and_commands_say_what_to_name() {
    let place = Place::with_vault();
    std::fs::create_dir(socket_of(&place.vault())).expect("in the way");
    let server = place.serve(&[]);
    fill(&place.point(), 10);
    let vault = place.vault();
    place
        .run(["rotate".as_ref(), vault.as_os_str(), "--wait".as_ref()])
        .failed(7, "name the mount point");
    let point = place.point();
    let ran = place.run(["rotate".as_ref(), point.as_os_str(), "--wait".as_ref()]);
    done(&ran, "rotate");
    assert_eq!(json(&place, "status")["active_generation"], 2);
    command(&point, "rotate").expect("begun");
    wait_for_the_end(&point);
    server.signal(libc::SIGTERM);
    let (code, log) = server.ended(SOON);
    assert_eq!(code, Some(0));
    assert!(
        log.contains("WARN") && log.contains("no control.sock"),
        "{log}"
    );
    assert!(socket_of(&vault).is_dir(), "what is not ours stays");
}

#[test]
fn a_socket_that_belongs_to_another_directory_has_nothing_done() {
    let place = Place::with_vault();
    let server = place.serve(&[]);
    let vault = place.vault();
    let other = place.path().join("other");
    place.run(["init".as_ref(), other.as_os_str()]).succeeded();
    let point = place.path().join("p");
    std::fs::create_dir(&point).expect("made");
    place
        .run(["mount".as_ref(), other.as_os_str(), point.as_os_str()])
        .succeeded();
    std::fs::rename(socket_of(&vault), socket_of(&other)).expect("moved");
    let ran = place.run(["rotate".as_ref(), other.as_os_str(), "--wait".as_ref()]);
    ran.failed(1, "another directory");
    assert_eq!(status(&place.point())["active_generation"], 1);
    assert_eq!(status(&point)["active_generation"], 1);
    place
        .run(["umount".as_ref(), point.as_os_str()])
        .succeeded();

    // The same socket, back where it was; then its vault is moved away with it.
    let _ = std::fs::remove_file(socket_of(&other));
    let away = place.path().join("away");
    std::fs::rename(&vault, &away).expect("moved");
    let ran = run(&place, &away, &["status"]);
    assert_eq!(ran.0.status.code(), Some(4), "{}", ran.stderr());
    std::fs::rename(&away, &vault).expect("back");
    drop(server);
    wait_for("the daemon's end", SOON, || place.daemons().is_empty());
}
