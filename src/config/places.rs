//! Where things are by default: root's under /etc and /var/lib, other users' in their XDG
//! directories.

use std::path::PathBuf;

/// The usual configuration files, the least important first.
pub(super) fn config_files() -> Vec<PathBuf> {
    let mut files = vec![PathBuf::from("/etc/secretfs/config.toml")];
    files.extend(xdg("XDG_CONFIG_HOME", ".config").map(|dir| dir.join("secretfs/config.toml")));
    files
}

/// Where this host remembers the vaults it has seen unless a setting says otherwise.
pub(super) fn anchor_dir() -> Option<PathBuf> {
    let of_root = PathBuf::from("/var/lib/secretfs/anchors");
    if crate::os::user::may_use_as_root(&of_root) {
        Some(of_root)
    } else {
        xdg("XDG_STATE_HOME", ".local/state").map(|dir| dir.join("secretfs/anchors"))
    }
}

/// The XDG rule: a relative value is ignored.
fn xdg(variable: &str, default: &str) -> Option<PathBuf> {
    let absolute = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|p| p.is_absolute())
    };
    absolute(variable).or_else(|| absolute("HOME").map(|home| home.join(default)))
}
