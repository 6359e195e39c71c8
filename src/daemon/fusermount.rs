//! fusermount3, the setuid program through which ordinary users mount and unmount.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::os::sys::{self, MountId};

use crate::error::{Class, Error};

/// Unmounts the mount `id` at `path` through fusermount3; `false` when another mount is there.
///
/// # Errors
/// When fusermount3 refuses; the class is `Busy` when a file on the mount is open.
pub(crate) fn unmount(path: &Path, id: MountId, lazy: bool) -> Result<bool, Error> {
    // fusermount3 takes only a path, which may lead to another mount of the same user a moment
    // later.
    if !sys::mount_id(path).is_ok_and(|found| found == id) {
        return Ok(false);
    }
    let mut command = command();
    command.arg("-u");
    if lazy {
        command.arg("-z");
    }
    let output = command
        .arg("--")
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| missing(&e))?;
    if output.status.success() {
        Ok(true)
    } else {
        Err(refusal(&output.stderr))
    }
}

/// A command that runs fusermount3, with messages in English.
pub(super) fn command() -> Command {
    let mut command = Command::new("fusermount3");
    // `refusal` reads its messages.
    command.env("LC_ALL", "C");
    command
}

/// The error for a fusermount3 that does not run, with the remedy.
pub(super) fn missing(error: &io::Error) -> Error {
    Error::new(
        Class::System,
        format!(
            "cannot run fusermount3 ({error}): install it (`apt install fuse3`); ordinary users mount through it"
        ),
    )
}

/// The error for what fusermount3 printed, with the remedy.
pub(super) fn refusal(stderr: &[u8]) -> Error {
    let said = String::from_utf8_lossy(stderr);
    let said = said.trim().trim_start_matches("fusermount3: ");
    let class = if said.contains("busy") {
        Class::Busy
    } else if said.contains("ermi")
        || said.contains("only allowed")
        || said.contains("not owned")
        || said.contains("no write access")
    {
        Class::NotPermitted
    } else {
        Class::Failed
    };
    let next = if said.contains("user_allow_other") {
        "; write that line into /etc/fuse.conf, or leave allow_other out"
    } else if said.contains("/dev/fuse") {
        "; /dev/fuse must exist with mode 0666"
    } else if said.contains("has to be setuid") || said.contains("Operation not permitted") {
        "; fusermount3 must be setuid root"
    } else if said.contains("not found in /etc/mtab") {
        "; only root, and the user who mounted it, may unmount it"
    } else {
        ""
    };
    let said = if said.is_empty() {
        "it gave no reason"
    } else {
        said
    };
    Error::new(class, format!("fusermount3 refused: {said}{next}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_may_not_unmount_is_told_who_may() {
        let error = refusal(b"fusermount3: entry for /m not found in /etc/mtab\n");
        let message = "fusermount3 refused: entry for /m not found in /etc/mtab; \
                       only root, and the user who mounted it, may unmount it";
        assert_eq!(error.message, message);
    }
}
