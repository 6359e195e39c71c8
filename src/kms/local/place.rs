//! The directory of the local KMS on this host.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::refusal::fail;
use crate::kms::{KmsError, KmsErrorKind, KmsSettings};
use crate::os::user;

/// Names the directory of the local KMS if the settings do not.
pub const DIR_VARIABLE: &str = "SECRETFS_LOCAL_KMS_DIR";

/// The directory that root uses.
const OF_ROOT: &str = "/var/lib/secretfs/kms";

/// The directory that settings or environment name, else the default. Touches nothing.
pub(super) fn of(settings: &KmsSettings) -> Result<PathBuf, KmsError> {
    let dir = match &settings.local_dir {
        Some(dir) => dir.clone(),
        None => default_dir(user::may_use_as_root(Path::new(OF_ROOT)), |name| {
            std::env::var_os(name)
        })?,
    };
    // Make it absolute now: the daemon changes its working directory.
    std::path::absolute(&dir).map_err(|e| {
        fail(
            KmsErrorKind::Configuration,
            format!(
                "the local KMS's directory {} has no absolute path: {e}",
                dir.display()
            ),
        )
    })
}

/// The usual directory, for settings that name none; `None` when it cannot be told.
pub fn usual_dir() -> Option<PathBuf> {
    default_dir(user::may_use_as_root(Path::new(OF_ROOT)), |name| {
        std::env::var_os(name)
    })
    .ok()
    .and_then(|dir| std::path::absolute(dir).ok())
}

pub(super) fn default_dir(
    root: bool,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<PathBuf, KmsError> {
    let path = |name| {
        variable(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    if let Some(dir) = path(DIR_VARIABLE) {
        return Ok(dir);
    }
    if root {
        return Ok(PathBuf::from(OF_ROOT));
    }
    // The XDG specification says to ignore relative paths.
    let data = path("XDG_DATA_HOME").filter(|dir| dir.is_absolute());
    data.or_else(|| path("HOME").map(|home| home.join(".local/share")))
        .map(|data| data.join("secretfs/kms"))
        .ok_or_else(|| {
            fail(
                KmsErrorKind::Configuration,
                format!("cannot tell where the local KMS keeps its keys: HOME is not set; set {DIR_VARIABLE} to a directory"),
            )
        })
}
