//! Creating a vault, completely or not at all.

use std::path::{Path, PathBuf};

use crate::crypto::schedule::VaultId;
use crate::crypto::secret::fill_random;
use crate::keyring::{Event, EventKind, Header, Keyring};
use crate::kms::{self, KeyUri, Provider};
use crate::store::{self, WriteRecords as _};

use super::VaultError;
use super::cache::RecordCache;
use super::host::anchor::{Anchor, Anchors};
use super::host::apart::{self, must_be_apart};
use super::node::{Attributes, DirectoryBody, Kind, Node, NodeBody, ROOT, SYSTEM, Timestamp};
use super::options::InitOptions;
use super::state::{State, SystemKeys};
use super::tx::Tx;

/// A new vault.
#[derive(Clone, Debug)]
pub struct Created {
    /// Its id, in hexadecimal.
    pub vault_id: String,
    /// The KMS keys that wrap its master key.
    pub kms_keys: Vec<KeyUri>,
    /// The directory in which keys of the local KMS were created, if any.
    pub local_keys_created: Option<PathBuf>,
    /// Facts that make the vault less secret than it could be, in words for people.
    pub warnings: Vec<String>,
}

/// Creates a vault in `path`, completely or not at all. `path` must not exist, or be an empty
/// directory.
///
/// # Errors
/// When `path` is occupied, a KMS key cannot be used, or a medium fails.
pub fn init(path: &Path, options: &InitOptions) -> Result<Created, VaultError> {
    let path = std::path::absolute(path).map_err(|e| {
        VaultError::Setting(format!("cannot tell where {} is: {e}", path.display()))
    })?;
    must_be_free(&path)?;
    let anchors = options.anchor_dir.as_ref().map(Anchors::at);
    if let Some(anchors) = &anchors {
        anchors.must_be_writable()?;
    }
    let kms = kms::connect(&options.kms);
    let mut local_keys_created = None;
    for uri in options
        .kms_keys
        .iter()
        .filter(|uri| uri.provider() == Provider::Local)
    {
        must_be_apart(kms.local()?.dir(), &path)?;
        if kms.local()?.ensure(uri.key())? {
            local_keys_created = Some(kms.local()?.dir().to_owned());
        }
    }

    let mut id = [0; 16];
    fill_random(&mut id)?;
    let vault = VaultId(id);
    let now = Timestamp::now();
    let mut keyring = Keyring::create(&Header::new(vault), &options.kms_keys, &kms, now.seconds)?;
    let uris: Vec<String> = options.kms_keys.iter().map(ToString::to_string).collect();
    let created = EventKind::Created {
        kms_keys: uris.clone(),
    };
    let event = keyring.record_event(&Event {
        at: now.seconds,
        late: false,
        kind: created,
    });

    let mut failure = None;
    let made = store::create(&path, store::OpenOptions::default(), &mut |records| {
        let mut store_all = || -> Result<(), VaultError> {
            records.put_header(keyring.header_bytes())?;
            let (system, root) = first_nodes(&keyring, options, now)?;
            let keys = SystemKeys::of(&system);
            let cache = RecordCache::default();
            let mut tx = Tx::new(&keyring, &keys, &cache, records, State::empty(ROOT));
            tx.put_keyring(std::slice::from_ref(&event))?;
            tx.write_genesis(system, root)?;
            let commit = tx.finish()?.0.commit;
            // Check this before there is a vault: one without an anchor would be incomplete.
            let Some(anchors) = &anchors else {
                return Ok(());
            };
            let path = path.canonicalize().unwrap_or_else(|_| path.clone());
            let mut anchor = Anchor::new(vault, &path, uris.clone());
            anchor.note_keyring(&keyring);
            anchor.commit_sequence = commit;
            anchors.take_over(&anchor)
        };
        store_all().map_err(|error| {
            failure = Some(error);
            store::Abort
        })
    });
    if !matches!(made, Ok(Ok(())))
        && let Some(anchors) = &anchors
    {
        anchors.forget(vault);
    }
    if let Some(error) = failure {
        return Err(error);
    }
    // A missing file does not mean a missing vault here, since there is none yet.
    let made = made.map_err(|error| match error.kind {
        store::StoreErrorKind::NotAVault => {
            store::StoreError::new(store::StoreErrorKind::Io, error)
        }
        _ => error,
    })?;
    if made.is_err() {
        return Err(VaultError::Setting("the vault was not made".into()));
    }

    Ok(Created {
        vault_id: vault.to_string(),
        kms_keys: options.kms_keys.clone(),
        local_keys_created,
        warnings: kms.local().map_or_else(
            |_| Vec::new(),
            |local| apart::warnings(local, &path, uris.iter().map(String::as_str)),
        ),
    })
}

fn first_nodes(
    keyring: &Keyring,
    options: &InitOptions,
    now: Timestamp,
) -> Result<(Node, Attributes), VaultError> {
    let owner = (options.uid, options.gid);
    let attributes = |body, mode| Attributes::of_new(mode, owner, now, body);
    let system = Node::create(
        keyring,
        SYSTEM,
        Kind::System,
        attributes(NodeBody::Special(0), 0),
    )?;
    let root = attributes(
        NodeBody::Directory(DirectoryBody::new(ROOT, [0; 32])),
        0o755,
    );
    Ok((system, root))
}

/// Refuses an occupied path before any key is made for it.
fn must_be_free(path: &Path) -> Result<(), VaultError> {
    let refused = |kind, why: &str| {
        VaultError::Store(store::StoreError::new(
            kind,
            format_args!(
                "cannot make a vault at {}: {why}; choose a path that does not exist or an empty directory",
                path.display()
            ),
        ))
    };
    let taken = |why: &str| refused(store::StoreErrorKind::Occupied, why);
    match std::fs::read_dir(path) {
        Ok(_) if path.join("vault.db").exists() => Err(refused(
            store::StoreErrorKind::Exists,
            "there is a vault already",
        )),
        Ok(mut entries) => {
            match entries.all(|entry| entry.is_ok_and(|entry| store::is_left_over(&entry))) {
                true => Ok(()),
                false => Err(taken("the directory is not empty")),
            }
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && path.is_symlink() => {
            Err(taken("it is a symbolic link to nothing"))
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => match path.parent() {
            Some(parent) if !parent.is_dir() => Err(VaultError::Setting(format!(
                "cannot make a vault at {}: the directory {} does not exist; make it first",
                path.display(),
                parent.display()
            ))),
            _ => Ok(()),
        },
        Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => Err(taken("it is no directory")),
        Err(e) => Err(taken(&e.to_string())),
    }
}
