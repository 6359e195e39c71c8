//! Vaults that lie where nobody can write: in an image, on a read-only bind, on a read-only disk.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::evil::copy;
use crate::support::process::{Place, detach, status, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);

fn system(program: &str, arguments: &[&str]) {
    let ran = Command::new(program).args(arguments).output();
    let ran = ran.unwrap_or_else(|e| panic!("{program} does not run: {e}"));
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{program} {arguments:?}: {said}");
}

/// A mount of the tests' own, taken away at the end.
struct Mounted(std::path::PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        detach(&self.0);
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of the tests is text")
}

/// All files of a directory and what is in them.
fn content(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let files = fs::read_dir(directory).expect("listed").flatten();
    let mut all: Vec<_> = files
        .filter(|file| file.file_type().is_ok_and(|kind| kind.is_file()))
        .map(|file| {
            let name = file.file_name().to_string_lossy().into_owned();
            (name, fs::read(file.path()).expect("read"))
        })
        .collect();
    all.sort();
    all
}

fn with_secrets() -> Place {
    let place = Place::with_vault();
    place.mount(&[]).succeeded();
    fs::create_dir(place.point().join("db")).expect("made");
    fs::write(place.point().join("db/password"), "a secret").expect("written");
    fs::write(place.point().join("large"), vec![7; 300_000]).expect("written");
    place
        .run(["umount".as_ref(), place.point().as_os_str()])
        .succeeded();
    place
}

/// What is in `read_only` is mounted, read, checked, and as it was.
fn is_served(place: &Place, read_only: &Path) {
    let before = content(read_only);
    let point = place.point();
    place
        .run([
            "mount".as_ref(),
            "-oro".as_ref(),
            read_only.as_os_str(),
            point.as_os_str(),
        ])
        .succeeded();
    let secret = fs::read(point.join("db/password")).expect("read");
    assert_eq!(secret, b"a secret");
    assert_eq!(
        fs::read(point.join("large")).expect("read"),
        vec![7; 300_000]
    );
    assert_eq!(status(&point)["integrity"], "verified");
    place
        .run(["umount".as_ref(), point.as_os_str()])
        .succeeded();
    for command in ["check", "status", "audit"] {
        place
            .run([command.as_ref(), read_only.as_os_str()])
            .succeeded();
    }
    assert_eq!(content(read_only), before);
}

#[test]
fn a_vault_in_an_image_on_a_read_only_bind_or_disk_is_mounted_and_left_as_it_is() {
    let place = with_secrets();
    let at = place.path().join("read only %?#");
    fs::create_dir(&at).expect("made");

    let image = place.path().join("image");
    system(
        "mksquashfs",
        &[text(&place.vault()), text(&image), "-quiet", "-no-progress"],
    );
    system("mount", &["-o", "loop", text(&image), text(&at)]);
    let mounted = Mounted(at.clone());
    is_served(&place, &at);
    drop(mounted);

    system("mount", &["--bind", text(&place.vault()), text(&at)]);
    let mounted = Mounted(at.clone());
    system("mount", &["-o", "remount,bind,ro", text(&at)]);
    is_served(&place, &at);
    drop(mounted);

    let disk = place.path().join("disk");
    fs::File::create(&disk)
        .and_then(|file| file.set_len(16 << 20))
        .expect("made");
    system("mkfs.ext4", &["-q", text(&disk)]);
    system("mount", &["-o", "loop", text(&disk), text(&at)]);
    let mounted = Mounted(at.clone());
    copy(&place.vault(), &at.join("v"));
    // Not lazily: the disk is to be whole.
    std::mem::forget(mounted);
    system("umount", &[text(&at)]);
    system("mount", &["-o", "loop,ro", text(&disk), text(&at)]);
    let _mounted = Mounted(at.clone());
    is_served(&place, &at.join("v"));
}

#[test]
fn what_is_not_in_the_database_yet_is_read_or_told_where_nobody_can_write() {
    let place = with_secrets();
    let server = place.serve(&[]);
    fs::write(place.point().join("db/password"), "another").expect("written");
    server.signal(nix::libc::SIGKILL);
    server.ended(PATIENCE);
    detach(&place.point());
    assert!(fs::metadata(place.vault().join("vault.db-wal")).is_ok_and(|wal| wal.len() > 0));
    let at = place.path().join("at");
    fs::create_dir(&at).expect("made");
    let point = place.point();
    for indexed in [true, false] {
        let image = place.path().join(format!("image {indexed}"));
        if !indexed {
            fs::remove_file(place.vault().join("vault.db-shm")).expect("removed");
        }
        system(
            "mksquashfs",
            &[text(&place.vault()), text(&image), "-quiet", "-no-progress"],
        );
        system("mount", &["-o", "loop", text(&image), text(&at)]);
        let _mounted = Mounted(at.clone());
        let ran = place.run([
            "mount".as_ref(),
            "-oro".as_ref(),
            at.as_os_str(),
            point.as_os_str(),
        ]);
        if !indexed {
            // It is an index of the WAL, which SQLite cannot make here.
            ran.failed(1, "vault.db-wal");
            continue;
        }
        ran.succeeded();
        let secret = fs::read(point.join("db/password")).expect("read");
        assert_eq!(secret, b"another");
        place
            .run(["umount".as_ref(), point.as_os_str()])
            .succeeded();
    }
}

/// On a read-only bind the vault may have a writer elsewhere, also one that comes later.
#[test]
fn a_writer_that_comes_later_is_seen_through_a_read_only_bind() {
    let place = with_secrets();
    let at = place.path().join("bind");
    let beside = place.path().join("beside");
    for directory in [&at, &beside] {
        fs::create_dir(directory).expect("made");
    }
    system("mount", &["--bind", text(&place.vault()), text(&at)]);
    let _mounted = Mounted(at.clone());
    system("mount", &["-o", "remount,bind,ro", text(&at)]);
    place
        .run([
            "mount".as_ref(),
            "-oro".as_ref(),
            at.as_os_str(),
            beside.as_os_str(),
        ])
        .succeeded();
    let read = || fs::read(beside.join("db/password")).expect("read");
    assert_eq!(read(), b"a secret");
    for round in 0..3 {
        place.mount(&[]).succeeded();
        for n in 0..50 {
            let new = format!("{round} {n}");
            fs::write(place.point().join("db/password"), &new).expect("written");
            wait_for("the new one", PATIENCE, || read() == new.as_bytes());
        }
        assert_eq!(status(&beside)["integrity"], "verified");
        place
            .run(["umount".as_ref(), place.point().as_os_str()])
            .succeeded();
        assert_eq!(read(), format!("{round} 49").as_bytes());
    }
    place
        .run(["umount".as_ref(), beside.as_os_str()])
        .succeeded();
}
