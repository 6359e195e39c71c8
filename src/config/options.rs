//! The argument of `-o`, as users, fstab and mount(8) write it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use super::table;
use super::{ConfigError, Kind, Origin, Raw, SETTINGS, Scope};

/// Options that fstab and mount(8) pass along and a file system may ignore: they are for mount(8)
/// itself or systemd, or mean nothing to FUSE.
const PASSED_ALONG: &[&str] = &[
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "nousers",
    "owner",
    "noowner",
    "group",
    "nogroup",
    "_netdev",
    "nofail",
    "defaults",
    "nodev",
    "nosuid",
    "sync",
    "async",
    "dirsync",
    "atime",
    "noatime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "diratime",
    "nodiratime",
    "lazytime",
    "nolazytime",
    "mand",
    "nomand",
    "silent",
    "loud",
    "iversion",
    "noiversion",
    "default_permissions",
];

/// Options that a mount of secrets never grants.
const NEVER: &[&str] = &["dev", "suid"];

/// Parsed `-o` lists.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The settings, in the order given.
    pub settings: Vec<Raw>,
    /// A configuration file, for callers that have no `--config` (`-o config=FILE`).
    pub config: Option<PathBuf>,
    /// Options that are not granted; the log names them.
    pub not_granted: Vec<String>,
    /// Unknown options, if they are tolerated.
    pub unknown: Vec<String>,
}

/// Parses lists of options. `sloppy` tolerates unknown ones, as `mount -s` does.
///
/// # Errors
/// An unknown option, a value for a switch, an unclosed quote.
pub fn parse_options<L: AsRef<OsStr>>(lists: &[L], sloppy: bool) -> Result<Options, ConfigError> {
    let mut options = Options::default();
    let lists = lists.iter().map(|list| split(list.as_ref().as_bytes()));
    let given: Vec<Vec<u8>> = lists.collect::<Result<Vec<_>, _>>()?.concat();
    // Check this first: mount(8) adds options of the kernel that are unknown here.
    if given.iter().any(|option| option == b"remount") {
        return Err(usage(REMOUNT.to_owned()));
    }
    for option in given {
        options.add(&option, sloppy)?;
    }
    Ok(options)
}

/// A remount would have to reach the daemon, and does not.
const REMOUNT: &str = "`remount` cannot change a mount of secretfs, which stays as it was; unmount it, and mount it again with the new options (for example `-o ro`); `mount -o remount,bind,ro` makes this mount point alone read-only";

impl Options {
    /// Refuses settings of other commands, because nothing is ever silently ignored.
    ///
    /// # Errors
    /// When there is such a setting.
    pub fn refuse_foreign(&self, scopes: &[Scope]) -> Result<(), ConfigError> {
        let mut settings = self.settings.iter().map(|raw| raw.setting);
        let Some(setting) = settings.find(|setting| !scopes.contains(&setting.scope)) else {
            return Ok(());
        };
        let name = setting.name;
        Err(usage(match setting.scope {
            Scope::Init => format!(
                "the option `{name}` does not apply to this command: the vault stores the owner of its top directory, which `secretfs init --{name}` sets and chown(1) on the mount point changes; leave the option out"
            ),
            _ => format!("the option `{name}` does not apply to this command; leave it out"),
        }))
    }

    fn add(&mut self, option: &[u8], sloppy: bool) -> Result<(), ConfigError> {
        let (name, value) = match option.iter().position(|b| *b == b'=') {
            Some(at) => (
                &option[..at],
                Some(OsString::from_vec(option[at + 1..].to_vec())),
            ),
            None => (option, None),
        };
        let name = String::from_utf8_lossy(name).into_owned();
        let raw = |setting, value| Raw {
            setting,
            value,
            origin: Origin::Option,
        };
        if let Some(setting) = table::find(&name) {
            if value.is_some() && setting.kind == Kind::Switch {
                return Err(usage(format!("the option `{name}` takes no value")));
            }
            self.settings.push(raw(setting, value));
            return Ok(());
        }
        // Of opposites the last wins, so they set the same setting.
        let opposite = match name.as_str() {
            "rw" => Some("ro"),
            "noexec" => Some("exec"),
            "noreplace-stale" => Some("replace-stale"),
            _ => None,
        };
        if let Some(setting) = opposite.and_then(table::find) {
            self.settings.push(raw(setting, Some("false".into())));
        } else if name == "config" {
            let path = value.filter(|v| !v.is_empty());
            self.config = Some(
                path.ok_or_else(|| usage("the option `config` needs a file".into()))?
                    .into(),
            );
        } else if NEVER.contains(&name.as_str()) {
            self.not_granted.push(name);
        } else if PASSED_ALONG.contains(&name.as_str())
            || name.starts_with("x-")
            || name.starts_with("X-")
            || matches!(name.as_str(), "comment" | "helper")
        {
        } else if sloppy {
            self.unknown.push(name);
        } else {
            let known: Vec<&str> = SETTINGS.iter().map(|s| s.name).collect();
            return Err(usage(format!(
                "unknown option `{}`; known are {}, and what mount(8) passes along",
                name.escape_debug(),
                known.join(", ")
            )));
        }
        Ok(())
    }
}

fn usage(message: String) -> ConfigError {
    ConfigError::new(message)
}

/// Splits at commas. A value in double quotes may hold commas, as in mount(8).
fn split(list: &[u8]) -> Result<Vec<Vec<u8>>, ConfigError> {
    let mut options = Vec::new();
    let mut option = Vec::new();
    let mut quoted = false;
    for &byte in list {
        match byte {
            b'"' => quoted = !quoted,
            b',' if !quoted => options.push(std::mem::take(&mut option)),
            other => option.push(other),
        }
    }
    if quoted {
        return Err(usage("a quote in the options is not closed".to_owned()));
    }
    options.push(option);
    options.retain(|o| !o.is_empty());
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fstab_passes_along_is_accepted() {
        let list = "rw,noauto,user,_netdev,nofail,x-systemd.automount,comment=a b,dev,relatime";
        let options = parse_options(&[list], false).expect("accepted");
        assert_eq!(options.not_granted, ["dev"]);
        assert_eq!(options.settings.len(), 1);
    }

    #[test]
    fn an_unknown_option_is_named_unless_sloppy() {
        let error = parse_options(&["ro,allow_root"], false).expect_err("unknown");
        assert!(error.to_string().contains("`allow_root`"), "{error}");
        assert_eq!(
            parse_options(&["allow_root"], true)
                .expect("sloppy")
                .unknown,
            ["allow_root"]
        );
    }

    #[test]
    fn a_remount_is_refused_whatever_else_is_asked_for() {
        for list in ["remount", "ro,user_id=0,remount,group_id=0"] {
            let error = parse_options(&[list], true).expect_err("refused");
            assert!(error.to_string().contains("mount it again"), "{error}");
        }
    }

    #[test]
    fn every_option_that_is_passed_along_is_in_the_manual() {
        let page = include_str!("../cli/man/secretfs-mount.1.in");
        let words: Vec<&str> = page
            .split(|c: char| !(c.is_alphanumeric() || c == '_'))
            .collect();
        for name in PASSED_ALONG.iter().chain(NEVER) {
            assert!(words.contains(name), "{name}");
        }
    }

    #[test]
    fn quotes_keep_commas_and_must_close() {
        let options = parse_options(&["log-file=\"/a,b\",ro"], false).expect("accepted");
        assert_eq!(
            options.settings[0].value.as_deref(),
            Some(OsStr::new("/a,b"))
        );
        assert!(parse_options(&["log-file=\"/a"], false).is_err());
        assert!(parse_options(&["ro=1"], false).is_err());
    }
}
