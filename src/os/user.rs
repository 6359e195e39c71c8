//! Who this process is on its host.

use std::fs;

/// The line of a user namespace that maps every user to itself.
const ALL: [&str; 3] = ["0", "0", "4294967295"];

/// Whether this is the host's root: user 0, and not merely called so in a user namespace, as in
/// `unshare -r` and in containers without privileges, where what is root's on the host cannot be
/// written.
fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
        && match fs::read_to_string("/proc/self/uid_map") {
            Ok(map) => maps_all(&map),
            // Without /proc the number is the best guess left.
            Err(_) => true,
        }
}

fn maps_all(map: &str) -> bool {
    map.split_ascii_whitespace().eq(ALL)
}

/// Whether what root has by default at `path` is this process' to use: as root, or as one that is
/// called so in a user namespace and has used it before.
pub fn may_use_as_root(path: &std::path::Path) -> bool {
    is_root()
        || (nix::unistd::geteuid().is_root()
            && nix::unistd::access(path, nix::unistd::AccessFlags::W_OK).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_user_namespace_maps_all() {
        assert!(maps_all("         0          0 4294967295\n"));
        assert!(!maps_all("         0       1000          1\n"));
        assert!(!maps_all("0 0 65536\n65536 65536 1\n"));
        assert!(!maps_all(""));
    }
}
