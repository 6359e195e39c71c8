//! The meaning of a path on the command line: a vault, or a mount of one.

use std::path::Path;

use serde_json::Value;

use crate::daemon::{self, MountInfo};
use crate::error::{Class, Error};
use crate::vault::OpenOptions;

/// The mount of secretfs at `path`, if there is one.
pub(super) fn mounted_at(path: &Path) -> Option<MountInfo> {
    // Ignore a failed look-up: opening the path reports it.
    let mount = daemon::absolute(path).and_then(|path| daemon::mount_at(&path));
    mount.ok().flatten().filter(MountInfo::is_secretfs)
}

/// Refuses a mount point, for commands that read the vault's files.
///
/// # Errors
/// When a vault is mounted on `path`.
pub(super) fn must_be_a_vault(path: &Path) -> Result<(), Error> {
    match mounted_at(path) {
        Some(_) => Err(Error::new(
            Class::NotAVault,
            format!(
                "{} is where a vault is mounted, not the vault: name its directory",
                path.display()
            ),
        )),
        None => Ok(()),
    }
}

/// Refuses a mount that is not of the pinned vault and keys, or is read-only.
pub(super) fn must_be_the_one(
    path: &Path,
    status: &Value,
    pins: &OpenOptions,
) -> Result<(), Error> {
    let shown = path.display();
    let vault = status["vault"].as_str().unwrap_or_default();
    if let Some(pinned) = &pins.pinned_vault_id
        && pinned != vault
    {
        let why =
            format!("{shown} is a mount of vault {vault}, but vault-id={pinned} was asked for");
        return Err(Error::new(Class::Integrity, why));
    }
    let pinned = |key: &str| pins.pinned_keys.iter().any(|pin| pin.as_str() == key);
    let generations = status["generations"].as_array().into_iter().flatten();
    let mut wraps = generations.flat_map(|g| g["wraps"].as_array().into_iter().flatten());
    if !pins.pinned_keys.is_empty()
        && let Some(wrap) = wraps.find(|wrap| !pinned(wrap["kms_key"].as_str().unwrap_or_default()))
    {
        let key = wrap["kms_key"].as_str().unwrap_or_default();
        let why =
            format!("the vault mounted on {shown} is under {key}, which kms-key does not name");
        return Err(Error::new(Class::Integrity, why));
    }
    if status["mode"] == "read-only" {
        let why = format!(
            "the mount on {shown} is read-only; name the mount for writing, or the vault's directory"
        );
        return Err(Error::new(Class::Failed, why));
    }
    Ok(())
}
