//! Idmapped mounts of a mount: owners are shown and taken as mapped, and who may do what is judged by
//! who it is.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::idmap::Idmapped;
use crate::support::process::{PROGRAM, Place, Ran, Server, detach};
use crate::support::socket::ask;
use crate::support::tree::as_user;

/// Users in the vault, and what they are called in the idmapped mount.
const MAP: [(u32, u32); 2] = [(0, 70_000), (1000, 71_000)];
const MAPPED_ROOT: u32 = 70_000;
const MAPPED_APP: u32 = 71_000;
const APP: u32 = 1000;

fn mounted(options: &[&str]) -> (Place, PathBuf) {
    let place = Place::with_vault();
    place
        .mount(&[&["-o", "allow-other"], options].concat())
        .succeeded();
    let other = place.path().join("other");
    fs::create_dir(&other).expect("made");
    // Other users come to it.
    fs::set_permissions(place.path(), Permissions::from_mode(0o755)).expect("set");
    (place, other)
}

fn owner(path: &Path) -> (u32, u32) {
    let it = fs::symlink_metadata(path).expect("there");
    (it.uid(), it.gid())
}

fn unmounted_and_clean(place: &Place) {
    place
        .run(["umount".as_ref(), place.point().as_os_str()])
        .succeeded();
    place
        .run(["check".as_ref(), place.vault().as_os_str()])
        .succeeded();
}

#[test]
fn an_idmapped_mount_shows_and_takes_mapped_owners() {
    let (place, other) = mounted(&["-o", "idmap"]);
    let point = place.point();
    fs::set_permissions(&point, Permissions::from_mode(0o777)).expect("set");
    for (name, uid) in [("root", 0), ("app", APP)] {
        fs::write(point.join(name), name).expect("written");
        chown(point.join(name), Some(uid), Some(uid)).expect("given");
        fs::set_permissions(point.join(name), Permissions::from_mode(0o600)).expect("set");
    }
    let mapped = Idmapped::new(&point, &other, &MAP).expect("idmapped");
    for (name, uid) in [("root", MAPPED_ROOT), ("app", MAPPED_APP)] {
        assert_eq!(owner(&other.join(name)), (uid, uid), "{name}");
    }
    // Whoever is the owner there may read and write, and nobody else.
    let read = |uid, name: &str| as_user(uid, &[], || fs::read(other.join(name)));
    assert_eq!(read(MAPPED_APP, "app").expect("readable"), b"app");
    for (uid, name) in [(APP, "app"), (MAPPED_APP, "root"), (MAPPED_ROOT, "app")] {
        let refused = read(uid, name).expect_err("not his");
        assert_eq!(refused.raw_os_error(), Some(libc::EACCES), "{uid} {name}");
    }
    as_user(MAPPED_APP, &[], || {
        fs::write(other.join("app"), "replaced").expect("written");
        fs::write(other.join("file"), "new").expect("made");
        fs::create_dir(other.join("dir")).expect("made");
        symlink("file", other.join("link")).expect("made");
        nix::unistd::mkfifo(&other.join("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("made");
    });
    assert_eq!(fs::read(point.join("app")).expect("readable"), b"replaced");
    for name in ["file", "dir", "link", "fifo"] {
        assert_eq!(owner(&point.join(name)), (APP, APP), "{name}");
        assert_eq!(owner(&other.join(name)), (MAPPED_APP, MAPPED_APP), "{name}");
    }
    // Who has no number in the vault makes nothing that nobody would own.
    let made = as_user(65_534, &[], || File::create_new(other.join("nobody's")));
    let refused = made.expect_err("no owner");
    assert_eq!(refused.raw_os_error(), Some(libc::EOVERFLOW));
    chown(other.join("file"), Some(MAPPED_ROOT), Some(MAPPED_ROOT)).expect("given");
    assert_eq!(owner(&point.join("file")), (0, 0));
    // The mount itself is as it was.
    as_user(APP, &[], || fs::write(point.join("own"), "x")).expect("made");
    assert_eq!(owner(&point.join("own")), (APP, APP));
    drop(mapped);
    unmounted_and_clean(&place);
}

#[test]
fn a_mount_is_idmapped_only_if_that_was_asked_for() {
    let (place, other) = mounted(&[]);
    let refused = Idmapped::new(&place.point(), &other, &MAP).map(drop);
    let refused = refused.expect_err("not asked for");
    assert_eq!(refused.raw_os_error(), Some(libc::EINVAL));
    unmounted_and_clean(&place);
}

/// The kernel does not say who asks: root keeps set-id bits as everywhere, and others do not.
#[test]
fn where_mounts_may_be_idmapped_set_id_bits_go_as_elsewhere() {
    let (place, other) = mounted(&["-o", "idmap"]);
    let point = place.point();
    let mapped = Idmapped::new(&point, &other, &MAP).expect("idmapped");
    let path = point.join("f");
    let bits_after = |change: &(dyn Fn() + Sync)| {
        fs::write(&path, "x").expect("written");
        fs::set_permissions(&path, Permissions::from_mode(0o6777)).expect("set");
        change();
        fs::metadata(&path).expect("there").mode() & 0o6000
    };
    let empties = |path: &Path| drop(File::create(path).expect("open"));
    let appends = |path: &Path| {
        let mut file = OpenOptions::new().append(true).open(path).expect("open");
        file.write_all(b"more").expect("written");
    };
    for through in [path.clone(), other.join("f")] {
        let changes: [&(dyn Fn() + Sync); 2] = [&|| empties(&through), &|| appends(&through)];
        for (at, change) in changes.into_iter().enumerate() {
            let said = format!("{} {at}", through.display());
            assert_eq!(bits_after(change), 0o6000, "{said}");
            for uid in [APP, MAPPED_ROOT, 65_534] {
                let as_other = || as_user(uid, &[], change);
                assert_eq!(bits_after(&as_other), 0, "{said} {uid}");
            }
        }
    }
    drop(mapped);
    unmounted_and_clean(&place);
}

/// The mode of `control` lets its owner in, and the mapped owner of what is the daemon's is another user.
#[test]
fn who_is_called_as_the_daemon_in_an_idmapped_mount_commands_nothing() {
    let (place, other) = mounted(&["-o", "idmap"]);
    let mapped = Idmapped::new(&place.point(), &other, &MAP).expect("idmapped");
    let control = other.join(".secretfs/control");
    let open = |uid| as_user(uid, &[], || OpenOptions::new().write(true).open(&control));
    for uid in [MAPPED_ROOT, MAPPED_APP, APP, 65_534] {
        let refused = open(uid).expect_err("another user");
        // By the kernel, whom the mode tells so, or by the daemon.
        let expected = match uid {
            MAPPED_ROOT => libc::EPERM,
            _ => libc::EACCES,
        };
        assert_eq!(refused.raw_os_error(), Some(expected), "{uid}");
    }
    let seen = as_user(MAPPED_ROOT, &[], || {
        fs::read_to_string(other.join(".secretfs/status"))
    });
    assert!(!seen.expect("the public part").contains("mountpoint"));
    // Root, by whichever mount: what it says is looked at.
    for point in [place.point(), other.clone()] {
        let path = point.join(".secretfs/control");
        let mut control = OpenOptions::new().write(true).open(path).expect("root's");
        let refused = control.write_all(b"no command").expect_err("none");
        assert_eq!(refused.raw_os_error(), Some(libc::EINVAL));
    }
    drop(mapped);
    unmounted_and_clean(&place);
}

/// Where it is another's, the number of who asks is that of somebody else there: here of this test, which
/// is root's.
#[test]
fn a_daemon_whose_proc_is_that_of_another_pid_namespace_takes_nobody_for_root() {
    let place = Place::with_vault();
    let mut command = Command::new("unshare");
    let own = place.command();
    command
        .envs(
            own.get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        )
        .args(["--pid", "--fork", "--kill-child", PROGRAM, "mount"])
        .arg(place.vault())
        .arg(place.point())
        .args(["-f", "-o", "idmap"]);
    let server = Server::start(command);
    let own = std::process::id();
    let daemons = place.daemons();
    let daemon = daemons.iter().find(|pid| **pid != server.pid());
    let daemon = daemon.expect("a child of unshare");
    // Root there, and called as this test is here.
    let script = format!(
        "echo {} > /proc/sys/kernel/ns_last_pid; sh -c 'echo $$ >&2; exec cat \"$0\"' \"$1\"; true",
        own - 1
    );
    let status = place.point().join(".secretfs/status");
    let mut asked = Command::new("nsenter");
    asked.args(["-t", &daemon.to_string(), "-p", "sh", "-c", &script, "sh"]);
    let ran = Ran(asked.arg(status).output().expect("nsenter runs"));
    assert_eq!(ran.stderr().trim(), own.to_string());
    assert!(
        ran.stdout().contains("\"view\": \"public\""),
        "{}",
        ran.stdout()
    );
    let control = place.point().join(".secretfs/control");
    let refused = OpenOptions::new().write(true).open(control);
    assert_eq!(
        refused.expect_err("nobody").raw_os_error(),
        Some(libc::EPERM)
    );
    // Who connects is named by the kernel.
    assert_eq!(ask(&place.vault(), "status")["status"]["view"], "full");
    detach(&place.point());
}
