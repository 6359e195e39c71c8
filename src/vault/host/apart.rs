//! Warns if a vault and its key are on one disk, so that a copy of the disk has both.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::kms::local::LocalKms;
use crate::kms::{KeyUri, Provider};

use super::super::VaultError;

/// A warning for each key of the local KMS among `uris` whose file is on the file system of
/// `vault`.
///
/// The comparison uses the device number from `stat`. It sees through bind mounts and links, and
/// treats a tmpfs, such as `/run` or a unit's credentials, as a file system of its own. It cannot
/// see that two file systems share a disk: partitions, LVM volumes, btrfs subvolumes and ZFS
/// datasets each have numbers of their own, and so does an overlay beside its lower file system. So
/// a warning is always true, but no warning promises nothing.
pub(in crate::vault) fn warnings<'a>(
    local: &LocalKms,
    vault: &Path,
    uris: impl IntoIterator<Item = &'a str>,
) -> Vec<String> {
    let device = |path: &Path| path.metadata().ok().map(|metadata| metadata.dev());
    let Some(of_vault) = device(vault) else {
        return Vec::new();
    };
    let mut warnings = Vec::new();
    for uri in uris {
        let key = uri.parse::<KeyUri>().ok();
        let key = key.filter(|key| key.provider() == Provider::Local);
        let Some(keys) = key.as_ref().and_then(|key| local.directory_of(key.key())) else {
            continue;
        };
        let warning = format!(
            "the key {uri} in {} and the vault lie on one file system: whoever has that disk, or an image or a backup of it, can read all secrets; keep the key elsewhere, or have systemd hand it over as a credential",
            keys.display()
        );
        if device(keys) == Some(of_vault) && !warnings.contains(&warning) {
            warnings.push(warning);
        }
    }
    warnings
}

/// Refuses keys inside the vault, and a vault inside the keys: a copy of one would include the
/// other.
pub(in crate::vault) fn must_be_apart(keys: &Path, vault: &Path) -> Result<(), VaultError> {
    let (keys, vault) = (real_path(keys), real_path(vault));
    if keys.starts_with(&vault) || vault.starts_with(&keys) {
        return Err(VaultError::Setting(format!(
            "the local KMS keeps its keys in {} and the vault is {}: whoever copies one must not \
             get the other; choose another place for the vault, or set SECRETFS_LOCAL_KMS_DIR",
            keys.display(),
            vault.display()
        )));
    }
    Ok(())
}

/// The path with links resolved in the part of it that exists.
pub(crate) fn real_path(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    for ancestor in absolute.ancestors() {
        if let Ok(real) = ancestor.canonicalize() {
            return match absolute.strip_prefix(ancestor) {
                Ok(rest) if !rest.as_os_str().is_empty() => real.join(rest),
                _ => real,
            };
        }
    }
    absolute
}
