//! What is open while keys are replaced lives through all three rotations; and what they replaced is
//! gone from the raw files.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use crate::support::evil::Record;
use crate::support::process::{Place, detach};
use crate::support::rotating::{check_is_clean, command, wait_for_the_end};
use secretfs::codec;
use secretfs::keyring::KeyringBody;

const KINDS: [&str; 3] = [
    "rotate",
    "rewrap local-kms://b local-kms://default",
    "reencrypt",
];
/// Through the mount, a vault goes to keys only that the mount names.
const NAMED: [&str; 2] = ["-o", "kms-key=local-kms://default,kms-key=local-kms://b"];
/// Of several pieces, which are read as they are wanted.
const LARGE: usize = 400_000;

fn with_two_keys() -> Place {
    let place = Place::with_vault();
    let other = place.path().join("other");
    let init = ["init".as_ref(), other.as_os_str()];
    let key = ["--kms-key".as_ref(), "local-kms://b".as_ref()];
    place.run(init.into_iter().chain(key)).succeeded();
    place
}

fn rotated(point: &Path, what: &str) {
    command(point, what).unwrap_or_else(|error| panic!("{what}: {error}"));
    wait_for_the_end(point);
}

fn rest_of(file: &mut File) -> Vec<u8> {
    let mut rest = Vec::new();
    file.read_to_end(&mut rest).expect("read");
    rest
}

fn whole(file: &mut File) -> Vec<u8> {
    file.seek(SeekFrom::Start(0)).expect("sought");
    rest_of(file)
}

fn old(n: usize) -> Vec<u8> {
    (0..n).map(|at| (at % 251) as u8).collect()
}

#[test]
fn open_snapshots_drafts_and_unlinked_files_live_through_all_three() {
    let place = with_two_keys();
    place.mount(&NAMED).succeeded();
    let point = place.point();
    for (number, what) in KINDS.into_iter().enumerate() {
        let at = |name: &str| point.join(format!("{number}-{name}"));
        let make = |name: &str, size: usize| {
            std::fs::write(at(name), old(size)).expect("written");
            at(name)
        };
        let begun = |name: &str, size: usize| {
            let mut file = File::open(make(name, size)).expect("open");
            file.read_exact(&mut [0; 10]).expect("read");
            file
        };
        // Snapshots of what is replaced, and of what is removed.
        let mut snapshots: Vec<_> = [("small", 100), ("large", LARGE)]
            .map(|(name, size)| {
                let replaced = begun(&format!("{name}-replaced"), size);
                std::fs::write(at(&format!("{name}-replaced")), "new").expect("replaced");
                let removed = begun(&format!("{name}-removed"), size);
                std::fs::remove_file(at(&format!("{name}-removed"))).expect("removed");
                let kept = begun(&format!("{name}-kept"), size);
                [(replaced, size), (removed, size), (kept, size)]
            })
            .into_iter()
            .flatten()
            .collect();
        // Drafts: one that replaces, one in place, one of a file that is new, one without a name.
        let mut replacing = File::create(make("replacing", LARGE)).expect("open");
        replacing.write_all(b"first half, ").expect("written");
        let edit = |path: &Path| OpenOptions::new().read(true).write(true).open(path);
        let mut in_place = edit(&make("in-place", LARGE)).expect("open");
        in_place.write_all(b"EDITED").expect("written");
        let mut new = File::create_new(at("new")).expect("made");
        new.write_all(b"first half, ").expect("written");
        let mut unlinked = edit(&make("unlinked", 100)).expect("open");
        std::fs::remove_file(at("unlinked")).expect("removed");
        unlinked.write_all(b"EDITED").expect("written");

        rotated(&point, what);

        for (file, size) in &mut snapshots {
            assert!(rest_of(file) == old(*size)[10..], "{what}: {size}");
        }
        drop(snapshots);
        let edited = |size: usize| {
            let mut text = old(size);
            text[..6].copy_from_slice(b"EDITED");
            text
        };
        assert!(std::fs::read(at("replacing")).expect("read") == old(LARGE));
        replacing.write_all(b"second half").expect("written");
        drop(replacing);
        new.write_all(b"second half").expect("written");
        drop(new);
        for name in ["replacing", "new"] {
            let text = std::fs::read(at(name)).expect("read");
            assert_eq!(text, b"first half, second half", "{what}: {name}");
        }
        in_place.write_all(b" more").expect("written");
        let mut text = edited(LARGE);
        text[6..11].copy_from_slice(b" more");
        assert!(whole(&mut in_place) == text, "{what}");
        drop(in_place);
        assert!(
            std::fs::read(at("in-place")).expect("read") == text,
            "{what}"
        );
        assert!(whole(&mut unlinked) == edited(100), "{what}");
        unlinked.write_all(b" and on").expect("written");
        unlinked.sync_all().expect("synced");
        // Through one more, open and without a name.
        rotated(&point, "rotate");
        let mut text = edited(100);
        text.extend(b" and on");
        assert!(whole(&mut unlinked) == text, "{what}");
    }
    place
        .run(["umount".as_ref(), point.as_os_str()])
        .succeeded();
    check_is_clean(&place);
    place.mount(&NAMED).succeeded();
    for number in 0..KINDS.len() {
        let at = |name: &str| point.join(format!("{number}-{name}"));
        assert_eq!(
            std::fs::read(at("new")).expect("read"),
            b"first half, second half"
        );
        assert!(std::fs::read(at("large-kept")).expect("read") == old(LARGE));
        assert!(!at("unlinked").exists());
    }
    detach(&point);
}

/// The wraps of all master keys.
fn wraps(place: &Place) -> Vec<Vec<u8>> {
    let body: KeyringBody = codec::decode(&Record::of(place).body, "body").expect("a body");
    let generations = body.generations.into_iter();
    let wraps: Vec<_> = generations.flat_map(|g| g.wraps).map(|w| w.blob).collect();
    assert!(!wraps.is_empty() && wraps.iter().all(|wrap| wrap.len() > 32));
    wraps
}

fn is_in_a_raw_file(place: &Place, wrap: &[u8]) -> bool {
    // The end of it: that is a tag, and as random as the rest.
    let piece = &wrap[wrap.len() - 16..];
    ["vault.db", "vault.db-wal"].iter().any(|name| {
        let raw = std::fs::read(place.vault().join(name)).unwrap_or_default();
        raw.windows(piece.len()).any(|window| window == piece)
    })
}

#[test]
fn when_a_rotation_is_done_the_old_wraps_of_the_master_key_are_in_no_raw_file() {
    let place = with_two_keys();
    place.mount(&NAMED).succeeded();
    let point = place.point();
    for n in 0..100 {
        std::fs::write(point.join(format!("s{n}")), old(n)).expect("written");
    }
    let mut replaced = Vec::new();
    for what in KINDS.into_iter().chain(["rewrap", "rotate"]) {
        let before = wraps(&place);
        for wrap in &before {
            assert!(is_in_a_raw_file(&place, wrap), "it is there before");
        }
        rotated(&point, what);
        replaced.extend(before);
        // With the mount at work, nobody having closed or vacuumed anything.
        for wrap in &replaced {
            assert!(
                !is_in_a_raw_file(&place, wrap),
                "{what}: an old wrap is still there"
            );
        }
        for wrap in wraps(&place) {
            assert!(is_in_a_raw_file(&place, &wrap), "the new one is there");
        }
    }
    place
        .run(["umount".as_ref(), point.as_os_str()])
        .succeeded();
    check_is_clean(&place);
}
