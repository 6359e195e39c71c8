//! `secretfs completions`.

use clap_complete::Shell;

use crate::error::Error;

use super::output;

/// Print a completion script for a shell
///
/// For bash: secretfs completions bash > ~/.local/share/bash-completion/completions/secretfs
#[derive(Debug, clap::Args)]
pub(super) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    /// `command` is the whole command line.
    pub(super) fn run(self, command: &mut clap::Command) -> Result<(), Error> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, command, "secretfs", &mut script);
        output::print_bytes(&script)
    }
}
