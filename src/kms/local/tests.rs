//! The promises of the local KMS.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::sync::Barrier;

use super::place::default_dir;
use super::*;
use crate::kms::{EncryptionContext, KeyService as _, KeyState, Wrapped};

struct Fixture {
    root: tempfile::TempDir,
    kms: LocalKms,
    uri: KeyUri,
    context: EncryptionContext,
    key: SecretKey,
}

impl Fixture {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let kms = at(&root.path().join("kms"));
        assert!(kms.ensure("default").unwrap());
        Self {
            root,
            kms,
            uri: KeyUri::default_local(),
            context: EncryptionContext::master_key("v", 1),
            key: SecretKey::generate().unwrap(),
        }
    }

    fn wrap(&self) -> Result<Wrapped, KmsError> {
        self.kms.wrap(&self.uri, &self.key, &self.context)
    }

    fn unwrap(&self, wrapped: &Wrapped) -> Result<SecretKey, KmsError> {
        self.kms.unwrap(&self.uri, &wrapped.blob, &self.context)
    }

    fn file(&self) -> PathBuf {
        self.kms.dir().join("default.key")
    }

    /// The key is refused now, with `kind`, and the message contains `words`.
    #[track_caller]
    fn refused(&self, kind: KmsErrorKind, words: &str) {
        let error = self.wrap().unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.message.contains(words), "{error}");
    }
}

fn at(dir: &Path) -> LocalKms {
    LocalKms::new(&KmsSettings {
        local_dir: Some(dir.to_owned()),
        ..KmsSettings::default()
    })
    .unwrap()
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn what_was_wrapped_unwraps_and_names_key_and_version() {
    let f = Fixture::new();
    let wrapped = f.wrap().unwrap();
    assert_eq!(wrapped.key_id, "default@1");
    assert_eq!(f.unwrap(&wrapped).unwrap(), f.key);
    assert_ne!(
        f.wrap().unwrap().blob,
        wrapped.blob,
        "every wrap has its own nonce"
    );
    let told = f.kms.describe(&f.uri).unwrap();
    assert_eq!(
        (told.key_id.as_str(), told.state),
        ("default@1", KeyState::Enabled)
    );
}

#[test]
fn wrong_context_is_told_in_words() {
    let f = Fixture::new();
    let wrapped = f.wrap().unwrap();
    let other = EncryptionContext::master_key("v", 2);
    let error = f.kms.unwrap(&f.uri, &wrapped.blob, &other).unwrap_err();
    assert_eq!(error.kind, KmsErrorKind::WrongKey);
    assert!(
        error.message.contains("another encryption context"),
        "{error}"
    );
}

#[test]
fn another_key_of_the_same_name_is_told_in_words() {
    let f = Fixture::new();
    let wrapped = f.wrap().unwrap();
    let other = at(&f.root.path().join("other"));
    other.ensure("default").unwrap();
    let error = other.unwrap(&f.uri, &wrapped.blob, &f.context).unwrap_err();
    assert_eq!(error.kind, KmsErrorKind::WrongKey);
    assert!(
        error
            .message
            .contains("this is not the key that wrapped it"),
        "{error}"
    );
}

#[test]
fn foreign_or_altered_blobs_are_refused() {
    let f = Fixture::new();
    for blob in [&[][..], &[1], &[0; 85], &[1; 85], &[9; 4096]] {
        let error = f.kms.unwrap(&f.uri, blob, &f.context).unwrap_err();
        assert_eq!(error.kind, KmsErrorKind::WrongKey, "{error}");
    }
}

#[test]
fn disabling_takes_effect_at_the_next_call_and_enabling_too() {
    let f = Fixture::new();
    let wrapped = f.wrap().unwrap();
    let elsewhere = at(f.kms.dir());
    elsewhere.set_enabled("default", false).unwrap();
    f.refused(KmsErrorKind::Disabled, "disabled");
    assert_eq!(f.unwrap(&wrapped).unwrap_err().kind, KmsErrorKind::Disabled);
    assert_eq!(f.kms.describe(&f.uri).unwrap().state, KeyState::Disabled);
    assert_eq!(
        f.kms.rotate("default").unwrap_err().kind,
        KmsErrorKind::Disabled
    );
    elsewhere.set_enabled("default", true).unwrap();
    assert_eq!(f.unwrap(&wrapped).unwrap(), f.key);
}

#[test]
fn a_scheduled_deletion_can_be_taken_back_until_its_date() {
    let f = Fixture::new();
    let wrapped = f.wrap().unwrap();
    let date = f
        .kms
        .schedule_deletion("default", Duration::from_secs(7 * 86400))
        .unwrap();
    assert_eq!(
        f.kms.info("default").unwrap().state,
        LocalState::PendingDeletion { at: date }
    );
    f.refused(KmsErrorKind::PendingDeletion, "deleted");
    assert_eq!(
        f.kms.describe(&f.uri).unwrap().state,
        KeyState::PendingDeletion
    );
    let refused = f.kms.set_enabled("default", true).unwrap_err();
    assert_eq!(refused.kind, KmsErrorKind::PendingDeletion);
    f.kms.cancel_deletion("default").unwrap();
    f.refused(KmsErrorKind::Disabled, "disabled");
    f.kms.set_enabled("default", true).unwrap();
    assert_eq!(f.unwrap(&wrapped).unwrap(), f.key);
    assert!(f.kms.cancel_deletion("default").is_err());
}

#[test]
fn a_key_is_erased_once_its_deletion_date_has_passed() {
    let f = Fixture::new();
    let wrapped = f.wrap().unwrap();
    f.kms.schedule_deletion("default", Duration::ZERO).unwrap();
    assert_eq!(f.unwrap(&wrapped).unwrap_err().kind, KmsErrorKind::NotFound);
    assert!(!f.file().exists());
    assert!(f.kms.list().unwrap().is_empty());
    assert!(f.kms.cancel_deletion("default").is_err());
    assert!(f.kms.ensure("default").unwrap(), "the name is free again");
    assert_eq!(f.unwrap(&wrapped).unwrap_err().kind, KmsErrorKind::WrongKey);
}

#[test]
fn old_versions_still_unwrap_after_a_rotation() {
    let f = Fixture::new();
    let old = f.wrap().unwrap();
    assert_eq!(f.kms.rotate("default").unwrap(), 2);
    assert_eq!(f.kms.rotate("default").unwrap(), 3);
    let new = f.wrap().unwrap();
    assert_eq!(new.key_id, "default@3");
    assert_eq!(f.unwrap(&old).unwrap(), f.key);
    assert_eq!(f.unwrap(&new).unwrap(), f.key);
    assert_eq!(f.kms.info("default").unwrap().version, 3);
}

#[test]
fn an_old_copy_of_a_rotated_key_is_told_in_words() {
    let f = Fixture::new();
    let copy = fs::read(f.file()).unwrap();
    f.kms.rotate("default").unwrap();
    let wrapped = f.wrap().unwrap();
    fs::write(f.file(), copy).unwrap();
    let error = f.unwrap(&wrapped).unwrap_err();
    assert_eq!(error.kind, KmsErrorKind::WrongKey);
    assert!(error.message.contains("old copy"), "{error}");
}

#[test]
fn a_missing_key_or_directory_is_not_found() {
    let f = Fixture::new();
    fs::remove_file(f.file()).unwrap();
    f.refused(
        KmsErrorKind::NotFound,
        "there is no key local-kms://default",
    );
    fs::remove_dir_all(f.kms.dir()).unwrap();
    f.refused(
        KmsErrorKind::NotFound,
        "there is no key local-kms://default",
    );
    assert!(f.kms.list().unwrap().is_empty());
}

#[test]
fn directory_and_files_are_made_for_their_owner_alone() {
    let f = Fixture::new();
    assert_eq!(mode(f.kms.dir()), 0o700);
    assert_eq!(mode(&f.file()), 0o600);
    f.kms.rotate("default").unwrap();
    assert_eq!(mode(&f.file()), 0o600);
}

#[test]
fn loose_modes_are_refused_and_the_remedy_named() {
    let f = Fixture::new();
    for loose in [0o710, 0o701, 0o750, 0o755, 0o777] {
        chmod(f.kms.dir(), loose);
        f.refused(KmsErrorKind::Configuration, "chmod 0700");
        assert!(f.kms.ensure("default").is_err());
    }
    chmod(f.kms.dir(), 0o700);
    for loose in [0o640, 0o604, 0o620, 0o644] {
        chmod(&f.file(), loose);
        f.refused(KmsErrorKind::Configuration, "chmod 0600");
        assert!(f.kms.ensure("default").is_err());
    }
    chmod(&f.file(), 0o600);
    f.wrap().unwrap();
}

#[test]
fn foreign_owners_are_refused() {
    let f = Fixture::new();
    if !nix::unistd::geteuid().is_root() {
        // Only root can change a file's owner, but one directory belongs to root everywhere.
        let error = at(Path::new("/"))
            .wrap(&f.uri, &f.key, &f.context)
            .unwrap_err();
        assert_eq!(error.kind, KmsErrorKind::Configuration);
        assert!(error.message.contains("belongs to user"), "{error}");
        return;
    }
    std::os::unix::fs::chown(f.file(), Some(12345), None).unwrap();
    f.refused(KmsErrorKind::Configuration, "belongs to user 12345");
    std::os::unix::fs::chown(f.file(), Some(0), None).unwrap();
    std::os::unix::fs::chown(f.kms.dir(), Some(12345), None).unwrap();
    f.refused(KmsErrorKind::Configuration, "belongs to user 12345");
}

#[test]
fn symbolic_links_and_other_kinds_of_files_are_refused() {
    let f = Fixture::new();
    let link = f.root.path().join("link");
    symlink(f.kms.dir(), &link).unwrap();
    let error = at(&link).wrap(&f.uri, &f.key, &f.context).unwrap_err();
    assert_eq!(error.kind, KmsErrorKind::Configuration);
    assert!(error.message.contains("symbolic link"), "{error}");

    let moved = f.kms.dir().join("moved");
    fs::rename(f.file(), &moved).unwrap();
    symlink(&moved, f.file()).unwrap();
    f.refused(KmsErrorKind::Configuration, "symbolic link");
    assert!(f.kms.ensure("default").is_err());

    fs::remove_file(f.file()).unwrap();
    nix::unistd::mkfifo(&f.file(), nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    f.refused(KmsErrorKind::Configuration, "no regular file");
}

#[test]
fn damage_to_a_key_file_is_told_apart_from_a_wrong_key() {
    let f = Fixture::new();
    let good = fs::read(f.file()).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        fs::write(f.file(), bad).unwrap();
        f.refused(KmsErrorKind::BadAnswer, "cannot be used");
    }
    fs::write(f.file(), b"").unwrap();
    f.refused(KmsErrorKind::BadAnswer, "too short");
    let listed = f.kms.list().unwrap();
    assert!(matches!(&listed[..], [(name, Err(_))] if name == "default"));
    assert!(
        f.kms.ensure("default").is_err(),
        "a damaged key is never taken for none"
    );
    assert!(f.kms.rotate("default").is_err());
}

#[test]
fn a_renamed_key_file_is_refused() {
    let f = Fixture::new();
    fs::rename(f.file(), f.kms.dir().join("other.key")).unwrap();
    let error = f.kms.info("other").unwrap_err();
    assert!(error.message.contains("another name"), "{error}");
}

#[test]
fn of_many_creators_one_wins_and_all_use_its_key() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("kms");
    for round in 0..20 {
        let name = format!("key-{round}");
        let barrier = Barrier::new(8);
        let created: usize = std::thread::scope(|scope| {
            let creators: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        let kms = at(&dir);
                        barrier.wait();
                        usize::from(kms.ensure(&name).unwrap())
                    })
                })
                .collect();
            creators
                .into_iter()
                .map(|creator| creator.join().unwrap())
                .sum()
        });
        assert_eq!(created, 1);
        assert!(at(&dir).create(&name).is_err());
    }
    assert_eq!(at(&dir).list().unwrap().len(), 20);
}

#[test]
fn a_creator_that_did_not_wait_for_the_lock_still_overwrites_nothing() {
    let f = Fixture::new();
    let before = fs::read(f.file()).unwrap();
    let dir = KeyDir::open(f.kms.dir()).unwrap().unwrap();
    let lock = dir.lock(Duration::ZERO).unwrap();
    let record = Record {
        name: "default".to_owned(),
        state: LocalState::Enabled,
        created: 0,
        versions: vec![Material {
            version: 1,
            created: 0,
            key: SecretKey::generate().unwrap(),
        }],
    };
    assert_eq!(dir.create(&lock, &record).unwrap(), Created::Before);
    assert_eq!(fs::read(f.file()).unwrap(), before);
}

#[test]
fn concurrent_changes_are_all_kept() {
    let f = Fixture::new();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                (0..10).for_each(|_| {
                    f.kms.rotate("default").unwrap();
                })
            });
        }
    });
    assert_eq!(f.kms.info("default").unwrap().version, 41);
}

#[test]
fn waiting_for_the_lock_is_bounded() {
    let f = Fixture::new();
    let dir = KeyDir::open(f.kms.dir()).unwrap().unwrap();
    let _lock = dir.lock(Duration::ZERO).unwrap();
    let settings = KmsSettings {
        local_dir: Some(f.kms.dir().to_owned()),
        total_timeout: Duration::from_millis(50),
        ..KmsSettings::default()
    };
    let error = LocalKms::new(&settings)
        .unwrap()
        .rotate("default")
        .unwrap_err();
    assert_eq!(error.kind, KmsErrorKind::Unreachable);
    f.wrap().unwrap(); // A reader waits for nobody.
}

#[test]
fn what_a_dead_creator_left_is_cleared_up_without_harm_to_the_key() {
    let f = Fixture::new();
    let wrapped = f.wrap().unwrap();
    let stale = f.kms.dir().join(".tmp-0000000000000000");
    fs::write(&stale, b"half a key").unwrap();
    // A creator died between link and unlink: the temporary name is the key itself.
    let linked = f.kms.dir().join(".tmp-0000000000000001");
    fs::hard_link(f.file(), &linked).unwrap();
    f.kms.rotate("default").unwrap();
    assert!(!stale.exists() && !linked.exists());
    assert_eq!(f.unwrap(&wrapped).unwrap(), f.key);
}

#[test]
fn bad_names_never_reach_the_file_system() {
    let f = Fixture::new();
    for name in [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        ".lock",
        "a\0b",
        "é",
        &"x".repeat(129),
    ] {
        assert_eq!(
            f.kms.ensure(name).unwrap_err().kind,
            KmsErrorKind::Configuration,
            "{name}"
        );
        assert_eq!(
            f.kms.info(name).unwrap_err().kind,
            KmsErrorKind::Configuration,
            "{name}"
        );
    }
    f.kms.ensure(&"x".repeat(128)).unwrap();
}

#[test]
fn the_directory_is_found_where_it_is_documented() {
    let dir = |root, set: &[(&str, &str)]| {
        default_dir(root, |name| {
            set.iter().find(|(n, _)| *n == name).map(|(_, v)| v.into())
        })
        .map(|path| path.to_str().unwrap().to_owned())
        .map_err(|e| e.kind)
    };
    let home = ("HOME", "/home/u");
    let own = (DIR_VARIABLE, "/keys");
    assert_eq!(dir(true, &[home, own]).unwrap(), "/keys");
    assert_eq!(dir(true, &[home]).unwrap(), "/var/lib/secretfs/kms");
    assert_eq!(
        dir(false, &[home]).unwrap(),
        "/home/u/.local/share/secretfs/kms"
    );
    assert_eq!(
        dir(false, &[home, ("XDG_DATA_HOME", "/d")]).unwrap(),
        "/d/secretfs/kms"
    );
    let ignored = dir(false, &[home, ("XDG_DATA_HOME", "d"), (DIR_VARIABLE, "")]).unwrap();
    assert_eq!(ignored, "/home/u/.local/share/secretfs/kms");
    assert_eq!(dir(false, &[]), Err(KmsErrorKind::Configuration));
    assert!(at(Path::new("relative")).dir().is_absolute());
}

#[test]
fn key_material_is_in_no_error_and_no_debug_form() {
    let f = Fixture::new();
    let material: Vec<u8> = fs::read(f.file()).unwrap();
    let hex: String = material.iter().map(|b| format!("{b:02x}")).collect();
    let shown = format!(
        "{:?} {:?} {:?} {:?}",
        f.kms,
        f.kms.info("default"),
        f.wrap(),
        f.kms.unwrap(&f.uri, &[1; 85], &f.context)
    );
    for window in hex.as_bytes().windows(16) {
        assert!(!shown.contains(std::str::from_utf8(window).unwrap()));
    }
}

/// The KMS of a unit that has the key of `f` as a credential.
fn as_credential(f: &Fixture) -> LocalKms {
    let directory = f.root.path().join("credentials");
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir(&directory).unwrap();
    let file = directory.join("secretfs.default.key");
    fs::copy(f.file(), &file).unwrap();
    chmod(&file, 0o400);
    chmod(&directory, 0o500);
    LocalKms {
        credentials: Credentials::named(Some(directory.into())).unwrap(),
        ..at(&f.root.path().join("none"))
    }
}

#[test]
fn a_credential_is_never_changed_and_who_would_is_told_what_to_do() {
    let f = Fixture::new();
    let kms = as_credential(&f);
    let file = f.root.path().join("credentials/secretfs.default.key");
    let before = fs::read(&file).unwrap();
    let refused = [
        kms.rotate("default").map(drop),
        kms.set_enabled("default", false),
        kms.schedule_deletion("default", Duration::ZERO).map(drop),
        kms.cancel_deletion("default"),
    ];
    for outcome in refused {
        let error = outcome.unwrap_err();
        assert_eq!(error.kind, KmsErrorKind::Configuration);
        assert!(error.message.contains("systemd-creds"), "{error}");
    }
    assert!(!kms.ensure("default").unwrap());
    assert!(kms.create("default").is_err());
    assert_eq!(fs::read(&file).unwrap(), before);
    assert!(!kms.dir().exists());
    let listed = kms.list().unwrap();
    assert!(matches!(&listed[..], [(name, Ok(_))] if name == "default"));
}

#[test]
fn the_state_of_a_credential_holds_as_that_of_a_file() {
    let f = Fixture::new();
    let wrapped = f.wrap().unwrap();
    let unwrap = |kms: &LocalKms| {
        kms.unwrap(&f.uri, &wrapped.blob, &f.context)
            .map_err(|e| e.kind)
    };
    f.kms.rotate("default").unwrap();
    assert_eq!(unwrap(&as_credential(&f)), Ok(f.key.clone()));
    f.kms.set_enabled("default", false).unwrap();
    let kms = as_credential(&f);
    assert_eq!(unwrap(&kms), Err(KmsErrorKind::Disabled));
    assert_eq!(kms.describe(&f.uri).unwrap().state, KeyState::Disabled);
    let week = Duration::from_secs(7 * 86400);
    f.kms.schedule_deletion("default", week).unwrap();
    assert_eq!(
        unwrap(&as_credential(&f)),
        Err(KmsErrorKind::PendingDeletion)
    );
    f.kms.schedule_deletion("default", Duration::ZERO).unwrap();
    let kms = as_credential(&f);
    assert_eq!(unwrap(&kms), Err(KmsErrorKind::NotFound));
    // The program neither erases it nor creates another in its place.
    assert!(
        f.root
            .path()
            .join("credentials/secretfs.default.key")
            .exists()
    );
    assert!(kms.ensure("default").is_err());
    assert!(!kms.dir().exists());
}
