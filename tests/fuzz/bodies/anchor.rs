//! What a host remembers of a vault, and what the holder of the writer's lock tells of itself.

use std::fs;
use std::sync::{Arc, OnceLock};

use secretfs::kms::KeyUri;
use secretfs::store::{self, Holder, LocalPlace, Mode, OpenOptions, Store, holder};
use secretfs::vault::decode_anchor;
use sha2::{Digest, Sha256};

use super::split;

pub(super) fn run(input: &[u8]) {
    match split(input, 3) {
        Some((0, text)) => decode(text),
        Some((1, json)) => {
            let mut text = json.to_vec();
            for byte in Sha256::digest(json) {
                text.extend(format!("{byte:02x}").bytes());
            }
            text.push(b'\n');
            decode(&text);
        }
        Some((2, content)) => lock(content),
        _ => {}
    }
}

fn decode(text: &[u8]) {
    if let Ok(anchor) = decode_anchor(text) {
        for key in &anchor.kms_keys {
            let _ = key.parse::<KeyUri>();
        }
    }
}

/// An open vault.
type Held = (Arc<dyn Store>, LocalPlace);

/// A vault that is open for writing, whose lock says `content`.
fn lock(content: &[u8]) {
    static HELD: OnceLock<(tempfile::TempDir, Held)> = OnceLock::new();
    let (directory, _held) = HELD.get_or_init(|| {
        let directory = super::directory();
        let path = directory.path().join("vault");
        store::create(&path, OpenOptions::default(), &mut |_| Ok(()))
            .expect("a store")
            .expect("a store");
        let mode = Mode::Write(Holder::unknown());
        let held = store::open(&path, mode, OpenOptions::default()).expect("a store");
        (directory, held)
    });
    let path = directory.path().join("vault");
    fs::write(path.join("lock"), content).expect("written");
    let told = holder(&path).expect("readable").expect("it is held");
    let told = told.to_string();
    assert!(!told.chars().any(char::is_control), "{told:?}");
}
