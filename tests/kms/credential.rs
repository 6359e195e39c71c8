//! Local keys that a systemd unit is given as credentials. The directory is made as systemd makes it:
//! mode 0500, in it files of mode 0400, the unit's user's or lent to that user by root.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::keys::local_kms;
use crate::support::process::{PROGRAM, Place, Ran};

const NAME: &str = "secretfs.default.key";

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("chmod");
}

/// The directory of a unit's credentials, with this content as the key `default`.
fn credentials(place: &Place, content: &[u8]) -> PathBuf {
    let directory = place.path().join("credentials");
    fs::create_dir_all(&directory).expect("made");
    let file = directory.join(NAME);
    let _ = fs::remove_file(&file);
    fs::write(&file, content).expect("written");
    chmod(&file, 0o400);
    chmod(&directory, 0o500);
    directory
}

/// Runs a command of a unit that has credentials.
fn within(place: &Place, directory: &Path, args: &[&OsStr]) -> Ran {
    let mut command = place.command();
    command.env("CREDENTIALS_DIRECTORY", directory).args(args);
    Ran(command.output().expect("it runs"))
}

fn file_of_key(place: &Place) -> PathBuf {
    place.path().join("kms/default.key")
}

#[test]
fn a_vault_is_mounted_and_rotated_with_a_key_that_is_a_credential_alone() {
    let place = Place::with_vault();
    let content = fs::read(file_of_key(&place)).expect("read");
    let directory = credentials(&place, &content);
    fs::remove_dir_all(place.path().join("kms")).expect("removed");
    let (vault, point) = (place.vault(), place.point());
    let status = ["status".as_ref(), vault.as_os_str()];
    place.run(status).failed(4, "there is no key");
    within(&place, &directory, &status).succeeded();
    // A daemon changes its directory, and asks its KMS again when it rotates.
    let mut mount = place.command();
    mount
        .current_dir(place.path())
        .env("CREDENTIALS_DIRECTORY", "credentials")
        .args(["mount", "v", "m"]);
    Ran(mount.output().expect("it runs")).succeeded();
    fs::write(point.join("password"), "s3cret").expect("written");
    let rotated = place.run(["rotate".as_ref(), point.as_os_str(), "--wait".as_ref()]);
    assert!(rotated.0.status.success(), "{}", rotated.stderr());
    place
        .run(["umount".as_ref(), point.as_os_str()])
        .succeeded();
    within(&place, &directory, &["check".as_ref(), vault.as_os_str()]).succeeded();
    assert!(!place.path().join("kms").exists());
}

#[test]
fn a_mount_that_would_hide_the_credentials_of_its_unit_is_refused() {
    let place = Place::with_vault();
    let content = fs::read(file_of_key(&place)).expect("read");
    let directory = credentials(&place, &content);
    let (vault, over) = (place.vault(), place.point().join("unit"));
    fs::rename(&directory, &over).expect("moved");
    let point = place.point();
    let mount = ["mount".as_ref(), vault.as_os_str(), point.as_os_str()];
    within(&place, &over, &mount).failed(1, "lies under the mount point");
}

#[test]
fn a_vault_is_made_under_a_credential_and_no_key_is_made() {
    let place = Place::new();
    local_kms(&place).ensure("default").expect("a key");
    let content = fs::read(file_of_key(&place)).expect("read");
    let directory = credentials(&place, &content);
    fs::remove_dir_all(place.path().join("kms")).expect("removed");
    let vault = place.vault();
    let init = ["init".as_ref(), vault.as_os_str()];
    let said = within(&place, &directory, &init).succeeded().stdout();
    assert!(said.contains("wrapped by local-kms://default"), "{said}");
    assert!(!said.contains("a new local key"), "{said}");
    assert!(!place.path().join("kms").exists());
    // It is the key of the file that the credential was made from.
    fs::create_dir(place.path().join("kms")).expect("made");
    chmod(&place.path().join("kms"), 0o700);
    fs::write(file_of_key(&place), content).expect("written");
    chmod(&file_of_key(&place), 0o600);
    place
        .run(["status".as_ref(), vault.as_os_str()])
        .succeeded();
}

#[test]
fn a_credential_comes_before_the_directory_and_the_directory_for_what_is_no_credential() {
    let place = Place::with_vault();
    let content = fs::read(file_of_key(&place)).expect("read");
    let directory = credentials(&place, &content);
    // Another key of the same name in the directory is not looked at.
    fs::remove_file(file_of_key(&place)).expect("removed");
    local_kms(&place).ensure("default").expect("a key");
    let vault = place.vault();
    let status = ["status".as_ref(), vault.as_os_str()];
    place.run(status).failed(4, "not the key that wrapped it");
    within(&place, &directory, &status).succeeded();
    // A unit may have credentials of which none is a key, and may have lost them.
    fs::write(file_of_key(&place), content).expect("written");
    fs::remove_file(directory.join(NAME)).expect("removed");
    within(&place, &directory, &status).succeeded();
    fs::remove_dir(&directory).expect("removed");
    within(&place, &directory, &status).succeeded();
}

#[test]
fn a_credential_that_cannot_be_trusted_is_refused_and_replaced_by_no_other_key() {
    let place = Place::with_vault();
    let content = fs::read(file_of_key(&place)).expect("read");
    let directory = credentials(&place, &content);
    let file = directory.join(NAME);
    let vault = place.vault();
    let refused = |code, part: &str| {
        println!("{part}");
        // The right key is in the directory, and is not taken.
        for name in ["status", "check"] {
            within(&place, &directory, &[name.as_ref(), vault.as_os_str()]).failed(code, part);
        }
        let other = place.path().join("other");
        within(&place, &directory, &["init".as_ref(), other.as_os_str()]).failed(code, part);
        assert!(!other.exists());
    };
    for loose in [0o404, 0o440, 0o420, 0o444, 0o666] {
        chmod(&file, loose);
        refused(1, "chmod 0400");
    }
    chmod(&file, 0o400);
    for loose in [0o550, 0o505, 0o777] {
        chmod(&directory, loose);
        refused(1, "chmod 0500");
    }
    chmod(&directory, 0o500);
    chown(&file, Some(12345), None).expect("given away");
    refused(1, "belongs to user 12345");
    chown(&file, Some(0), None).expect("taken back");
    chown(&directory, Some(12345), None).expect("given away");
    refused(1, "belongs to user 12345");
    chown(&directory, Some(0), None).expect("taken back");

    for bad in [&content[..content.len() - 1], b"", &vec![0; 4 << 20]] {
        credentials(&place, bad);
        refused(1, "cannot be used");
    }
    local_kms(&place).ensure("another").expect("a key");
    let another = fs::read(place.path().join("kms/another.key")).expect("read");
    credentials(&place, &another);
    refused(1, "another name");

    fs::remove_file(&file).expect("removed");
    symlink(file_of_key(&place), &file).expect("linked");
    refused(1, "symbolic link");
    fs::remove_file(&file).expect("removed");
    nix::unistd::mkfifo(&file, nix::sys::stat::Mode::from_bits_truncate(0o400)).expect("made");
    refused(1, "no regular file");
    fs::remove_file(&file).expect("removed");
    fs::remove_dir(&directory).expect("removed");
    symlink(place.path().join("kms"), &directory).expect("linked");
    refused(1, "symbolic link");
}

/// systemd keeps the credentials of a unit that runs as another user root's where it can, and lends
/// them to that user with an access control list.
#[test]
fn a_unit_of_an_ordinary_user_uses_what_root_lends_it() {
    let place = Place::new();
    local_kms(&place).ensure("default").expect("a key");
    let content = fs::read(file_of_key(&place)).expect("read");
    let directory = credentials(&place, &content);
    chmod(place.path(), 0o755);
    let home = place.path().join("home");
    fs::create_dir(&home).expect("made");
    chown(&home, Some(65534), Some(65534)).expect("given away");
    let program = home.join("secretfs");
    fs::copy(PROGRAM, &program).expect("copied");
    chmod(&program, 0o755);
    let as_user = |vault: &str| {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
            .arg(&program)
            .arg("init")
            .arg(home.join(vault))
            .env("HOME", &home)
            .env("CREDENTIALS_DIRECTORY", &directory);
        Ran(command.output().expect("setpriv runs"))
    };
    as_user("v").failed(4, "Permission denied");
    let lend = |path: &Path, rights: &str| {
        let rights = format!("u:65534:{rights}");
        crate::support::process::system(
            "setfacl",
            &["-m".as_ref(), rights.as_ref(), path.as_ref()],
        );
    };
    lend(&directory, "r-x");
    lend(&directory.join(NAME), "r--");
    let said = as_user("v").succeeded().stdout();
    assert!(!said.contains("a new local key"), "{said}");
    // What root lets others write or anybody read is not lent.
    chmod(&directory.join(NAME), 0o444);
    as_user("w").failed(1, "belongs to user 0");
}
