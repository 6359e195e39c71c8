//! The options of a mount, and their form for fusermount3.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use crate::fs::MAX_TRANSFER;

/// The options of a mount.
#[derive(Clone, Debug)]
pub(crate) struct MountOptions {
    /// The vault's path, shown as the source of the mount.
    pub(crate) source: PathBuf,
    pub(crate) read_only: bool,
    pub(crate) allow_other: bool,
    pub(crate) exec: bool,
}

/// The options in fusermount3's form; it reads `\` in the source as an escape.
pub(crate) fn fusermount_options(options: &MountOptions) -> OsString {
    let mut text = b"fsname=".to_vec();
    for &byte in options.source.as_os_str().as_bytes() {
        if matches!(byte, b',' | b'\\') {
            text.push(b'\\');
        }
        text.push(byte);
    }
    text.extend_from_slice(b",subtype=secretfs,default_permissions,nosuid,nodev");
    text.extend_from_slice(format!(",max_read={MAX_TRANSFER}").as_bytes());
    text.extend_from_slice(if options.exec { b",exec" } else { b",noexec" });
    text.extend_from_slice(if options.read_only { b",ro" } else { b",rw" });
    if options.allow_other {
        text.extend_from_slice(b",allow_other");
    }
    OsString::from_vec(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_is_escaped_for_fusermount() {
        let options = MountOptions {
            source: PathBuf::from("/v,a\\b"),
            read_only: true,
            allow_other: false,
            exec: false,
        };
        let text = fusermount_options(&options).into_string().expect("UTF-8");
        assert!(
            text.starts_with("fsname=/v\\,a\\\\b,subtype=secretfs,"),
            "{text}"
        );
        assert!(
            text.contains(",noexec,ro") && !text.contains("allow_other"),
            "{text}"
        );
    }
}
