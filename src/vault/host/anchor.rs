//! The anchor: this host's memory of a vault, outside the vault. It holds the KMS keys that may be
//! asked, and the newest state seen. Without it, an attacker who can write the vault can replace it
//! by an older one, or by another.
//!
//! There is one small JSON file for each vault id, which is replaced as a whole, under a lock on
//! the directory.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::crypto::schedule::{VaultId, digest};
use crate::keyring::Keyring;
use crate::kms::KeyUri;

use super::super::VaultError;

/// Limit on an anchor, in bytes.
const MAX_LEN: u64 = 64 * 1024;
/// Limit on the wait for another process that stores an anchor, which takes milliseconds.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// The anchor of a vault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Anchor {
    format: u32,
    /// The vault's id, in hexadecimal.
    pub vault: String,
    /// The path at which the vault was last seen; bytes that are not UTF-8 are escaped.
    pub path: String,
    /// The KMS keys that may be asked to unwrap.
    pub kms_keys: Vec<String>,
    /// Highest keyring sequence seen.
    pub keyring_sequence: u64,
    /// SHA-256 of the keyring record with that sequence, in hexadecimal.
    pub keyring_digest: String,
    /// Highest commit sequence known to be on disk.
    pub commit_sequence: u64,
}

impl Anchor {
    /// An anchor for a vault seen for the first time.
    pub fn new(vault: VaultId, path: &Path, kms_keys: Vec<String>) -> Self {
        Self {
            format: 1,
            vault: vault.to_string(),
            path: path_text(path),
            kms_keys,
            keyring_sequence: 0,
            keyring_digest: String::new(),
            commit_sequence: 0,
        }
    }

    /// The KMS keys for a new anchor of a vault that may use `pins`. Pins for this time only do not
    /// make the host forget keys that it has `known`.
    pub(in crate::vault) fn keys_of(pins: &[KeyUri], known: Option<&Self>) -> Vec<String> {
        let mut uris: Vec<String> = pins.iter().map(ToString::to_string).collect();
        for known in known.iter().flat_map(|anchor| &anchor.kms_keys) {
            if !uris.contains(known) {
                uris.push(known.clone());
            }
        }
        uris
    }

    /// Whether the vault was last seen at `path`.
    pub(in crate::vault) fn is_at(&self, path: &Path) -> bool {
        self.path == path_text(path)
    }

    /// Notes `keyring` as the newest one seen.
    pub(in crate::vault) fn note_keyring(&mut self, keyring: &Keyring) {
        self.keyring_sequence = keyring.body().sequence;
        self.keyring_digest = hex(&digest(&[&keyring.encode()]));
    }
}

fn path_text(path: &Path) -> String {
    path.as_os_str().as_bytes().escape_ascii().to_string()
}

/// Hexadecimal digits of `bytes`.
pub(in crate::vault) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The anchors of this host.
#[derive(Clone, Debug)]
pub struct Anchors {
    directory: PathBuf,
}

impl Anchors {
    /// The anchors in `directory`, which need not exist yet.
    pub fn at(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
        }
    }

    fn file(&self, vault: &str) -> PathBuf {
        self.directory.join(format!("{vault}.json"))
    }

    /// The anchor of `vault`, if this host has one.
    ///
    /// # Errors
    /// When it cannot be read or is damaged.
    pub fn load(&self, vault: VaultId) -> Result<Option<Anchor>, VaultError> {
        let anchor = self.read(&self.file(&vault.to_string()))?;
        match &anchor {
            Some(found) if found.vault != vault.to_string() => Err(VaultError::Rollback(format!(
                "the anchor {} is that of another vault; restore it, or remove it to trust the \
                 vault as it is now",
                self.file(&vault.to_string()).display()
            ))),
            _ => Ok(anchor),
        }
    }

    /// The id of the vault that was last seen at `path`, if that is not `vault`.
    ///
    /// # Errors
    /// When an anchor cannot be read or is damaged.
    pub fn other_vault_at(
        &self,
        path: &Path,
        vault: VaultId,
    ) -> Result<Option<String>, VaultError> {
        let here = path_text(path);
        for file in self.files()? {
            match self.read(&file) {
                Ok(Some(anchor)) if anchor.path == here && anchor.vault != vault.to_string() => {
                    return Ok(Some(anchor.vault));
                }
                Ok(_) => {}
                // The damaged anchor of another vault is no reason to refuse this one.
                Err(error) => tracing::warn!("{error}"),
            }
        }
        Ok(None)
    }

    fn files(&self) -> Result<Vec<PathBuf>, VaultError> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(failed("read", &self.directory, &e)),
        };
        let mut files = Vec::new();
        for entry in entries {
            let path = entry
                .map_err(|e| failed("read", &self.directory, &e))?
                .path();
            if path.extension().is_some_and(|e| e == "json") {
                files.push(path);
            }
        }
        Ok(files)
    }

    fn read(&self, file: &Path) -> Result<Option<Anchor>, VaultError> {
        let flags = nix::fcntl::OFlag::O_NOFOLLOW.bits();
        let opened = match OpenOptions::new().read(true).custom_flags(flags).open(file) {
            Ok(opened) => opened,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed("read", file, &e)),
        };
        let mut text = Vec::new();
        opened
            .take(MAX_LEN)
            .read_to_end(&mut text)
            .map_err(|e| failed("read", file, &e))?;
        let anchor = decode(&text).map_err(|why| {
            VaultError::Rollback(format!(
                "the anchor {} is damaged ({why}); restore it, or remove it to trust the vault as \
                 it is now",
                file.display()
            ))
        })?;
        Ok(Some(anchor))
    }

    /// Stores an anchor. Sequences never go down, even if other processes store at the same time,
    /// unless `lower` says that an older state was accepted.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn store(&self, anchor: &Anchor, lower: bool) -> Result<(), VaultError> {
        let _lock = self.lock()?;
        let file = self.file(&anchor.vault);
        let mut anchor = anchor.clone();
        if !lower && let Some(old) = self.read(&file)? {
            if old.keyring_sequence > anchor.keyring_sequence {
                anchor.keyring_sequence = old.keyring_sequence;
                anchor.keyring_digest.clone_from(&old.keyring_digest);
                anchor.kms_keys.clone_from(&old.kms_keys);
            }
            anchor.commit_sequence = anchor.commit_sequence.max(old.commit_sequence);
            if anchor == old {
                return Ok(());
            }
        }
        self.replace(&file, &anchor)
    }

    /// Stores `anchor`, and forgets that other vaults were seen at its path: for a new vault, or
    /// one that was accepted there.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn take_over(&self, anchor: &Anchor) -> Result<(), VaultError> {
        {
            let _lock = self.lock()?;
            for file in self.files()? {
                if let Some(mut other) = self.read(&file)?
                    && other.path == anchor.path
                    && other.vault != anchor.vault
                {
                    other.path = String::new();
                    self.replace(&file, &other)?;
                }
            }
        }
        self.store(anchor, true)
    }

    /// Removes the anchor of a vault whose creation failed.
    pub fn forget(&self, vault: VaultId) {
        // A failure has no remedy here, and another error is reported already.
        if let Ok(_lock) = self.lock() {
            let _ = fs::remove_file(self.file(&vault.to_string()));
        }
    }

    /// Checks that anchors can be stored, before there is one to store.
    ///
    /// # Errors
    /// When the directory cannot be created or written.
    pub fn must_be_writable(&self) -> Result<(), VaultError> {
        self.lock().map(drop)
    }

    /// Waits for another process at work here, for a limited time: a stopped process must not block
    /// writes to all other vaults of the host.
    fn lock(&self) -> Result<Flock<File>, VaultError> {
        let directory = &self.directory;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(|e| failed("create", directory, &e))?;
        let file = directory.join(".lock");
        let mut opened = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&file)
            .map_err(|e| failed("lock", &file, &e))?;
        let deadline = Instant::now() + LOCK_PATIENCE;
        loop {
            opened = match Flock::lock(opened, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(lock),
                Err((opened, Errno::EWOULDBLOCK)) if Instant::now() < deadline => opened,
                Err((_, Errno::EWOULDBLOCK)) => {
                    return Err(VaultError::Anchor(format!(
                        "another process has held {} for {} seconds; see who with `fuser` and end \
                         it or let it go on",
                        file.display(),
                        LOCK_PATIENCE.as_secs()
                    )));
                }
                Err((_, e)) => return Err(failed("lock", &file, &e.into())),
            };
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn replace(&self, file: &Path, anchor: &Anchor) -> Result<(), VaultError> {
        let draft = file.with_extension("new");
        let write = || {
            let mut out = OpenOptions::new()
                .create(true)
                .truncate(true)
                .write(true)
                .mode(0o600)
                .open(&draft)?;
            out.write_all(&encode(anchor))?;
            out.sync_all()?;
            fs::rename(&draft, file)?;
            File::open(&self.directory)?.sync_all()
        };
        write().map_err(|e| failed("write", file, &e))
    }
}

/// The text of an anchor, which ends with a line of its own SHA-256. That detects damage, but no
/// tampering: an attacker who can write here owns the host.
fn encode(anchor: &Anchor) -> Vec<u8> {
    // A struct of strings and numbers can always be encoded as JSON.
    let mut text = serde_json::to_vec_pretty(anchor).unwrap_or_default();
    text.push(b'\n');
    let sum = hex(&digest(&[&text]));
    text.extend_from_slice(sum.as_bytes());
    text.push(b'\n');
    text
}

/// Decodes the text of an anchor.
///
/// # Errors
/// When the text is not an anchor.
pub fn decode(text: &[u8]) -> Result<Anchor, String> {
    const SUM: usize = 65;
    let at = text.len().checked_sub(SUM).ok_or("it is too short")?;
    let (json, sum) = text.split_at(at);
    if sum.strip_suffix(b"\n") != Some(hex(&digest(&[json])).as_bytes()) {
        return Err("its checksum is wrong".into());
    }
    let anchor: Anchor = serde_json::from_slice(json).map_err(|e| e.to_string())?;
    if anchor.format != 1 {
        return Err(format!("it has format {}", anchor.format));
    }
    Ok(anchor)
}

fn failed(what: &str, path: &Path, error: &std::io::Error) -> VaultError {
    VaultError::Anchor(format!(
        "cannot {what} the anchor {}: {error}",
        path.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn anchors() -> (tempfile::TempDir, Anchors, Anchor) {
        let dir = tempfile::tempdir().unwrap();
        let anchors = Anchors {
            directory: dir.path().join("a/b"),
        };
        let mut anchor = Anchor::new(
            VaultId([7; 16]),
            Path::new("/v"),
            vec!["local-kms://x".into()],
        );
        (anchor.keyring_sequence, anchor.commit_sequence) = (3, 9);
        (dir, anchors, anchor)
    }

    #[test]
    fn sequences_are_only_ever_raised_unless_a_rollback_was_accepted() {
        let (_dir, anchors, anchor) = anchors();
        anchors.store(&anchor, false).unwrap();
        let older = Anchor {
            keyring_sequence: 2,
            commit_sequence: 4,
            ..anchor.clone()
        };
        anchors.store(&older, false).unwrap();
        assert_eq!(anchors.load(VaultId([7; 16])).unwrap(), Some(anchor));
        anchors.store(&older, true).unwrap();
        assert_eq!(anchors.load(VaultId([7; 16])).unwrap(), Some(older));
    }

    #[test]
    fn another_vault_at_the_same_path_is_noticed_until_it_is_accepted() {
        let (_dir, anchors, anchor) = anchors();
        anchors.store(&anchor, false).unwrap();
        let other = Anchor::new(VaultId([8; 16]), Path::new("/v"), vec![]);
        let seen = anchors
            .other_vault_at(Path::new("/v"), VaultId([8; 16]))
            .unwrap();
        assert_eq!(seen, Some(anchor.vault.clone()));
        anchors.take_over(&other).unwrap();
        let seen = anchors
            .other_vault_at(Path::new("/v"), VaultId([8; 16]))
            .unwrap();
        assert_eq!(seen, None);
    }

    #[test]
    fn a_process_that_holds_the_anchors_for_ever_is_told_of_and_not_waited_for() {
        let (_dir, anchors, anchor) = anchors();
        let _held = anchors.lock().unwrap();
        let error = anchors.store(&anchor, false).unwrap_err().to_string();
        assert!(error.contains(".lock"), "{error}");
    }

    #[test]
    fn a_damaged_anchor_is_refused_and_named() {
        let (_dir, anchors, anchor) = anchors();
        anchors.store(&anchor, false).unwrap();
        let file = anchors.file(&anchor.vault);
        let text = fs::read(&file).unwrap();
        for bit in 0..text.len() * 8 {
            let mut forged = text.clone();
            forged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&forged).is_err(), "bit {bit}");
        }
        fs::write(&file, b"{}").unwrap();
        let error = anchors.load(VaultId([7; 16])).unwrap_err().to_string();
        assert!(error.contains(file.to_str().unwrap()), "{error}");
    }
}
