//! Disks that are full, read-only or broken, under a mount that is being written to: programs are
//! told, nothing that was acknowledged is lost, the daemon lives on.

use crate::support::failing_disk::Disk;
use crate::support::ledger::{Ledger, content};
use crate::support::load::rounds;
use crate::support::process::{self, Place};

fn status(place: &Place) -> serde_json::Value {
    process::status(&place.point())
}

/// Writes that a small disk cannot hold, whatever they are of.
const MOST: usize = 1000;

/// A mounted disk with some secrets on it.
fn written(size: u64) -> (Disk, Ledger) {
    let disk = Disk::with_vault(size);
    disk.place.mount(&[]).succeeded();
    let mut ledger = Ledger::new(disk.place.point());
    for at in 0..10 {
        assert!(ledger.write(&format!("kept-{at}"), &content(at, 1 + at * 3000)));
    }
    for at in 0..4 {
        assert!(ledger.write(&format!("changed-{at}"), &content(at, 300_000)));
    }
    (disk, ledger)
}

/// Unmounted and mounted again, all is as it must be.
fn unmounted_and_whole(disk: &Disk, ledger: &Ledger) {
    disk.umount().succeeded();
    disk.check();
    disk.place.mount(&[]).succeeded();
    ledger.holds("mounted again");
    disk.umount().succeeded();
}

#[test]
fn a_disk_that_fills_up_under_writes_tells_enospc_and_loses_nothing() {
    let (disk, mut ledger) = written(24);
    let pid = status(&disk.place)["pid"].clone();
    for round in 0..2 * rounds() {
        disk.fill(3 << 10);
        // Contents of many sizes, until several find no room.
        for number in (round * MOST..).take(MOST) {
            if ledger.refused.len() >= 6 {
                break;
            }
            let name = format!("changed-{}", number % 4);
            ledger.write(&name, &content(number, 40_000 * (number % 30 + 1)));
            ledger.append(&name, &content(number, 500));
        }
        assert!(ledger.refused.len() >= 6, "it never was full");
        assert_eq!(ledger.errors(), [libc::ENOSPC]);
        // Until there is room for no name either, also where contents have been.
        disk.fill(200);
        let mut names = Vec::new();
        while ledger.refused.len() < 3 {
            assert!(names.len() < MOST, "it never was full");
            let name = format!("name-{round}-{}", names.len());
            ledger.write(&name, &content(names.len(), 3000));
            names.push(name);
        }
        assert_eq!(ledger.errors(), [libc::ENOSPC]);
        names.retain(|name| disk.place.point().join(name).exists());
        // Removing takes room, too: what is refused is there.
        names.retain(|name| !ledger.remove(name));
        let renamed = ledger.rename("kept-0", "renamed");
        let errors = ledger.errors();
        assert!(errors.iter().all(|e| *e == libc::ENOSPC), "{errors:?}");
        ledger.holds("full");
        assert_eq!(status(&disk.place)["pid"], pid);
        disk.free();
        // Room again: everything goes at once.
        for at in 0..4 {
            assert!(ledger.write(&format!("changed-{at}"), &content(at, 400_000)));
        }
        assert!(names.iter().all(|name| ledger.remove(name)));
        assert!(renamed || ledger.rename("kept-0", "renamed"));
        assert!(ledger.rename("renamed", "kept-0"));
        assert_eq!(ledger.errors(), [0; 0]);
        ledger.holds("with room again");
    }
    assert_eq!(status(&disk.place)["pid"], pid);
    assert_eq!(status(&disk.place)["integrity"], "verified");
    unmounted_and_whole(&disk, &ledger);
}

#[test]
fn a_shell_that_replaces_a_secret_on_a_full_disk_is_told_and_the_old_value_stays() {
    let (disk, ledger) = written(24);
    let file = disk.place.point().join("of-shells");
    let mut value = "first\n".to_owned();
    std::fs::write(&file, &value).expect("written");
    disk.fill(0);
    for shell in ["bash", "dash"] {
        let mut told = false;
        for round in 0..MOST {
            let new = format!("{shell} {round} {}", "x".repeat(4000));
            let mut command = std::process::Command::new(shell);
            command
                .args(["-c", "echo \"$1\" > \"$0\""])
                .arg(&file)
                .arg(&new);
            let output = command.output().expect("a shell");
            // There may be room in what the vault has of the disk already.
            if output.status.success() {
                value = new + "\n";
            } else {
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(said.contains("No space left"), "{shell}: {said}");
                told = true;
            }
            let found = std::fs::read_to_string(&file).expect("readable");
            assert!(
                found == value,
                "{shell}, round {round}: not what it was told"
            );
            if told {
                break;
            }
        }
        assert!(told, "it never was full");
    }
    disk.free();
    std::fs::remove_file(&file).expect("removed");
    unmounted_and_whole(&disk, &ledger);
}

#[test]
fn a_disk_that_is_full_at_the_unmount_loses_nothing_and_can_be_read() {
    let (disk, mut ledger) = written(24);
    disk.fill(2 << 10);
    for number in 0.. {
        if ledger.refused.len() >= 5 {
            break;
        }
        assert!(number < MOST, "it never was full");
        let name = format!("changed-{}", number % 4);
        ledger.write(&name, &content(number, 20_000 * (number % 30 + 1)));
    }
    assert_eq!(ledger.errors(), [libc::ENOSPC]);
    disk.fill(0);
    // What nobody waits for is given up.
    disk.umount();
    disk.place.mount(&["-o", "ro"]).succeeded();
    ledger.holds("read-only, full");
    disk.umount().succeeded();
    disk.check();
    disk.free();
    disk.place.mount(&[]).succeeded();
    assert!(ledger.write("changed-0", &content(0, 1 << 20)));
    unmounted_and_whole(&disk, &ledger);
}

/// What ext4 does by itself when its disk fails.
#[test]
fn a_disk_that_becomes_read_only_refuses_writes_and_loses_nothing() {
    let (disk, mut ledger) = written(24);
    let pid = status(&disk.place)["pid"].clone();
    disk.make_read_only();
    for at in 0..4 {
        assert!(!ledger.write(&format!("changed-{at}"), &content(at, 5000)));
        assert!(!ledger.append(&format!("kept-{at}"), b"more"));
        assert!(!ledger.remove(&format!("kept-{at}")));
        assert!(!ledger.rename("kept-9", "elsewhere"));
    }
    // Which of the two is told depends on where the kernel refuses.
    let errors = ledger.errors();
    assert!(
        errors
            .iter()
            .all(|errno| [libc::EIO, libc::EROFS].contains(errno)),
        "{errors:?}"
    );
    ledger.holds("read-only");
    assert_eq!(status(&disk.place)["pid"], pid);
    disk.umount();
    disk.place.mount(&[]).failed(1, "-o ro");
    disk.place.mount(&["-o", "ro"]).succeeded();
    ledger.holds("mounted read-only");
    disk.umount().succeeded();
    disk.repair();
    disk.check();
    disk.place.mount(&[]).succeeded();
    ledger.holds("repaired");
    assert!(ledger.write("changed-0", b"new"));
    unmounted_and_whole(&disk, &ledger);
}

#[test]
fn a_disk_that_fails_to_write_is_told_and_nothing_acknowledged_is_lost() {
    let (disk, mut ledger) = written(64);
    let pid = status(&disk.place)["pid"].clone();
    disk.fill_below();
    let mut number = 0;
    while ledger.refused.len() < 10 {
        number += 1;
        let name = format!("changed-{}", number % 4);
        ledger.write(&name, &content(number, 1 << 20));
        assert!(number < 200, "it never failed");
    }
    let errors = ledger.errors();
    assert!(
        errors
            .iter()
            .all(|errno| [libc::EIO, libc::EROFS].contains(errno)),
        "{errors:?}"
    );
    // Whether it can still be read is the disk's affair; that it is right, is not.
    assert_eq!(status(&disk.place)["pid"], pid);
    disk.umount();
    disk.free_below();
    disk.repair();
    disk.check();
    disk.place.mount(&[]).succeeded();
    ledger.holds("repaired");
    assert!(ledger.write("changed-0", b"new"));
    unmounted_and_whole(&disk, &ledger);
}
