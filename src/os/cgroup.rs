//! The memory limit of this process's control group. The kernel kills a process that exceeds it.
//!
//! A file that cannot be read means no limit: the group may be hidden from this process.

use std::fs;
use std::path::{Component, Path, PathBuf};

/// The smallest limit, in bytes, from this process's group up to the root, as far as they are
/// visible; `None` without any.
pub fn memory_limit() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    smallest(&groups, &mounts)
}

/// `groups` is the text of `/proc/PID/cgroup` (cgroups(7)), `mounts` that of `/proc/PID/mountinfo`
/// (proc(5)).
fn smallest(groups: &str, mounts: &str) -> Option<u64> {
    let of_group = |line| {
        let (version, path) = group(line)?;
        let of_version = mounts.lines().filter_map(mount);
        let seen = of_version.filter(|mount| mount.version == version);
        seen.filter_map(|mount| mount.smallest(path)).min()
    };
    groups.lines().filter_map(of_group).min()
}

/// The version of a hierarchy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    /// The hierarchy that has the memory controller.
    One,
    Two,
}

impl Version {
    fn limit_file(self) -> &'static str {
        match self {
            Self::One => "memory.limit_in_bytes",
            Self::Two => "memory.max",
        }
    }
}

/// The group that a line names; `None` unless its hierarchy has the memory controller.
fn group(line: &str) -> Option<(Version, &Path)> {
    let mut fields = line.splitn(3, ':');
    let (number, controllers) = (fields.next()?, fields.next()?);
    let version = match (number, controllers) {
        ("0", "") => Version::Two,
        (_, list) if has_memory(list) => Version::One,
        _ => return None,
    };
    Some((version, Path::new(fields.next()?)))
}

fn has_memory(list: &str) -> bool {
    list.split(',').any(|controller| controller == "memory")
}

/// A mount of a hierarchy; `root` is the group that `point` shows.
struct CgroupMount {
    version: Version,
    root: PathBuf,
    point: PathBuf,
}

fn mount(line: &str) -> Option<CgroupMount> {
    let (place, kind) = line.split_once(" - ")?;
    let mut kind = kind.split(' ');
    let (name, options) = (kind.next()?, kind.nth(1)?);
    let version = match name {
        "cgroup2" => Version::Two,
        "cgroup" if has_memory(options) => Version::One,
        _ => return None,
    };
    let mut place = place.split(' ');
    let (root, point) = (place.nth(3)?, place.next()?);
    Some(CgroupMount {
        version,
        root: unescaped(root),
        point: unescaped(point),
    })
}

/// Decodes spaces and the like, which mountinfo writes as `\040`.
fn unescaped(field: &str) -> PathBuf {
    let mut plain = field.to_owned();
    for (escape, character) in [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ] {
        plain = plain.replace(escape, character);
    }
    plain.into()
}

impl CgroupMount {
    /// The smallest limit from the group `path` up to the top of this mount.
    fn smallest(&self, path: &Path) -> Option<u64> {
        // A path outside `root` counts as the top. A container has one if it shares its host's
        // namespace but sees only its own group.
        let below = path.strip_prefix(&self.root).unwrap_or(Path::new(""));
        let is_plain = |part| matches!(part, Component::Normal(_));
        let below = match below.components().all(is_plain) {
            true => below,
            false => Path::new(""),
        };
        let group = self.point.join(below);
        let on_the_way = group.ancestors().take(below.components().count() + 1);
        let limits = on_the_way.filter_map(|group| {
            let text = fs::read_to_string(group.join(self.version.limit_file())).ok()?;
            // `max` means no limit.
            text.trim().parse::<u64>().ok()
        });
        // Version 1 shows here the limits of groups above the mount, too.
        let above = match self.version {
            Version::One => fs::read_to_string(group.join("memory.stat")).ok(),
            Version::Two => None,
        };
        let above = above.and_then(|stat| {
            let mut lines = stat.lines();
            lines.find_map(|line| {
                line.strip_prefix("hierarchical_memory_limit ")?
                    .parse()
                    .ok()
            })
        });
        limits.chain(above).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes files with these texts below `top`.
    fn laid(top: &Path, files: &[(&str, &str)]) {
        for (name, text) in files {
            let file = top.join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
    }

    fn mounted(kind: &str, root: &str, point: &Path) -> String {
        let options = match kind {
            "cgroup" => "rw,memory",
            _ => "rw,nsdelegate",
        };
        let other = "35 31 0:32 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu";
        let point = point.display();
        format!("{other}\n36 31 0:33 {root} {point} rw,nosuid shared:9 - {kind} {kind} {options}\n")
    }

    #[test]
    fn the_smallest_limit_on_the_way_to_the_root_counts() {
        let top = tempfile::tempdir().unwrap();
        let two = mounted("cgroup2", "/", top.path());
        laid(
            top.path(),
            &[
                ("a/memory.max", "67108864\n"),
                ("a/b/memory.max", "max\n"),
                ("a/b/c/memory.max", "134217728\n"),
                ("other/memory.max", "4096\n"),
            ],
        );
        assert_eq!(smallest("0::/a/b/c\n", &two), Some(64 << 20));
        assert_eq!(smallest("0::/a\n", &two), Some(64 << 20));
        // The root has no such file.
        assert_eq!(smallest("0::/\n", &two), None);
        // The group has been removed.
        assert_eq!(smallest("0::/a/b/gone\n", &two), Some(64 << 20));
    }

    #[test]
    fn a_group_whose_namespace_or_mount_begins_at_itself_is_found() {
        let top = tempfile::tempdir().unwrap();
        laid(
            top.path(),
            &[("memory.max", "67108864\n"), ("in/memory.max", "4194304\n")],
        );
        // The path is `/` in a namespace of its own, and starts elsewhere without one.
        let own = mounted("cgroup2", "/", top.path());
        let bound = mounted("cgroup2", "/docker/0123", top.path());
        for (groups, mounts, limit) in [
            ("0::/\n", &own, 64 << 20),
            ("0::/docker/0123\n", &bound, 64 << 20),
            ("0::/docker/0123/in\n", &bound, 4 << 20),
            ("0::/elsewhere\n", &bound, 64 << 20),
            ("0::/../../in\n", &own, 64 << 20),
        ] {
            assert_eq!(smallest(groups, mounts), Some(limit), "{groups}");
        }
    }

    #[test]
    fn the_older_kind_is_read_with_what_lies_above() {
        let top = tempfile::tempdir().unwrap();
        let one = mounted("cgroup", "/docker/0123", top.path());
        let groups = "9:name=systemd:/docker/0123\n4:cpu,memory:/docker/0123\n0::/\n";
        let unlimited = "9223372036854771712\n";
        laid(top.path(), &[("memory.limit_in_bytes", unlimited)]);
        assert_eq!(smallest(groups, &one), Some(9_223_372_036_854_771_712));
        laid(
            top.path(),
            &[(
                "memory.stat",
                "cache 0\nhierarchical_memory_limit 67108864\ntotal 1\n",
            )],
        );
        assert_eq!(smallest(groups, &one), Some(64 << 20));
        laid(top.path(), &[("memory.limit_in_bytes", "4194304\n")]);
        assert_eq!(smallest(groups, &one), Some(4 << 20));
    }

    #[test]
    fn what_is_no_group_of_memory_limits_nothing() {
        let mounts = mounted("cgroup", "/", Path::new("/nowhere"));
        for groups in ["", "0::/\n", "4:cpu:/a\n", "4:memory\n", "garbage", ":::\n"] {
            assert_eq!(smallest(groups, &mounts), None, "{groups:?}");
        }
        assert_eq!(smallest("4:memory:/a\n", "36 31\n - cgroup2\n"), None);
        assert_eq!(unescaped("/a\\040b"), Path::new("/a b"));
    }
}
