//! The command line: arguments in, a library call, output. Every failure is one line on stderr and
//! a documented exit code. Must never panic, and never print a secret.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};

use crate::daemon;
use crate::error::{Class, Error};

mod audit;
mod backup;
mod check;
mod completions;
mod copying;
mod flags;
mod init;
mod man;
mod meant;
mod mount;
mod mount_helper;
mod output;
mod progress;
mod reencrypt;
mod replacing;
mod restore;
mod rewrap;
mod rotate;
mod rotation;
mod status;
mod umount;

/// A mounted directory in which every file is a secret
///
/// secretfs mounts a vault as a directory. Each file in it is encrypted under keys of its own,
/// which are wrapped by a master key, which is wrapped by a key management service: AWS KMS, or an
/// embedded one.
#[derive(Debug, Parser)]
#[command(name = "secretfs", version, disable_help_subcommand = true)]
struct Cli {
    /// Read this configuration file instead of the usual ones
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Init(init::Init),
    Mount(mount::Mount),
    Umount(umount::Umount),
    Status(status::Status),
    Check(check::Check),
    Rotate(rotate::Rotate),
    Rewrap(rewrap::Rewrap),
    Reencrypt(reencrypt::Reencrypt),
    Audit(audit::Audit),
    Backup(backup::Backup),
    Restore(restore::Restore),
    Completions(completions::Completions),
    Man(man::Man),
}

/// Runs the program.
pub fn main() -> ExitCode {
    if fail::has_failpoints() {
        // The fail points of $FAILPOINTS stay for the life of the process.
        std::mem::forget(fail::FailScenario::setup());
    }
    daemon::install_hook();
    daemon::ignore_file_size_signal();
    let mut args: Vec<OsString> = std::env::args_os().collect();
    let called = args
        .first()
        .map(Path::new)
        .and_then(Path::file_name)
        .map(OsStrExt::as_bytes);
    if called == Some(b"mount.secretfs") || called == Some(b"mount.fuse.secretfs") {
        args.remove(0);
        return mount_helper::main(args);
    }
    if is_by_mount_fuse(&args) {
        args.remove(0);
        return mount_helper::main(args);
    }
    match daemon::caught(|| run(args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::complain("secretfs", &error);
            ExitCode::from(exit_code(error.class))
        }
    }
}

/// Whether libfuse's helper runs this program: `secretfs VAULT DIRECTORY -o OPTIONS`. mount(8) uses
/// that helper for the type `fuse.secretfs` if there is no link `mount.fuse.secretfs`. No command
/// begins with a slash, so two paths show it.
fn is_by_mount_fuse(args: &[OsString]) -> bool {
    let is_path = |at: usize| args.get(at).is_some_and(|a| a.as_bytes().starts_with(b"/"));
    is_path(1) && is_path(2)
}

fn run(args: Vec<OsString>) -> Result<(), Error> {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(e) if matches!(e.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            return output::print(&e.to_string());
        }
        Err(e) => return Err(usage(&e)),
    };
    let config = cli.config.as_deref();
    match cli.command {
        Command::Init(command) => command.run(config),
        Command::Mount(command) => command.run(config),
        Command::Umount(command) => command.run(config),
        Command::Status(command) => command.run(config),
        Command::Check(command) => command.run(config),
        Command::Rotate(command) => command.run(config),
        Command::Rewrap(command) => command.run(config),
        Command::Reencrypt(command) => command.run(config),
        Command::Audit(command) => command.run(config),
        Command::Backup(command) => command.run(config),
        Command::Restore(command) => command.run(config),
        Command::Completions(one) => one.run(&mut command()),
        Command::Man(one) => one.run(command()),
    }
}

/// The exit codes of the commands, which are part of the interface: see EXIT STATUS in secretfs(1).
fn exit_code(class: Class) -> u8 {
    match class {
        Class::Failed
        | Class::NotPermitted
        | Class::System
        | Class::Internal
        | Class::Interrupted => 1,
        Class::Usage => 2,
        Class::NotAVault => 3,
        Class::KeyDenied => 4,
        Class::KmsUnreachable => 5,
        Class::Integrity => 6,
        Class::Busy => 7,
        Class::Exists => 8,
    }
}

/// Limit on the characters of clap's message that are shown: clap repeats the argument, which may
/// be a file pasted by mistake.
const LONGEST: usize = 1000;

/// Turns clap's paragraph into one line.
fn usage(error: &clap::Error) -> Error {
    let text = error.to_string();
    let said: Vec<&str> = text
        .lines()
        .take_while(|line| !line.starts_with("Usage:"))
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with("For more information"))
        .collect();
    let said = said.join(" ");
    let said = match error.kind() {
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
            "a command is missing"
        }
        _ => said.strip_prefix("error: ").unwrap_or(&said),
    };
    let mut shown: String = said.chars().take(LONGEST).collect();
    if shown.len() < said.len() {
        shown.push_str("...");
    }
    Error::new(Class::Usage, format!("{shown}; see `secretfs --help`"))
}

/// The whole command line, for man pages and completions.
fn command() -> clap::Command {
    Cli::command()
}

/// All man pages, with their file names.
///
/// # Errors
/// None in practice, since the pages are written to memory.
pub fn man_pages() -> std::io::Result<Vec<(String, Vec<u8>)>> {
    man::pages(command())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        command().debug_assert();
    }

    #[test]
    fn a_usage_error_is_one_line() {
        for args in [
            &["secretfs"][..],
            &["secretfs", "mount"],
            &["secretfs", "frobnicate"],
            &["secretfs", "init", "--uid"],
        ] {
            let error = Cli::try_parse_from(args).expect_err("wrong");
            let error = usage(&error);
            assert_eq!(error.class, Class::Usage);
            assert!(
                !error.message.contains('\n') && !error.message.contains("Usage"),
                "{error}"
            );
        }
    }
}
