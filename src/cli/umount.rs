//! `secretfs umount`.

use std::ffi::OsString;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::config::{Origin, Raw, SETTINGS, Settings};
use crate::daemon::{self, Unmounted};
use crate::error::{Class, Error};

use super::output;

/// Unmount a vault
///
/// Unmounts, and returns once the daemon has written everything and released the vault. Another
/// mount of the same file system (a bind mount, another mount namespace) and files open through it
/// keep the daemon alive: the command names them within a second, and after `drain-timeout` fails
/// with code 7, although the mount is gone. A daemon that only has data left to write gets at least
/// 30 s. The mount and the daemon identify that daemon, not the path of the vault, where another
/// vault may be by now; if they cannot, the command says so. Plain umount(8) and `fusermount3 -u`
/// also unmount, without waiting for the daemon. The command prints the vault's last commit: `mount
/// -o min-commit=N` refuses an older state, even on a host that remembers nothing.
#[derive(Debug, clap::Args)]
pub(super) struct Umount {
    /// The mount point
    mountpoint: PathBuf,

    /// Do not wait for the daemon; print whether the vault is still held
    #[arg(long)]
    no_wait: bool,

    /// How long to wait for the daemon. Default 10s, or the setting for mounts
    #[arg(long, value_name = "TIME", conflicts_with = "no_wait")]
    drain_timeout: Option<OsString>,
}

impl Umount {
    pub(super) fn run(self, config: Option<&Path>) -> Result<(), Error> {
        let given: Vec<Raw> = SETTINGS
            .iter()
            .filter(|setting| setting.name == "drain-timeout")
            .zip(self.drain_timeout)
            .map(|(setting, value)| Raw {
                setting,
                value: Some(value),
                origin: Origin::Flag,
            })
            .collect();
        let settings = Settings::load(config, &given).or_else(|e| {
            // A broken configuration file must not prevent an unmount.
            let settings = without_files(&given)?;
            let warning = format!("{e}; unmounting without configuration files");
            output::complain("secretfs", &Error::new(Class::Usage, warning));
            Ok::<_, Error>(settings)
        })?;
        let wait = (!self.no_wait).then_some(settings.drain_timeout);
        let tell = |line: &str| output::complain("secretfs", &Error::new(Class::Busy, line));
        let point = self.mountpoint.display();
        match daemon::unmount(&self.mountpoint, wait, &tell)? {
            Unmounted::Free(Some(commit)) => output::print(&format!(
                "{point} is unmounted, its vault at commit {commit}\n"
            )),
            Unmounted::Free(None) => output::print(&format!("{point} is unmounted\n")),
            Unmounted::Unknown(why) => output::print(&format!(
                "{point} is unmounted; whether its vault is still held cannot be told: {why}\n"
            )),
            Unmounted::Held(who) => {
                let who = Error::new(Class::Busy, who);
                output::print(&format!(
                    "{point} is unmounted; its vault is still held: {who}\n"
                ))
            }
        }
    }
}

/// Settings from the environment and from flags, without files.
fn without_files(given: &[Raw]) -> Result<Settings, Error> {
    let fail = |e: Errno| Error::new(Class::System, format!("cannot make an empty file: {e}"));
    let empty = memfd_create("empty", MFdFlags::MFD_CLOEXEC).map_err(fail)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", empty.as_raw_fd()));
    Ok(Settings::load(Some(&path), given)?)
}
