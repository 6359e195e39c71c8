//! What the tests of backups have in common.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use secretfs::kms::KmsSettings;
use secretfs::vault::OpenOptions;
use serde_json::Value;

use crate::support::process::{Place, Ran};

/// A place whose vault has some secrets, one of them of several chunks, and is mounted by nobody.
pub fn with_secrets() -> Place {
    let place = Place::with_vault();
    place.mount(&[]).succeeded();
    let point = place.point();
    std::fs::create_dir(point.join("db")).expect("made");
    std::fs::write(point.join("db/password"), "a secret").expect("written");
    std::fs::write(point.join("large"), vec![7; 300_000]).expect("written");
    std::os::unix::fs::symlink("db/password", point.join("link")).expect("linked");
    unmount(&place);
    place
}

/// What [`with_secrets`] has written.
#[track_caller]
pub fn secrets_are_at(point: &Path) {
    let read = |name: &str| std::fs::read(point.join(name)).expect("read");
    assert_eq!(read("db/password"), b"a secret");
    assert_eq!(read("large"), vec![7; 300_000]);
    assert_eq!(read("link"), b"a secret");
}

#[track_caller]
pub fn unmount(place: &Place) {
    let point = place.point();
    place
        .run(["umount".as_ref(), point.as_os_str()])
        .succeeded();
}

pub fn run(place: &Place, command: &str, from: &Path, to: &Path) -> Ran {
    place.run([OsStr::new(command), from.as_os_str(), to.as_os_str()])
}

/// Makes a backup of the vault; where it is.
#[track_caller]
pub fn backup(place: &Place, name: &str) -> PathBuf {
    let to = place.path().join(name);
    run(place, "backup", &place.vault(), &to).succeeded();
    to
}

/// What a command tells as JSON.
#[track_caller]
pub fn json(place: &Place, args: &[&OsStr]) -> Value {
    let ran = place.run(args.iter().copied().chain(["--json".as_ref()]));
    serde_json::from_str(&ran.succeeded().stdout()).expect("JSON")
}

/// Has a secret be replaced so often.
pub fn go_on(place: &Place, times: usize) {
    place.mount(&[]).succeeded();
    for n in 0..times {
        let later = format!("a later secret, {n}");
        std::fs::write(place.point().join("db/password"), later).expect("written");
    }
    unmount(place);
}

/// The same vault for a host that has never seen it, but has its key.
pub fn elsewhere(place: &Place, host: &str) -> OpenOptions {
    OpenOptions {
        kms: KmsSettings {
            local_dir: Some(place.path().join("kms")),
            ..KmsSettings::default()
        },
        anchor_dir: Some(place.path().join(host)),
        ..OpenOptions::default()
    }
}

/// The arguments with which a command runs as on another host.
pub fn on_host(place: &Place, host: &str) -> [String; 2] {
    let anchors = place.path().join(host);
    ["--anchor-dir".into(), anchors.display().to_string()]
}

/// What is in the place but for mounts: no run may leave anything there.
#[track_caller]
pub fn nothing_is_left(place: &Place) {
    for entry in std::fs::read_dir(place.path()).expect("listed") {
        let name = entry.expect("an entry").file_name();
        let name = name.to_string_lossy();
        assert!(!name.contains("secretfs-partial"), "{name} is left");
    }
}
