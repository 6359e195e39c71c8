//! The identity of this process on its host.

use std::fs;

/// The `uid_map` of a user namespace that maps every user to itself.
const ALL: [&str; 3] = ["0", "0", "4294967295"];

/// Whether this process is the host's root, and not just user 0 of a user namespace, as in `unshare
/// -r` and in unprivileged containers, which cannot write files of the host's root.
fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
        && match fs::read_to_string("/proc/self/uid_map") {
            Ok(map) => maps_all(&map),
            // Without /proc, the user number is the best guess.
            Err(_) => true,
        }
}

fn maps_all(map: &str) -> bool {
    map.split_ascii_whitespace().eq(ALL)
}

/// Whether this process should use root's default `path`: as the host's root, or as user 0 of a
/// user namespace that can write it.
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
