//! Default paths: for root under /etc and /var/lib, for other users in their XDG directories.

use std::path::PathBuf;

/// The default configuration files, the least important first.
pub(super) fn config_files() -> Vec<PathBuf> {
    let mut files = vec![PathBuf::from("/etc/secretfs/config.toml")];
    files.extend(xdg("XDG_CONFIG_HOME", ".config").map(|dir| dir.join("secretfs/config.toml")));
    files
}

/// The default directory of this host's anchors.
pub(super) fn anchor_dir() -> Option<PathBuf> {
    let of_root = PathBuf::from("/var/lib/secretfs/anchors");
    if crate::os::user::may_use_as_root(&of_root) {
        Some(of_root)
    } else {
        xdg("XDG_STATE_HOME", ".local/state").map(|dir| dir.join("secretfs/anchors"))
    }
}

/// An XDG directory. The specification says to ignore relative values.
fn xdg(variable: &str, default: &str) -> Option<PathBuf> {
    let absolute = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|p| p.is_absolute())
    };
    absolute(variable).or_else(|| absolute("HOME").map(|home| home.join(default)))
}
