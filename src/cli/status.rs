//! `secretfs status`.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::control::{Answer, DaemonClient, Holder, ask_daemon};
use crate::daemon::MountInfo;
use crate::error::{Class, Error};
use crate::os::asking::answer_within;
use crate::vault;

use super::flags::{Flags, ForOpen};
use super::{meant, output};

/// Show the state of a vault or a mount
///
/// For a mount, shows .secretfs/status: everything for users who may command the mount, and its
/// state, integrity and version for others. For a vault that is mounted for writing anywhere on
/// this host, asks its daemon for the same, if the user may. Otherwise opens the vault read-only,
/// which needs its KMS key, and shows its state.
#[derive(Debug, clap::Args)]
pub(super) struct Status {
    /// The vault's directory, or its mount point
    path: PathBuf,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    flags: Flags<ForOpen>,
}

impl Status {
    pub(super) fn run(self, config: Option<&Path>) -> Result<(), Error> {
        let (settings, _) = self.flags.load(config)?;
        let value = match meant::mounted_at(&self.path) {
            Some(mount) => of_mount(&mount)?,
            None => of_vault(&self.path, &vault::OpenOptions::to_look(&settings))?,
        };
        output::show(&value, self.json)
    }
}

fn of_vault(path: &Path, options: &vault::OpenOptions) -> Result<Value, Error> {
    let mut value = match ask_daemon(path, DaemonClient::status)? {
        Some(Answer::Status(status)) => {
            meant::must_be_the_one(path, &status, options)?;
            status
        }
        _ => {
            let vault = vault::Vault::open(path, options)?;
            serde_json::to_value(vault.summary())
                .map(vault::with_times)
                .map_err(|e| Error::new(Class::Internal, format!("cannot show the status: {e}")))?
        }
    };
    if let Value::Object(members) = &mut value {
        // This user may lack permission to examine the lock.
        let holder = crate::store::holder(path).ok().flatten();
        let holder = serde_json::to_value(holder).unwrap_or(Value::Null);
        let holder = vault::with_times(holder);
        members.insert("held_for_writing_by".to_owned(), holder);
    }
    Ok(value)
}

/// Limit on the wait for a daemon's answer.
const PATIENCE: Duration = Duration::from_secs(10);

fn of_mount(mount: &MountInfo) -> Result<Value, Error> {
    let shown = mount.point.display();
    let file = mount.point.join(".secretfs/status");
    let asked = answer_within(PATIENCE, move || std::fs::read_to_string(file));
    let asked =
        asked.map_err(|e| Error::new(Class::System, format!("cannot start a thread: {e}")))?;
    let text = match asked {
        Some(Ok(text)) => text,
        Some(Err(e)) if e.raw_os_error() == Some(nix::libc::ENOTCONN) => {
            return Err(Error::new(
                Class::Failed,
                format!(
                    "the daemon of the mount on {shown} is gone; remove it with `umount {shown}`"
                ),
            ));
        }
        Some(Err(e)) if e.kind() == ErrorKind::NotFound => return of_part(mount),
        Some(Err(e)) => {
            return Err(Error::new(
                Class::Failed,
                format!("cannot read {shown}/.secretfs/status: {e}"),
            ));
        }
        None => {
            return Err(Error::new(
                Class::Failed,
                format!(
                    "the daemon of the mount on {shown} does not answer within {} s",
                    PATIENCE.as_secs()
                ),
            ));
        }
    };
    serde_json::from_str(&text).map_err(|e| {
        Error::new(
            Class::Failed,
            format!("{shown}/.secretfs/status does not hold JSON: {e}"),
        )
    })
}

/// A bind of a directory of the mount is without `.secretfs`: its daemon is asked at its socket.
fn of_part(mount: &MountInfo) -> Result<Value, Error> {
    let holder = Holder::of_mount(mount.point.clone(), mount.device, &mount.source, mount.user);
    if let Holder::Vault(..) = holder {
        return holder.status();
    }
    let (shown, vault) = (mount.point.display(), mount.source.display());
    Err(Error::new(
        Class::Failed,
        format!(
            "{shown} shows a directory of a mount of {vault} and not its top, where .secretfs/status is; \
             name that mount, or the vault"
        ),
    ))
}
