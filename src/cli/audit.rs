//! `secretfs audit`.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::control::{Answer, DaemonClient, ask_daemon};
use crate::error::{Class, Error};
use crate::vault;

use super::flags::{Flags, ForOpen};
use super::{meant, output};

/// Show the key-management history of a vault
///
/// Prints one line for each event: when the vault was created, when keys were replaced and which
/// KMS keys wrap them, when an older state was accepted. The history is a chain of hashes whose end
/// is under the MAC of the master key. It is verified first; the command exits with code 6 if an
/// event was changed, removed, reordered or cut off. A daemon that has the vault mounted for
/// writing does this, if the user may ask it; otherwise the command needs the vault's KMS key.
#[derive(Debug, clap::Args)]
pub(super) struct Audit {
    /// The vault's directory
    vault: PathBuf,

    /// Print JSON, an object for each event
    #[arg(long)]
    json: bool,

    /// Print only whether the history is complete
    #[arg(long)]
    verify: bool,

    #[command(flatten)]
    flags: Flags<ForOpen>,
}

impl Audit {
    pub(super) fn run(self, config: Option<&Path>) -> Result<(), Error> {
        let (settings, _) = self.flags.load(config)?;
        meant::must_be_a_vault(&self.vault)?;
        // The history has a chain of its own, and people need it most when the vault is damaged.
        let options = vault::OpenOptions {
            salvage: true,
            ..vault::OpenOptions::to_look(&settings)
        };
        let history = match ask_daemon(&self.vault, DaemonClient::audit) {
            Ok(Some(Answer::Audit(events))) => events,
            // A daemon that has found tampering shows no history.
            asked => match read(&self.vault, &options) {
                Err(error) => return Err(asked.err().unwrap_or(error)),
                read => read?,
            },
        };
        if self.verify {
            return output::print(&format!(
                "{} events, none missing or changed\n",
                history.len()
            ));
        }
        history
            .iter()
            .try_for_each(|line| output::show_line(line, self.json))
    }
}

/// Reads the stored history.
fn read(vault: &Path, options: &vault::OpenOptions) -> Result<Vec<Value>, Error> {
    let history = vault::Vault::open(vault, options)?.history()?;
    let events = history.iter().map(serde_json::to_value);
    events
        .map(|event| event.map(vault::with_times))
        .collect::<Result<_, _>>()
        .map_err(|e| Error::new(Class::Internal, format!("cannot show the history: {e}")))
}
