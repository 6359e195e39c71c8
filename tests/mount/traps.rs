//! What somebody meets who has just begun, or whom another user of the host has set a trap.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::support::process::{Place, Ran, Server, detach, status, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);
const NOBODY: u32 = 65534;

#[test]
fn init_tells_a_vault_that_is_there_from_other_failures_and_can_leave_it_alone() {
    let place = Place::new();
    let vault = place.vault();
    let init = |more: &[&str]| {
        let mut command = place.command();
        command.arg("init").arg(&vault).args(more);
        Ran(command.output().expect("it runs"))
    };
    let id = |said: &str| {
        let (_, id) = said.split_once("id ").expect("an id is told");
        id.split(|c: char| !c.is_ascii_hexdigit())
            .next()
            .expect("an id")
            .to_owned()
    };
    let first = init(&["--if-missing"]).succeeded().stdout();
    assert!(first.contains("is a new vault"), "{first}");
    let database = fs::read(vault.join("vault.db")).expect("read");
    init(&[]).failed(8, "there is a vault already");
    let again = init(&["--if-missing", "--kms-key", "local-kms://another"]);
    let again = again.succeeded().stdout();
    assert!(again.contains("is a vault already"), "{again}");
    assert_eq!(id(&again), id(&first));
    assert_eq!(fs::read(vault.join("vault.db")).expect("read"), database);
    fs::write(vault.join("vault.db"), "something else").expect("written");
    init(&["--if-missing"]).failed(3, "vault.db");
    fs::remove_file(vault.join("vault.db")).expect("removed");
    fs::write(vault.join("notes"), "mine").expect("written");
    init(&["--if-missing"]).failed(1, "not empty");
}

#[test]
fn a_file_that_has_another_name_in_a_vault_is_not_overwritten() {
    for file in ["vault.db-shm", "vault.db-wal"] {
        let place = Place::with_vault();
        let victim = place.path().join("victim");
        let text = "somebody else's ".repeat(4000);
        fs::write(&victim, &text).expect("written");
        let planted = place.vault().join(file);
        fs::hard_link(&victim, &planted).expect("linked");
        for options in ["-orw", "-oro"] {
            place.mount(&[options]).failed(3, "a hard link");
        }
        place
            .run(["check".as_ref(), place.vault().as_os_str()])
            .failed(3, "a hard link");
        assert_eq!(fs::read_to_string(&victim).expect("read"), text);
        fs::remove_file(&planted).expect("removed");
        place.mount(&[]).succeeded();
    }
}

#[test]
fn a_log_is_not_written_into_a_file_that_another_user_has_chosen() {
    let place = Place::with_vault();
    let victim = place.path().join("victim");
    fs::write(&victim, "mine\n").expect("written");
    let refused = |log: &Path, why: &str| {
        let option = format!("-olog-file={}", log.display());
        place.mount(&[&option]).failed(1, why);
        assert!(!place.is_mounted());
    };
    let linked = place.path().join("linked.log");
    symlink(&victim, &linked).expect("linked");
    refused(&linked, "it is a symlink");
    let named = place.path().join("named.log");
    fs::hard_link(&victim, &named).expect("linked");
    refused(&named, "hard link");
    let theirs = place.path().join("theirs");
    fs::create_dir(&theirs).expect("made");
    chown(&theirs, Some(NOBODY), Some(NOBODY)).expect("given away");
    refused(&theirs.join("log"), "other users");
    let open = place.path().join("open");
    fs::create_dir(&open).expect("made");
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).expect("opened");
    refused(&open.join("log"), "other users");
    // As in /tmp, where others cannot take away what is not theirs.
    fs::set_permissions(&open, fs::Permissions::from_mode(0o1777)).expect("opened");
    let foreign = open.join("foreign.log");
    fs::write(&foreign, "").expect("written");
    chown(&foreign, Some(NOBODY), Some(NOBODY)).expect("given away");
    refused(&foreign, "belongs to another user");
    assert_eq!(fs::read_to_string(&victim).expect("read"), "mine\n");

    // Nor when it is opened anew.
    let log = open.join("own.log");
    let option = format!("-olog-file={}", log.display());
    place.mount(&[&option]).succeeded();
    let moved = open.join("own.log.1");
    fs::rename(&log, &moved).expect("moved");
    symlink(&victim, &log).expect("linked");
    let logged = || fs::read_to_string(&moved).expect("read");
    let before = logged();
    for pid in place.daemons() {
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(pid),
            nix::sys::signal::Signal::SIGHUP,
        )
        .expect("told");
    }
    wait_for("a word about it", PATIENCE, || {
        logged()[before.len()..].contains("symlink")
    });
    assert_eq!(fs::read_to_string(&victim).expect("read"), "mine\n");
}

/// In a user namespace, who is called root may write nothing of root's.
#[test]
fn who_is_root_only_by_name_has_keys_and_anchors_at_home() {
    let place = Place::new();
    let home = place.path().join("home");
    fs::create_dir(&home).expect("made");
    for directory in [place.path(), &home] {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).expect("opened");
    }
    chown(&home, Some(NOBODY), Some(NOBODY)).expect("given");
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .args(["unshare", "--user", "--map-root-user"])
        .arg(env!("CARGO_BIN_EXE_secretfs"))
        .arg("init")
        .arg(home.join("vault"))
        .env_clear()
        .env("HOME", &home)
        .env("PATH", std::env::var_os("PATH").unwrap_or_default());
    let said = Ran(command.output().expect("it runs")).succeeded().stdout();
    assert!(said.contains("is a new vault"), "{said}");
    for made in [".local/share/secretfs/kms", ".local/state/secretfs/anchors"] {
        assert!(home.join(made).is_dir(), "{made}");
    }
}

/// A lock that takes no more than looking into the directory.
#[test]
fn another_user_who_locks_the_vaults_directory_keeps_no_writer_out() {
    let place = Place::with_vault();
    for directory in [place.path(), &place.vault()] {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).expect("opened");
    }
    let locked = |user: &str| {
        let mut holder = Command::new("setpriv")
            .args(["--reuid", user, "--regid", user, "--clear-groups", "flock"])
            .arg(place.vault())
            .args(["sh", "-c", "echo locked; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("setpriv runs");
        let mut said = [0; 7];
        let mut told = holder.stdout.take().expect("piped");
        told.read_exact(&mut said).expect("it is locked");
        holder
    };
    let let_go = |mut holder: Child| {
        drop(holder.stdin.take());
        holder.wait().expect("ended");
    };
    let holder = locked("65534");
    place.mount(&[]).succeeded();
    fs::write(place.point().join("secret"), "s").expect("written");
    let told = status(&place.point())["warnings"].to_string();
    assert!(told.contains("chmod 700"), "{told}");
    place
        .run(["umount".as_ref(), place.point().as_os_str()])
        .succeeded();
    let_go(holder);
    // Who may write to it may be one who has it open.
    let holder = locked("0");
    place.mount(&[]).failed(7, "is open for writing");
    let_go(holder);
    place.mount(&[]).succeeded();
}

fn exchange(a: &Path, b: &Path) -> nix::Result<()> {
    use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
    renameat2(AT_FDCWD, a, AT_FDCWD, b, RenameFlags::RENAME_EXCHANGE)
}

/// Exchanges two names in a directory of nobody's, as nobody, until it is dropped.
struct Swapper {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Swapper {
    fn begin(a: PathBuf, b: PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let (tell, begun) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            // SAFETY: no memory is involved; they are this thread's alone.
            unsafe {
                libc::setfsgid(NOBODY);
                libc::setfsuid(NOBODY);
            }
            exchange(&a, &b).expect("exchanged");
            tell.send(()).expect("somebody listens");
            while !stopped.load(Ordering::Relaxed) {
                // What is mounted on cannot be.
                let _ = exchange(&a, &b);
            }
        });
        begun.recv().expect("it has begun");
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Swapper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || matches!(ended, Some(Ok(()))));
    }
}

/// Where the vault is mounted, by what the kernel says.
fn mounted_at(vault: &Path) -> Vec<PathBuf> {
    let mounts = secretfs::daemon::mounts().expect("mountinfo");
    mounts
        .into_iter()
        .filter(|mount| mount.source == vault)
        .map(|mount| mount.point)
        .collect()
}

#[test]
fn whoever_exchanges_the_mount_point_gets_no_mount_elsewhere_than_was_checked() {
    let place = Place::with_vault();
    let (home, vault) = (place.path().join("home"), place.vault());
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).expect("opened");
    let inside = vault.join("inside");
    let (trap, a) = (home.join("trap"), home.join("a"));
    for directory in [
        &home,
        &home.join("m"),
        &a,
        &a.join("m"),
        &trap,
        &trap.join("m"),
        &inside,
    ] {
        fs::create_dir(directory).expect("made");
        if directory.starts_with(&home) {
            chown(directory, Some(NOBODY), Some(NOBODY)).expect("given away");
        }
    }
    for (exchanged, target, point) in [
        // Where nothing may be mounted, for it would wait for itself.
        ("m", &inside, "m"),
        // Where another user would like it.
        ("m", &trap, "m"),
        // A directory above.
        ("a", &trap, "a/m"),
    ] {
        let (exchanged, link) = (home.join(exchanged), home.join("link"));
        symlink(target, &link).expect("linked");
        std::os::unix::fs::lchown(&link, Some(NOBODY), Some(NOBODY)).expect("given away");
        let point = home.join(point);
        for round in 0..25 {
            let swapper = Swapper::begin(exchanged.clone(), link.clone());
            let ran = place.run(["mount".as_ref(), vault.as_os_str(), point.as_os_str()]);
            drop(swapper);
            // The directory has either name, also once it is mounted on.
            let named = |path: &Path| match path.strip_prefix(&link) {
                Ok(rest) => exchanged.components().chain(rest.components()).collect(),
                Err(_) => path.to_owned(),
            };
            let landed = mounted_at(&vault);
            if !ran.0.status.success() {
                let said = ran.stderr();
                assert_eq!(said.lines().count(), 1, "{said}");
                assert!(said.starts_with("secretfs: "), "{said}");
                assert_eq!(landed, Vec::<PathBuf>::new(), "{round}: {said}");
                continue;
            }
            let status = ["status".as_ref(), vault.as_os_str(), "--json".as_ref()];
            let status = place.run(status).succeeded().stdout();
            let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
            // What it has checked is what it says.
            let checked = PathBuf::from(status["mountpoint"].as_str().expect("a path"));
            assert_eq!(landed.len(), 1, "{round}: {landed:?}");
            assert_eq!(named(&landed[0]), named(&checked), "{round}");
            assert!(!landed[0].starts_with(&vault), "{round}: {landed:?}");
            detach(&landed[0]);
            wait_for("the daemon's end", PATIENCE, || place.daemons().is_empty());
        }
        if exchanged.is_symlink() {
            exchange(&exchanged, &link).expect("exchanged back");
        }
        fs::remove_file(&link).expect("removed");
        place
            .run(["mount".as_ref(), vault.as_os_str(), point.as_os_str()])
            .succeeded();
        assert_eq!(mounted_at(&vault), std::slice::from_ref(&point));
        place
            .run(["umount".as_ref(), point.as_os_str()])
            .succeeded();
    }
}

/// Whoever has started the daemon knows it by that path; it is found by what it is.
#[test]
fn a_mount_below_a_directory_that_was_renamed_ends_with_its_daemon() {
    let place = Place::with_vault();
    let (above, renamed) = (place.path().join("above"), place.path().join("renamed"));
    fs::create_dir_all(above.join("m")).expect("made");
    let mut command = place.command();
    command.arg("mount").arg(place.vault());
    command.arg(above.join("m")).arg("-f");
    let server = Server::start(command);
    fs::rename(&above, &renamed).expect("renamed");
    assert_eq!(mounted_at(&place.vault()), [renamed.join("m")]);
    server.signal(libc::SIGTERM);
    let (code, log) = server.ended(PATIENCE);
    assert_eq!(code, Some(0), "{log}");
    assert_eq!(mounted_at(&place.vault()), Vec::<PathBuf>::new());
}

/// Of root, by root: what is unmounted is what was looked at, and not what has its path by then.
#[test]
fn whoever_exchanges_directories_leads_no_umount_to_another_mount() {
    let (place, other) = (Place::with_vault(), Place::with_vault());
    let home = place.path().join("home");
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).expect("opened");
    let (a, b) = (home.join("a"), home.join("b"));
    for directory in [&home, &a, &b, &a.join("m"), &b.join("m")] {
        fs::create_dir(directory).expect("made");
        chown(directory, Some(NOBODY), Some(NOBODY)).expect("given away");
    }
    for round in 0..10 {
        for (of, above) in [(&place, &a), (&other, &b)] {
            let (vault, point) = (of.vault(), above.join("m"));
            of.run(["mount".as_ref(), vault.as_os_str(), point.as_os_str()])
                .succeeded();
        }
        let swapper = Swapper::begin(a.clone(), b.clone());
        let point = a.join("m");
        let args = ["umount", "--drain-timeout", "100ms"].map(AsRef::<std::ffi::OsStr>::as_ref);
        let ran = place.run([args[0], args[1], args[2], point.as_os_str()]);
        drop(swapper);
        // It has led elsewhere in between, and nothing is unmounted, or the path was right.
        let left = [&place, &other].map(|of| mounted_at(&of.vault()));
        let count = left.concat().len();
        let is_well = ran.0.status.success();
        assert_eq!(
            count,
            if is_well { 1 } else { 2 },
            "{round}: {}",
            ran.stderr()
        );
        left.concat().iter().for_each(|point| detach(point));
        wait_for("the daemons' end", PATIENCE, || {
            place.daemons().is_empty() && other.daemons().is_empty()
        });
    }
}
