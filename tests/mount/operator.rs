//! What operators do by mistake, or have to do when something is broken: lock files removed, vaults
//! moved under their daemon, copies looked at, damaged vaults salvaged.

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::support::evil::{copy, execute};
use crate::support::process::{Place, kill};

fn unmount(place: &Place) {
    place
        .run(["umount".as_ref(), place.point().as_os_str()])
        .succeeded();
}

fn integrity(place: &Place) -> String {
    let text = fs::read(place.point().join(".secretfs/status")).expect("a status");
    let status: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    status["integrity"].as_str().expect("text").to_owned()
}

#[test]
fn removing_the_lock_file_lets_no_second_writer_in() {
    let place = Place::with_vault();
    place.mount(&[]).succeeded();
    fs::remove_file(place.vault().join("lock")).expect("removed");
    let second = place.path().join("second");
    fs::create_dir(&second).expect("made");
    place
        .run([
            "mount".as_ref(),
            place.vault().as_os_str(),
            second.as_os_str(),
        ])
        .failed(7, "open for writing");
    // And the first one, which can no longer show that it is alone, writes nothing more.
    fs::create_dir(place.point().join("d")).expect_err("nothing more is written");
    place.run(["umount".as_ref(), place.point().as_os_str()]);
    place
        .run(["check".as_ref(), place.vault().as_os_str()])
        .succeeded();
}

#[test]
fn a_vault_that_was_moved_away_takes_no_names_either() {
    let place = Place::with_vault();
    place.mount(&[]).succeeded();
    let point = place.point();
    fs::write(point.join("old"), "s3cret").expect("written");
    fs::rename(place.vault(), place.path().join("elsewhere")).expect("moved");
    let eio = |outcome: std::io::Result<()>| {
        let error = outcome.expect_err("nothing is acknowledged");
        assert_eq!(error.raw_os_error(), Some(nix::libc::EIO));
    };
    eio(fs::create_dir(point.join("d")));
    eio(fs::rename(point.join("old"), point.join("new")));
    eio(fs::remove_file(point.join("old")));
    eio(std::os::unix::fs::symlink("x", point.join("link")));
    assert_eq!(fs::read(point.join("old")).expect("read"), b"s3cret");
    place.run(["umount".as_ref(), point.as_os_str()]);
    fs::rename(place.path().join("elsewhere"), place.vault()).expect("back");
    place
        .run(["check".as_ref(), place.vault().as_os_str()])
        .succeeded();
}

#[test]
fn looking_at_a_copy_does_not_move_the_vault() {
    let place = Place::with_vault();
    place.mount(&[]).succeeded();
    fs::write(place.point().join("a"), "s3cret").expect("written");
    unmount(&place);
    let backup = place.path().join("backup");
    copy(&place.vault(), &backup);
    place
        .run(["check".as_ref(), backup.as_os_str()])
        .succeeded();
    // Another vault in the first one's place is still noticed.
    fs::rename(place.vault(), place.path().join("aside")).expect("moved");
    let other = place.path().join("other");
    place.run(["init".as_ref(), other.as_os_str()]).succeeded();
    fs::rename(&other, place.vault()).expect("moved");
    place.mount(&[]).failed(6, "--accept-rollback");
}

#[test]
fn what_is_left_of_a_damaged_vault_can_be_copied_out() {
    let place = Place::with_vault();
    place.mount(&[]).succeeded();
    for at in 0..10 {
        fs::write(place.point().join(format!("s{at}")), format!("secret {at}")).expect("written");
    }
    unmount(&place);
    execute(&place, "DELETE FROM node WHERE id = 3");
    execute(
        &place,
        "DELETE FROM entry WHERE tag = (SELECT max(tag) FROM entry)",
    );
    place.mount(&[]).failed(6, "integrity failure");
    place.mount(&["-oro,salvage"]).succeeded();
    let names: Vec<_> = fs::read_dir(place.point()).expect("listed").collect();
    let mut whole = 0;
    for name in names {
        let path = name.expect("an entry").path();
        if let Ok(text) = fs::read_to_string(&path) {
            let at = path.file_name().and_then(|n| n.to_str()).expect("a name");
            assert_eq!(text, format!("secret {}", &at[1..]));
            whole += 1;
        }
    }
    assert!(whole >= 8, "{whole} of 10 are whole");
    unmount(&place);
}

#[test]
fn status_tells_of_reads_that_did_not_authenticate() {
    let place = Place::with_vault();
    place.mount(&[]).succeeded();
    fs::write(place.point().join("a"), vec![7; 300]).expect("written");
    unmount(&place);
    execute(&place, "DELETE FROM chunk");
    place.mount(&[]).succeeded();
    assert_eq!(integrity(&place), "verified");
    fs::read(place.point().join("a")).expect_err("it does not authenticate");
    assert!(
        integrity(&place).starts_with("failed"),
        "{}",
        integrity(&place)
    );
    unmount(&place);
}

#[test]
fn a_read_that_meets_a_damaged_chunk_gives_nothing_and_what_lies_beside_it_is_served() {
    const CHUNK: usize = 64 << 10;
    let place = Place::with_vault();
    place.mount(&[]).succeeded();
    // The last chunk is padded.
    let content: Vec<u8> = (0..5 * CHUNK - 100).map(|at| (at % 251) as u8).collect();
    fs::write(place.point().join("a"), &content).expect("written");
    unmount(&place);
    let other = "UPDATE chunk SET sealed = (SELECT sealed FROM chunk WHERE idx = 3) WHERE idx = 2";
    execute(&place, other);
    place.mount(&[]).succeeded();
    let file = fs::File::open(place.point().join("a")).expect("opened");
    for _ in 0..2 {
        for (offset, length) in [
            (0, 2 * CHUNK),
            (3 * CHUNK, 2 * CHUNK),
            (3 * CHUNK + 5, 2 * CHUNK),
            (4 * CHUNK - 5, 10),
            (CHUNK + 1, CHUNK - 1),
            (5 * CHUNK - 110, 20),
        ] {
            let mut read = vec![0xff; length];
            let count = file.read_at(&mut read, offset as u64).expect("read");
            let end = content.len().min(offset + length);
            assert_eq!(count, end - offset, "{offset} {length}");
            assert!(read[..count] == content[offset..end], "{offset} {length}");
        }
        for (offset, length) in [
            (CHUNK, 2 * CHUNK),
            (2 * CHUNK, 2 * CHUNK),
            (2 * CHUNK - 5, 10),
            (2 * CHUNK + 5, 10),
            (3 * CHUNK - 5, 10),
        ] {
            let mut read = vec![0xff; length];
            let error = file.read_at(&mut read, offset as u64).expect_err("damaged");
            assert_eq!(error.raw_os_error(), Some(nix::libc::EIO));
            assert!(read.iter().all(|byte| *byte == 0xff), "{offset} {length}");
        }
    }
    drop(file);
    unmount(&place);
}

#[test]
fn signals_without_a_meaning_do_not_end_the_daemon() {
    let place = Place::with_vault();
    place.mount(&[]).succeeded();
    for pid in place.daemons() {
        for signal in [nix::libc::SIGUSR1, nix::libc::SIGUSR2, nix::libc::SIGALRM] {
            kill(pid, signal);
        }
    }
    let mut file = fs::File::create(place.point().join("a")).expect("created");
    file.write_all(b"s3cret").expect("written");
    drop(file);
    assert_eq!(fs::read(place.point().join("a")).expect("read"), b"s3cret");
    unmount(&place);
}

#[test]
fn a_log_inside_of_the_vault_is_refused() {
    let place = Place::with_vault();
    let lock: &Path = &place.vault().join("lock");
    let option = format!("-olog-file={}", lock.display());
    place.mount(&[&option]).failed(1, "inside of the vault");
}

#[test]
fn a_lock_file_that_is_another_file_too_is_refused_and_left_alone() {
    let place = Place::with_vault();
    let victim = place.path().join("victim");
    std::fs::write(&victim, "precious").expect("written");
    let lock = place.vault().join("lock");
    std::fs::remove_file(&lock).expect("removed");
    std::fs::hard_link(&victim, &lock).expect("linked");
    place.mount(&[]).failed(1, "remove it");
    let vault = place.vault();
    place
        .run(["rotate".as_ref(), vault.as_os_str()])
        .failed(1, "remove it");
    assert_eq!(std::fs::read(&victim).expect("read"), b"precious");
}
