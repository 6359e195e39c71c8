//! The plan of a mount, checked before anything starts. The check makes paths absolute, refuses a
//! mount that would make the daemon wait for itself, and changes nothing.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::Settings;
use crate::error::{Class, Error};
use crate::kms::local::CREDENTIALS_VARIABLE;
use crate::os::mountinfo::is_under;
use crate::vault;

use super::mount::passed_descriptor;
use super::point::Point;
use super::quote::quoted;

/// The user's request.
#[derive(Clone, Debug)]
pub struct Request {
    /// The vault.
    pub vault: PathBuf,
    /// The mount point, or `/dev/fd/N`.
    pub mountpoint: OsString,
    /// Everything else.
    pub settings: Settings,
    /// Whether to stay in the foreground.
    pub foreground: bool,
    /// Requested options that are never granted, for the log.
    pub not_granted: Vec<String>,
}

/// The place where the file system is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// On this directory.
    Point(PathBuf),
    /// Over this descriptor; its mounter has mounted it and will unmount it.
    Passed(i32),
}

impl Target {
    /// The mount point, if it is known.
    pub fn point(&self) -> Option<&Path> {
        match self {
            Self::Point(point) => Some(point),
            Self::Passed(_) => None,
        }
    }
}

/// A request that has passed the check.
#[derive(Debug)]
pub struct Plan {
    /// The vault, absolute.
    pub(crate) vault: PathBuf,
    /// The place where it is served.
    pub(crate) target: Target,
    /// The open mount point; `None` for a passed descriptor.
    pub(crate) point: Option<Point>,
    /// Whether a dead mount of this vault is on it, which must be removed first.
    pub(crate) is_stale: bool,
    /// The mount point as the user typed it, for messages.
    pub(crate) shown_target: String,
    pub(crate) settings: Settings,
    pub(crate) foreground: bool,
    pub(crate) not_granted: Vec<String>,
}

impl Plan {
    /// The time that the start may take: the daemon may ask every KMS once, and replay a large
    /// journal.
    pub(crate) fn patience(&self) -> Duration {
        Duration::from_secs(60) + self.settings.kms.total_timeout * 4
    }
}

/// Checks a request.
///
/// # Errors
/// When the mount cannot work, with the reason.
pub fn check(request: &Request) -> Result<Plan, Error> {
    if request.settings.accept_rollback && request.settings.read_only {
        return Err(Error::new(
            Class::Usage,
            "accept-rollback is recorded in the vault's history, so it needs a mount for writing; mount once without `ro`",
        ));
    }
    let shown_target = Path::new(&request.mountpoint).display().to_string();
    let vault = vault_directory(&request.vault)?;
    let replaces_stale = request.settings.replace_stale.unwrap_or(request.foreground);
    let (target, point, is_stale) = match passed_descriptor(&request.mountpoint)? {
        Some(fd) => (Target::Passed(fd), None, false),
        None => {
            let path = Path::new(&request.mountpoint);
            let (point, is_stale) = mount_point(path, &vault, replaces_stale)?;
            (
                Target::Point(point.path().to_owned()),
                Some(point),
                is_stale,
            )
        }
    };
    let plan = Plan {
        vault,
        target,
        point,
        is_stale,
        shown_target,
        settings: request.settings.clone(),
        foreground: request.foreground,
        not_granted: request.not_granted.clone(),
    };
    if let Target::Point(point) = &plan.target {
        refuse_loops(point, &plan)?;
    }
    Ok(plan)
}

fn vault_directory(path: &Path) -> Result<PathBuf, Error> {
    let shown = path.display();
    let fail = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Error::new(
            Class::NotAVault,
            format!("there is no vault {shown}; `secretfs init {shown}` makes one"),
        ),
        io::ErrorKind::PermissionDenied => Error::new(
            Class::NotPermitted,
            format!("this user may not reach the vault {shown}"),
        ),
        _ => Error::new(
            Class::Failed,
            format!("cannot reach the vault {shown}: {e}"),
        ),
    };
    let absolute = path.canonicalize().map_err(fail)?;
    if !absolute.metadata().map_err(fail)?.is_dir() {
        return Err(Error::new(
            Class::NotAVault,
            format!("{shown} is not a vault: it is no directory"),
        ));
    }
    Ok(absolute)
}

/// Opens the mount point; also returns whether a dead mount of this vault must be removed from it
/// first.
fn mount_point(path: &Path, vault: &Path, replaces_stale: bool) -> Result<(Point, bool), Error> {
    let shown = quoted(path);
    let fail = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound => Error::new(
            Class::Failed,
            format!("the mount point {shown} does not exist; create it first (`mkdir {shown}`)"),
        ),
        io::ErrorKind::PermissionDenied => Error::new(
            Class::NotPermitted,
            format!("this user may not reach the mount point {shown}"),
        ),
        io::ErrorKind::NotADirectory => not_a_directory(path),
        _ => Error::new(
            Class::Failed,
            format!("cannot use the mount point {shown}: {e}"),
        ),
    };
    let point = Point::open(path).map_err(fail)?;
    let Some(mount) = point.mounted().map_err(fail)? else {
        return Ok((point, false));
    };
    let source = quoted(&mount.source);
    let is_of_vault = mount.is_secretfs() && mount.source == vault;
    let message = if mount.is_secretfs() && point.is_dead() {
        match (is_of_vault, replaces_stale) {
            (true, true) => return Ok((point, true)),
            (true, false) => format!(
                "{shown} still has a mount of {source} whose daemon is gone; remove it with `umount {shown}`, then try again, or mount with `-o replace-stale`"
            ),
            (false, _) => format!(
                "{shown} still has a mount of another vault, {source}, whose daemon is gone; remove it with `umount {shown}`, then try again"
            ),
        }
    } else if is_of_vault {
        format!("the vault {source} is already mounted on {shown}")
    } else {
        format!(
            "{shown} is already a mount point ({source}, type {}); choose another, or unmount it first",
            quoted(&mount.fs_type)
        )
    };
    Err(Error::new(Class::Busy, message))
}

fn not_a_directory(path: &Path) -> Error {
    Error::new(
        Class::Failed,
        format!(
            "the mount point {} is not a directory; a vault is mounted on a directory",
            path.display()
        ),
    )
}

/// Refuses a mount over a file that the daemon needs while it serves, and a mount inside the vault
/// or the local KMS: the daemon would wait for itself.
fn refuse_loops(point: &Path, plan: &Plan) -> Result<(), Error> {
    let kms = plan.settings.kms.local_dir.clone();
    let directories = [
        ("the vault", Some(plan.vault.clone())),
        ("the local KMS", kms),
    ];
    for (what, directory) in directories.into_iter().filter_map(|(w, d)| Some((w, d?))) {
        let directory = vault::real_path(&directory);
        if is_under(point, &directory) {
            return Err(Error::new(
                Class::Failed,
                format!(
                    "the mount point {} lies inside of {what} ({}); choose a directory outside of it",
                    point.display(),
                    directory.display()
                ),
            ));
        }
        refuse_under(point, what, &directory)?;
    }
    if let Some(anchors) = &plan.settings.anchor_dir {
        let anchors = vault::real_path(anchors);
        refuse_under(point, "the anchors of this host", &anchors)?;
    }
    for file in &plan.settings.config_files {
        refuse_under(point, "the configuration file", &vault::real_path(file))?;
    }
    if let Some(file) = &plan.settings.log_file {
        refuse_under(point, "the log file", &vault::real_path(file))?;
        if is_under(&vault::real_path(file), &vault::real_path(&plan.vault)) {
            return Err(Error::new(
                Class::Failed,
                format!(
                    "the log file {} lies inside of the vault; choose another place",
                    file.display()
                ),
            ));
        }
    }
    if let Some(credentials) = std::env::var_os(CREDENTIALS_VARIABLE).filter(|d| !d.is_empty()) {
        let directory = vault::real_path(Path::new(&credentials));
        refuse_under(point, "the directory of the unit's credentials", &directory)?;
    }
    for file in credentials_files() {
        refuse_under(point, "the credentials file", &vault::real_path(&file))?;
    }
    Ok(())
}

fn refuse_under(point: &Path, what: &str, path: &Path) -> Result<(), Error> {
    if !is_under(path, point) {
        return Ok(());
    }
    Err(Error::new(
        Class::Failed,
        format!(
            "{what} ({}) lies under the mount point {}, where the mount would hide it; choose another mount point",
            path.display(),
            point.display()
        ),
    ))
}

/// Files from which the AWS SDK reads credentials, now or when it renews them.
fn credentials_files() -> Vec<PathBuf> {
    let variables = [
        "AWS_SHARED_CREDENTIALS_FILE",
        "AWS_CONFIG_FILE",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
        "AWS_CA_BUNDLE",
        "SSL_CERT_FILE",
    ];
    let named = variables
        .into_iter()
        .filter_map(std::env::var_os)
        .map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".aws"));
    named.chain(home).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(vault: &Path, point: &Path) -> Request {
        Request {
            vault: vault.to_owned(),
            mountpoint: point.as_os_str().to_owned(),
            settings: Settings::default(),
            foreground: true,
            not_granted: Vec::new(),
        }
    }

    #[test]
    fn a_mount_that_would_wait_for_itself_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let (vault, inside, point) = (
            dir.path().join("v"),
            dir.path().join("v/m"),
            dir.path().join("m"),
        );
        for path in [&vault, &inside, &point] {
            std::fs::create_dir(path).expect("made");
        }
        assert!(check(&request(&vault, &point)).is_ok());
        let error = check(&request(&vault, &inside)).expect_err("inside");
        assert!(error.message.contains("inside of the vault"), "{error}");
        let error = check(&request(&vault, dir.path())).expect_err("above");
        assert!(
            error.message.contains("lies under the mount point"),
            "{error}"
        );
        let mut logs = request(&vault, &point);
        logs.settings.log_file = Some(point.join("log/not/there/yet"));
        assert!(
            check(&logs)
                .expect_err("log")
                .message
                .starts_with("the log file")
        );
        let mut kms = request(&vault, &point);
        kms.settings.kms.local_dir = Some(dir.path().join("m/kms"));
        assert!(
            check(&kms)
                .expect_err("kms")
                .message
                .starts_with("the local KMS")
        );
    }

    #[test]
    fn a_link_to_the_vault_does_not_hide_a_loop() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir_all(dir.path().join("v/m")).expect("made");
        std::os::unix::fs::symlink(dir.path().join("v"), dir.path().join("link")).expect("linked");
        let error =
            check(&request(&dir.path().join("link"), &dir.path().join("v/m"))).expect_err("loop");
        assert_eq!(error.class, Class::Failed);
    }
}
