//! Backups of a vault that is written and whose keys are replaced.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use secretfs::vault::{self, OpenOptions, Vault};

use crate::kit::{backup, elsewhere, nothing_is_left};
use crate::support::contents::Reading;
use crate::support::process::{OnFailure, Place, detach};
use crate::support::rotating::{command, wait_for_the_end};

const BACKUPS: usize = 100;
const FILES: usize = 6;

/// What a file holds in a version: some are of several chunks.
fn content(file: usize, version: u64) -> Vec<u8> {
    let length = if file == 0 { 140_000 } else { 30 + file * 200 };
    let line = format!("file {file} version {version}\n").into_bytes();
    let times = length / line.len() + 1;
    line.repeat(times)
}

fn version_in(file: usize, bytes: &[u8]) -> u64 {
    let first = bytes.split(|byte| *byte == b'\n').next();
    let first = std::str::from_utf8(first.unwrap_or_default()).expect("text");
    let version = first.rsplit(' ').next().and_then(|n| n.parse().ok());
    let version = version.unwrap_or_else(|| panic!("file {file} begins with {first:?}"));
    assert!(bytes == content(file, version), "file {file} is torn");
    version
}

/// How far each file's writer has begun and finished.
#[derive(Default)]
struct Written {
    begun: [AtomicU64; FILES],
    done: [AtomicU64; FILES],
}

impl Written {
    fn now(counters: &[AtomicU64; FILES]) -> [u64; FILES] {
        std::array::from_fn(|file| counters[file].load(Ordering::SeqCst))
    }

    fn write(&self, point: &Path, file: usize, version: u64) {
        self.begun[file].store(version, Ordering::SeqCst);
        let path = point.join(format!("file-{file}"));
        std::fs::write(path, content(file, version)).expect("written");
        self.done[file].store(version, Ordering::SeqCst);
    }
}

/// What the files of a vault that nobody has mounted hold.
fn versions_in(vault: &Path, options: &OpenOptions) -> [u64; FILES] {
    let options = OpenOptions {
        read_only: true,
        ..options.clone()
    };
    let reading = Reading::of(&Vault::open(vault, &options).expect("opened"));
    assert!(reading.errors.is_empty(), "{:?}", reading.errors);
    let found: BTreeMap<_, _> = reading.contents.into_iter().collect();
    std::array::from_fn(|file| {
        let told = &found[format!("/file-{file}").as_bytes()];
        let begins = format!("file {file} version ");
        let at = told
            .windows(begins.len())
            .position(|w| w == begins.as_bytes());
        version_in(file, &told[at.expect("a content")..])
    })
}

#[test]
fn a_hundred_backups_under_writers_and_rotations_restore_and_hold_what_was_published() {
    let place = Place::with_vault();
    let named = "kms-key=local-kms://default,kms-key=local-kms://b";
    let other = place.path().join("other");
    place
        .run([
            "init".as_ref(),
            other.as_os_str(),
            "--kms-key".as_ref(),
            "local-kms://b".as_ref(),
        ])
        .succeeded();
    let server = place.serve(&["-o", named]);
    let point = place.point();
    let written = Written::default();
    for file in 0..FILES {
        written.write(&point, file, 1);
    }
    let ended = AtomicBool::new(false);
    let (rotations, mut spread) = (AtomicU64::new(0), 0);
    let started = Instant::now();
    std::thread::scope(|scope| {
        let _release = OnFailure(|| ended.store(true, Ordering::SeqCst));
        for first in 0..2 {
            let (written, point, ended) = (&written, &point, &ended);
            scope.spawn(move || {
                for version in 2.. {
                    for file in (first..FILES).step_by(2) {
                        if ended.load(Ordering::SeqCst) {
                            return;
                        }
                        written.write(point, file, version);
                    }
                }
            });
        }
        scope.spawn(|| {
            let kinds = [
                "rotate",
                "reencrypt",
                "rewrap local-kms://b local-kms://default",
            ];
            for kind in kinds.into_iter().cycle() {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                command(&point, kind).expect("begun");
                wait_for_the_end(&point);
                rotations.fetch_add(1, Ordering::SeqCst);
            }
        });
        for n in 0..BACKUPS {
            let least = Written::now(&written.done);
            let made = backup(&place, &format!("backup-{n}"));
            let most = Written::now(&written.begun);
            let host = elsewhere(&place, &format!("host-{n}"));
            let restored = place.path().join(format!("restored-{n}"));
            let go_on = || ControlFlow::Continue(());
            let report = vault::restore(&made, &restored, &host, &go_on).expect("restored");
            assert_eq!(report.secrets, FILES as u64);
            let check = vault::check(&restored, &host).expect("checked");
            assert_eq!(check.problem_count, 0, "{:#?}", check.problems);
            let found = versions_in(&restored, &host);
            for file in 0..FILES {
                let (least, found, most) = (least[file], found[file], most[file]);
                assert!(
                    least <= found && found <= most,
                    "{file}: {least} {found} {most}"
                );
                spread += most - least;
            }
            std::fs::remove_dir_all(&restored).expect("removed");
            std::fs::remove_dir_all(&made).expect("removed");
        }
        ended.store(true, Ordering::SeqCst);
    });
    println!(
        "{BACKUPS} in {:?}, {} rotations, {spread} versions written meanwhile",
        started.elapsed(),
        rotations.load(Ordering::SeqCst)
    );
    assert!(rotations.load(Ordering::SeqCst) >= 3 && spread > BACKUPS as u64);
    detach(&point);
    drop(server);
    nothing_is_left(&place);
}
