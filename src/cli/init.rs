//! `secretfs init`.

use std::path::{Path, PathBuf};

use crate::error::{Class, Error};
use crate::kms::KeyUri;
use crate::vault;

use super::flags::{Flags, ForInit};
use super::output;

/// Create a new vault
///
/// Creates the directory VAULT and a vault in it, with a fresh master key that each of the KMS keys
/// wraps. Without --kms-key that is local-kms://default, which is created if it is missing. The
/// command creates a complete vault or nothing, and never touches an existing one.
///
/// The keys of the local KMS are as precious as the vault: without them it cannot be opened. Back
/// them up, apart from it. If a systemd unit has the credential secretfs.NAME.key, that is the key
/// local-kms://NAME, and no key is created.
#[derive(Debug, clap::Args)]
pub(super) struct Init {
    /// The vault's directory; it must not exist, or be empty
    vault: PathBuf,

    /// Do nothing if a vault exists already, whatever its KMS keys
    #[arg(long)]
    if_missing: bool,

    #[command(flatten)]
    flags: Flags<ForInit>,
}

impl Init {
    pub(super) fn run(self, config: Option<&Path>) -> Result<(), Error> {
        let (settings, _) = self.flags.load(config)?;
        let kms_keys = if settings.kms_keys.is_empty() {
            vec![KeyUri::default_local()]
        } else {
            settings.kms_keys
        };
        if let Some(key) = (1..kms_keys.len())
            .find(|at| kms_keys[..*at].contains(&kms_keys[*at]))
            .map(|at| &kms_keys[at])
        {
            return Err(Error::new(
                Class::Usage,
                format!("{key} is given twice; give each KMS key once"),
            ));
        }
        let options = vault::InitOptions {
            kms_keys,
            uid: settings
                .uid
                .unwrap_or_else(|| nix::unistd::geteuid().as_raw()),
            gid: settings
                .gid
                .unwrap_or_else(|| nix::unistd::getegid().as_raw()),
            kms: settings.kms,
            anchor_dir: settings.anchor_dir,
        };
        let created = match vault::init(&self.vault, &options).map_err(Error::from) {
            Err(error) if error.class == Class::Exists && self.if_missing => {
                return self.tell_of_it();
            }
            created => created?,
        };
        let mut text = format!(
            "{} is a new vault, id {}\n",
            self.vault.display(),
            created.vault_id
        );
        for key in &created.kms_keys {
            text.push_str(&format!("its master key is wrapped by {key}\n"));
        }
        if let Some(key) = &created.local_keys_created {
            text.push_str(&format!(
                "a new local key was made in {}: whoever has it and the vault can read all secrets, and without it they are lost; back it up, apart from the vault\n",
                key.display()
            ));
        }
        for warning in &created.warnings {
            text.push_str(&format!("warning: {warning}\n"));
        }
        output::print(&text)
    }

    /// Reports the existing vault. A file with the right name is not enough: it must be a vault.
    fn tell_of_it(&self) -> Result<(), Error> {
        let id = vault::id_at(&self.vault)?;
        output::print(&format!(
            "{} is a vault already, id {id}; nothing was made\n",
            self.vault.display()
        ))
    }
}
