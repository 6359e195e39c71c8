//! Users who could put something else in the place of a directory.
//!
//! A program that names files by paths follows whatever is at these paths by then. So a path on
//! which another user can exchange a directory leads wherever that user likes.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Group, User, geteuid};

/// A directory in which other users can exchange entries.
pub(crate) struct Exchangeable {
    /// Its path.
    pub(crate) directory: PathBuf,
    /// The users, and what they may do, in words.
    pub(crate) by: String,
}

/// The first directory, from the root to `directory` itself, in which another user than root can
/// exchange entries of this user. `directory` is absolute, and no part of it is a link.
///
/// # Errors
/// When a directory on the way cannot be examined.
pub(crate) fn exchangeable(directory: &Path) -> io::Result<Option<Exchangeable>> {
    // The owner of the root can exchange anything. In a user namespace that need not be user 0.
    let trusted = [0, geteuid().as_raw(), fs::metadata("/")?.uid()];
    let mut way: Vec<&Path> = directory.ancestors().collect();
    way.reverse();
    for directory in way {
        if let Some(by) = by_others(&fs::symlink_metadata(directory)?, &trusted) {
            let directory = directory.to_owned();
            return Ok(Some(Exchangeable { directory, by }));
        }
    }
    Ok(None)
}

/// The users who can exchange entries of this directory.
fn by_others(directory: &Metadata, trusted: &[u32]) -> Option<String> {
    let (owner, group, mode) = (directory.uid(), directory.gid(), directory.mode());
    if !trusted.contains(&owner) {
        return Some(format!("user {owner} owns it"));
    }
    // With the sticky bit, as in /tmp, users exchange only what is theirs.
    if mode & libc::S_ISVTX != 0 {
        return None;
    }
    if mode & libc::S_IWOTH != 0 {
        return Some("all users can write there".to_owned());
    }
    let by_group = mode & libc::S_IWGRP != 0 && !is_private(group);
    by_group.then(|| format!("group {group} can write there"))
}

/// Whether a group is root's, or this user's own: many systems make a group of the same name for
/// each user, and let it write what the user makes.
fn is_private(group: u32) -> bool {
    if group == 0 {
        return true;
    }
    let user = User::from_uid(geteuid()).ok().flatten();
    let group = Group::from_gid(Gid::from_raw(group)).ok().flatten();
    user.zip(group).is_some_and(|(user, group)| {
        let is_own = group.gid == user.gid && group.name == user.name;
        is_own && group.mem.iter().all(|member| *member == user.name)
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, chown};

    use super::*;

    #[test]
    fn a_directory_is_exchangeable_where_others_can_write_or_own_a_directory_on_the_way() {
        let home = tempfile::tempdir().unwrap();
        let home = home.path().canonicalize().unwrap();
        let below = home.join("a/b");
        fs::create_dir_all(&below).unwrap();
        let set = |mode| fs::set_permissions(home.join("a"), fs::Permissions::from_mode(mode));
        let found = |directory: &Path| {
            let found = exchangeable(directory).unwrap();
            found.map(|found| (found.directory, found.by))
        };
        for (mode, by) in [
            (0o755, None),
            (0o777, Some("all users can write there")),
            (0o1777, None),
            (0o700, None),
        ] {
            set(mode).unwrap();
            let expected = by.map(|by| (home.join("a"), by.to_owned()));
            assert_eq!(found(&below), expected, "{mode:o}");
            assert_eq!(found(&home.join("a")), expected, "{mode:o}");
            assert_eq!(found(&home), None);
        }
        // Only root can give directories away.
        if geteuid().is_root() {
            chown(home.join("a"), None, Some(54_321)).unwrap();
            set(0o775).unwrap();
            let by = "group 54321 can write there".to_owned();
            assert_eq!(found(&below), Some((home.join("a"), by)));
            set(0o755).unwrap();
            assert_eq!(found(&below), None);
            chown(home.join("a"), Some(54_321), None).unwrap();
            set(0o1755).unwrap();
            let by = "user 54321 owns it".to_owned();
            assert_eq!(found(&below), Some((home.join("a"), by)));
        }
    }
}
