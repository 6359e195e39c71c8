//! The program as mount(8) calls it: `mount.secretfs SPEC DIR [-sfnvrw] [-o OPTIONS] [-t TYPE]`,
//! with mount(8)'s exit codes. For the type `fuse.secretfs`, which is the type of existing mounts,
//! mount(8) calls it `mount.fuse.secretfs`; `mount -o remount` comes here under that name.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

use crate::config::{Settings, parse_options};
use crate::daemon::{self, Request};
use crate::error::{Class, Error};

use super::flags::{ForMount, Scopes as _};
use super::output;

const PROGRAM: &str = "mount.secretfs";
const SYNOPSIS: &str = "mount.secretfs VAULT DIRECTORY [-fnrsvw] [-o OPTIONS] [-t TYPE]";

/// The parsed call of mount(8).
#[derive(Debug, Default, PartialEq, Eq)]
struct Invocation {
    positional: Vec<OsString>,
    options: Vec<OsString>,
    /// Check, but do not mount.
    fake: bool,
    /// Ignore unknown options.
    sloppy: bool,
    verbose: bool,
    help: bool,
}

/// Runs as mount(8)'s helper. `args` does not include the program's name.
pub(super) fn main(args: Vec<OsString>) -> ExitCode {
    match daemon::caught(|| run(args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::complain(PROGRAM, &error);
            ExitCode::from(exit_code(error.class))
        }
    }
}

/// EXIT STATUS in mount(8).
fn exit_code(class: Class) -> u8 {
    match class {
        Class::Usage | Class::NotPermitted => 1,
        Class::System => 2,
        Class::Internal => 4,
        Class::Interrupted => 8,
        Class::Failed
        | Class::NotAVault
        | Class::KeyDenied
        | Class::KmsUnreachable
        | Class::Integrity
        | Class::Busy
        | Class::Exists => 32,
    }
}

fn run(args: Vec<OsString>) -> Result<(), Error> {
    let invocation = parse(args)?;
    if invocation.help {
        return output::print(&format!("usage: {SYNOPSIS}\nSee mount.secretfs(8).\n"));
    }
    let [vault, mountpoint] = <[OsString; 2]>::try_from(invocation.positional)
        .map_err(|_| usage("a vault and a directory are needed"))?;
    let options = parse_options(&invocation.options, invocation.sloppy)?;
    if !invocation.sloppy {
        options.refuse_foreign(ForMount::SCOPES)?;
    }
    let settings = Settings::load(options.config.as_deref(), &options.settings)?;
    let request = Request {
        vault: vault.into(),
        mountpoint,
        settings,
        foreground: false,
        not_granted: options.not_granted,
    };
    if invocation.fake {
        return daemon::plan(&request).map(drop);
    }
    // Like mount(8) itself, print nothing unless asked to.
    let verbose = invocation.verbose;
    daemon::mount(&request, &|line| {
        if verbose {
            drop(output::print(&format!("{line}\n")));
        }
    })
}

fn parse(args: Vec<OsString>) -> Result<Invocation, Error> {
    let mut invocation = Invocation::default();
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let Some(letters) = arg.as_bytes().strip_prefix(b"-").filter(|l| !l.is_empty()) else {
            invocation.positional.push(arg);
            continue;
        };
        if matches!(letters, b"-help" | b"h") {
            invocation.help = true;
            continue;
        }
        for (at, letter) in letters.iter().enumerate() {
            match letter {
                b's' => invocation.sloppy = true,
                b'f' => invocation.fake = true,
                b'v' => invocation.verbose = true,
                b'r' => invocation.options.push("ro".into()),
                b'w' => invocation.options.push("rw".into()),
                // secretfs never writes an mtab.
                b'n' => {}
                b'o' | b't' => {
                    let rest = std::ffi::OsStr::from_bytes(&letters[at + 1..]).to_owned();
                    let value = if rest.is_empty() {
                        args.next()
                    } else {
                        Some(rest)
                    };
                    let value = value.ok_or_else(|| usage("-o and -t need a value"))?;
                    if *letter == b'o' {
                        invocation.options.push(value);
                    }
                    break;
                }
                _ => return Err(usage(&format!("unknown flag `{}`", arg.display()))),
            }
        }
    }
    Ok(invocation)
}

fn usage(what: &str) -> Error {
    Error::new(Class::Usage, format!("{what}; usage: {SYNOPSIS}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(args: &[&str]) -> Result<Invocation, Error> {
        parse(args.iter().map(OsString::from).collect())
    }

    #[test]
    fn arguments_come_as_mount_passes_them() {
        let invocation =
            parsed(&["/v", "/m", "-sn", "-v", "-o", "rw,ttl=5", "-t", "secretfs"]).expect("good");
        assert_eq!(invocation.positional, ["/v", "/m"]);
        assert_eq!(invocation.options, ["rw,ttl=5"]);
        assert!(invocation.sloppy && invocation.verbose && !invocation.fake);
    }

    #[test]
    fn mistakes_are_usage_errors() {
        for args in [&["/v", "/m", "-x"][..], &["/v", "/m", "-o"]] {
            assert_eq!(parsed(args).expect_err("wrong").class, Class::Usage);
        }
    }

    #[test]
    fn exit_codes_are_those_of_mount() {
        assert_eq!(exit_code(Class::Usage), 1);
        assert_eq!(exit_code(Class::KeyDenied), 32);
        assert_eq!(exit_code(Class::Interrupted), 8);
    }
}
