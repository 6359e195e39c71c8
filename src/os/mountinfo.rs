//! The mounts that `/proc/self/mountinfo` lists. Reading it sends no request to any file system, so
//! a dead or busy daemon cannot make the reader hang.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// The file system type of secretfs's mounts.
pub const FS_TYPE: &str = "fuse.secretfs";

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Its id, as statx(2) returns it.
    pub id: u64,
    /// The id of the mount below it.
    pub parent: u64,
    /// The device number of its superblock, as `major, minor`.
    pub device: (u32, u32),
    /// Its mount point.
    pub point: PathBuf,
    /// Whether the mount itself is read-only.
    pub read_only: bool,
    /// Its type, with the subtype.
    pub fs_type: OsString,
    /// Its source; for secretfs the path of the vault, in the mount namespace of the daemon.
    pub source: PathBuf,
    /// The user who mounted it, if the file system says (`user_id=` of FUSE).
    pub user: Option<u32>,
}

impl Mount {
    /// Whether it is a mount of secretfs.
    pub fn is_secretfs(&self) -> bool {
        self.fs_type == FS_TYPE
    }
}

/// All mounts in this process's mount namespace.
pub fn mounts() -> io::Result<Vec<Mount>> {
    let text = std::fs::read("/proc/self/mountinfo").map_err(|e| {
        io::Error::other(format!(
            "cannot read /proc/self/mountinfo ({e}); mount /proc"
        ))
    })?;
    Ok(text.split(|b| *b == b'\n').filter_map(parse).collect())
}

/// All mounts in the mount namespace of the process `pid`.
pub(crate) fn mounts_of(pid: u32) -> io::Result<Vec<Mount>> {
    let text = std::fs::read(format!("/proc/{pid}/mountinfo"))?;
    Ok(text.split(|b| *b == b'\n').filter_map(parse).collect())
}

/// The mount whose root is `path`; the topmost if several are stacked.
pub fn mount_at(path: &Path) -> io::Result<Option<Mount>> {
    let id = super::sys::mount_id(path)?;
    Ok(mounts()?
        .into_iter()
        .find(|m| m.id == id.id && m.point == path))
}

/// The mount on which `path` lies, at any depth.
pub(crate) fn mount_over(path: &Path) -> io::Result<Option<Mount>> {
    let id = super::sys::mount_id(path)?;
    Ok(mounts()?.into_iter().find(|m| m.id == id.id))
}

/// Makes `path` absolute and resolves links in all components but the last. It sends no request to
/// the file system mounted on `path`, which may be dead.
pub fn absolute(path: &Path) -> io::Result<PathBuf> {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => {
            let parent = if parent.as_os_str().is_empty() {
                Path::new(".")
            } else {
                parent
            };
            let candidate = parent.canonicalize()?.join(name);
            // Follow a link to the mount point. A path that cannot be read as a link is not one.
            match std::fs::read_link(&candidate) {
                Ok(_) => candidate.canonicalize(),
                Err(_) => Ok(candidate),
            }
        }
        _ => path.canonicalize(),
    }
}

/// Parses one line: `36 35 98:0 /root /point rw,noatime shared:1 - type source rw,errors=continue`.
fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|b| *b == b' ');
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let mut device = fields.next()?.splitn(2, |b| *b == b':');
    let device = (number(device.next()?)?, number(device.next()?)?);
    let _root = fields.next()?;
    let point = unescape(fields.next()?);
    let options = fields.next()?;
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    Some(Mount {
        id,
        parent,
        device,
        point: PathBuf::from(point),
        read_only: options.split(|b| *b == b',').any(|o| o == b"ro"),
        fs_type: unescape(rest.next()?),
        source: PathBuf::from(unescape(rest.next()?)),
        user: rest.next().and_then(|options| {
            let mut options = options.split(|b| *b == b',');
            number(options.find_map(|o| o.strip_prefix(b"user_id="))?)
        }),
    })
}

fn number<N: std::str::FromStr>(text: &[u8]) -> Option<N> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Decodes spaces, tabs, line breaks, backslashes and `#`, which the kernel writes as `\ooo`.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .filter(|_| first == b'\\')
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match octal {
            Some(byte) => {
                bytes.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(bytes)
}

/// Whether `path` is `directory` or is under it.
pub(crate) fn is_under(path: &Path, directory: &Path) -> bool {
    // Compare by components: /a/bc is not under /a/b.
    path.as_os_str().as_bytes() == directory.as_os_str().as_bytes() || path.starts_with(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_with_escapes_and_optional_fields() {
        let line = b"57 29 0:49 / /mnt/a\\040b rw,nosuid shared:1 master:2 - fuse.secretfs /v\\134x rw,user_id=0";
        let mount = parse(line).expect("a mount");
        assert_eq!((mount.id, mount.parent), (57, 29));
        assert_eq!(mount.device, (0, 49));
        assert_eq!(mount.point, Path::new("/mnt/a b"));
        assert_eq!(mount.source, Path::new("/v\\x"));
        assert!(mount.is_secretfs() && !mount.read_only);
        assert_eq!(mount.user, Some(0));
        assert_eq!(parse(b"garbage"), None);
        assert_eq!(unescape(b"a\\04"), "a\\04");
    }

    #[test]
    fn a_sibling_with_the_same_beginning_is_not_under() {
        assert!(is_under(Path::new("/a/b/c"), Path::new("/a/b")));
        assert!(is_under(Path::new("/a/b"), Path::new("/a/b")));
        assert!(!is_under(Path::new("/a/bc"), Path::new("/a/b")));
    }

    #[test]
    fn the_root_mount_is_found() {
        let mount = mount_at(Path::new("/proc"))
            .expect("mountinfo")
            .expect("a mount");
        assert_eq!(mount.fs_type, "proc");
    }
}
