//! Facts from `/proc` about descriptors and locks that the kernel does not report to this file
//! system. They are read in rare cases only, and within limits. Files that may not be read count as
//! absent.

use std::fs::{self, File};
use std::io::Read;

use crate::store::NodeId;

/// Limit on the descriptors of a process that are read.
const MOST_DESCRIPTORS: usize = 256;
/// Limit on the bytes of a file that are read.
const MOST_BYTES: u64 = 256 * 1024;

/// The use of a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum For {
    Reading,
    Writing,
}

/// Whether process `group` has a descriptor of `node` in the mount with this device number.
pub(super) fn has_one(what: For, group: u32, node: NodeId, device: Option<(u32, u32)>) -> bool {
    let Some((major, minor)) = device else {
        return false;
    };
    let Ok(descriptors) = fs::read_dir(format!("/proc/{group}/fdinfo")) else {
        return false;
    };
    let mut mounts = None;
    descriptors.flatten().take(MOST_DESCRIPTORS).any(|entry| {
        let Some(info) = read(&entry.path().to_string_lossy()) else {
            return false;
        };
        let Some(mount) = mount_of(&info, node, what) else {
            return false;
        };
        let mounts = mounts
            .get_or_insert_with(|| read(&format!("/proc/{group}/mountinfo")).unwrap_or_default());
        let is_ours = |line: &str| {
            let mut fields = line.split(' ');
            fields.next() == Some(mount) && fields.nth(1) == Some(&format!("{major}:{minor}"))
        };
        mounts.lines().any(is_ours)
    })
}

/// The mount id in the description of a descriptor, if that is of `node`.
fn mount_of(info: &str, node: NodeId, what: For) -> Option<&str> {
    let field = |name| {
        let mut lines = info.lines();
        lines
            .find_map(|line| line.strip_prefix(name))
            .map(str::trim)
    };
    let flags = i32::from_str_radix(field("flags:")?, 8).ok()?;
    let mode = flags & libc::O_ACCMODE;
    let is_for_it = match what {
        For::Reading => mode != libc::O_WRONLY,
        For::Writing => mode != libc::O_RDONLY,
    };
    let is_for_it = is_for_it && flags & libc::O_PATH == 0;
    let is_of_node = field("ino:")?.parse() == Ok(node);
    field("mnt_id:").filter(|_| is_for_it && is_of_node)
}

/// Whether any process holds a lock on `node` in the mount with this device number; in any file
/// system without a disk if the number is unknown.
pub(super) fn is_locked(node: NodeId, device: Option<(u32, u32)>) -> bool {
    read("/proc/locks").is_some_and(|locks| locks.lines().any(|line| locks_it(line, node, device)))
}

fn locks_it(line: &str, node: NodeId, device: Option<(u32, u32)>) -> bool {
    // A waiting process has an arrow before the kind.
    let mut fields = line.split_whitespace().skip(1);
    if !matches!(fields.next(), Some("POSIX" | "FLOCK" | "OFDLCK")) {
        return false;
    }
    let Some(place) = fields.nth(3) else {
        return false;
    };
    let mut parts = place.split(':');
    let mut number = || u32::from_str_radix(parts.next()?, 16).ok();
    let on = number().zip(number());
    let is_ours = device.is_none() && on.is_some_and(|(major, _)| major == 0) || on == device;
    is_ours && parts.next().is_some_and(|ino| ino.parse() == Ok(node))
}

fn read(path: &str) -> Option<String> {
    let mut text = String::new();
    let file = File::open(path).ok()?;
    file.take(MOST_BYTES).read_to_string(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_lock_counts_and_one_that_is_waited_for_does_not() {
        let held = "12: FLOCK  ADVISORY  WRITE 4242 00:2f:77 0 EOF";
        assert!(locks_it(held, 77, Some((0, 0x2f))));
        assert!(locks_it(held, 77, None));
        assert!(!locks_it(held, 78, Some((0, 0x2f))));
        assert!(!locks_it(held, 77, Some((0, 0x30))));
        let waiting = "12: -> FLOCK  ADVISORY  WRITE 4243 00:2f:77 0 EOF";
        assert!(!locks_it(waiting, 77, Some((0, 0x2f))));
        assert!(!locks_it("", 77, None));
        assert!(!locks_it(
            "1: LEASE  ACTIVE    READ  1 00:2f:77 0 EOF",
            77,
            None
        ));
    }

    #[test]
    fn only_descriptors_of_the_node_and_for_what_is_asked_count() {
        let info = |flags: &str| format!("pos:\t0\nflags:\t{flags}\nmnt_id:\t31\nino:\t77\n");
        let (r, w) = (For::Reading, For::Writing);
        assert_eq!(mount_of(&info("0100001"), 77, w), Some("31"));
        assert_eq!(mount_of(&info("0100002"), 77, w), Some("31"));
        assert_eq!(mount_of(&info("0100002"), 7, w), None);
        assert_eq!(mount_of(&info("0100000"), 77, w), None);
        assert_eq!(mount_of(&info("0100000"), 77, r), Some("31"));
        assert_eq!(mount_of(&info("0100001"), 77, r), None);
        assert_eq!(mount_of(&info("010000000"), 77, r), None);
        assert_eq!(mount_of("flags:\t02\n", 77, w), None);
    }

    #[test]
    fn the_descriptors_of_this_process_are_seen() {
        use std::os::unix::fs::MetadataExt;
        let writes = tempfile::NamedTempFile::new().unwrap();
        let metadata = writes.as_file().metadata().unwrap();
        let (node, device) = (metadata.ino(), metadata.dev());
        let device = (libc::major(device), libc::minor(device));
        let own = std::process::id();
        assert!(has_one(For::Writing, own, node, Some(device)));
        assert!(!has_one(
            For::Writing,
            own,
            node,
            Some((device.0, device.1 + 1))
        ));
        assert!(!has_one(For::Writing, own, u64::MAX, Some(device)));
        assert!(!has_one(For::Writing, own, node, None));
    }
}
