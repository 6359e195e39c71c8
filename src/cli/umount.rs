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
/// Unmounts, and returns once the daemon has written everything and let go of the vault. Another mount
/// of the same file system (a bind, another mount namespace) and files that are open through it keep the
/// daemon alive: who that is is told within a second, and after `drain-timeout` this command fails with
/// code 7, though the mount is gone. A daemon that only has something left to write may take 30 s at least. Which
/// daemon it is, the mount and the daemon say, and not the path of the vault, where another may be by now; where
/// they do not, it is said that this cannot be told. Plain umount(8) and `fusermount3 -u` unmount as well, without waiting
/// for the daemon. Tells how far the vault has come: `mount -o min-commit=N` refuses an older state of it,
/// also on a host that remembers nothing.
#[derive(Debug, clap::Args)]
pub(super) struct Umount {
    /// Where it is mounted
    mountpoint: PathBuf,

    /// Do not wait for the daemon; tell whether the vault is still held
    #[arg(long)]
    no_wait: bool,

    /// How long to wait for the daemon. Default 10s, or what is set for mounts
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
            // A broken file must not keep anybody from unmounting.
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

/// Settings from the environment and from flags only.
fn without_files(given: &[Raw]) -> Result<Settings, Error> {
    let fail = |e: Errno| Error::new(Class::System, format!("cannot make an empty file: {e}"));
    let empty = memfd_create("empty", MFdFlags::MFD_CLOEXEC).map_err(fail)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", empty.as_raw_fd()));
    Ok(Settings::load(Some(&path), given)?)
}
