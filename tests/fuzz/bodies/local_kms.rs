//! Key files of the embedded KMS, and what it is asked to unwrap.

use std::fs;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::OnceLock;

use secretfs::crypto::SecretKey;
use secretfs::kms::local::LocalKms;
use secretfs::kms::{EncryptionContext, KeyService as _, KeyUri, KmsErrorKind, KmsSettings};
use sha2::{Digest, Sha256};

use super::sample;
use super::split;

struct World {
    _directory: tempfile::TempDir,
    kms: LocalKms,
    file: PathBuf,
    genuine: Vec<u8>,
    blob: Vec<u8>,
}

fn context() -> EncryptionContext {
    EncryptionContext::master_key("0123", 4)
}

fn wrapped() -> SecretKey {
    SecretKey::filled_by(|key| key.fill(9))
}

fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let directory = super::directory();
        let local_dir = directory.path().join("kms");
        let settings = KmsSettings {
            local_dir: Some(local_dir.clone()),
            ..KmsSettings::default()
        };
        let kms = LocalKms::new(&settings).expect("a KMS");
        kms.ensure("default").expect("a key");
        let file = local_dir.join("default.key");
        // One that is always the same, so that corpora stay valid.
        fs::write(&file, sample::KEY).expect("written");
        let uri = KeyUri::default_local();
        let blob = kms.wrap(&uri, &wrapped(), &context()).expect("wrapped");
        World {
            _directory: directory,
            kms,
            file,
            genuine: sample::KEY.to_vec(),
            blob: blob.blob,
        }
    })
}

pub(super) fn run(input: &[u8]) {
    match split(input, 3) {
        Some((0, file)) => key_file(file),
        Some((1, covered)) => {
            let mut file = covered.to_vec();
            file.extend(Sha256::digest(covered));
            key_file(&file);
        }
        Some((2, edits)) => blob(edits),
        _ => {}
    }
}

fn put(bytes: &[u8]) {
    let file = &world().file;
    // A key whose time has come erases itself.
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut opened = options.open(file).expect("opened");
    std::io::Write::write_all(&mut opened, bytes).expect("written");
}

fn key_file(bytes: &[u8]) {
    let world = world();
    put(bytes);
    let info = world.kms.info("default");
    put(bytes);
    let uri = KeyUri::default_local();
    let unwrapped = world.kms.unwrap(&uri, &world.blob, &context());
    if let Ok(key) = unwrapped {
        assert!(key == wrapped() && info.is_ok());
    }
    let _ = world.kms.list();
}

/// The genuine blob, with bytes laid over it, or other bytes.
fn blob(edits: &[u8]) {
    let world = world();
    put(&world.genuine);
    let uri = KeyUri::default_local();
    let mut forged = world.blob.clone();
    let bytes = match edits {
        [0, at, laid @ ..] => {
            let at = usize::from(*at).min(forged.len());
            let end = (at + laid.len()).min(forged.len());
            forged[at..end].copy_from_slice(&laid[..end - at]);
            &forged[..]
        }
        other => other,
    };
    match world.kms.unwrap(&uri, bytes, &context()) {
        Ok(key) => assert!(bytes == world.blob && key == wrapped()),
        Err(error) => assert_eq!(error.kind, KmsErrorKind::WrongKey, "{error}"),
    }
}
