//! Flags that come from the table of settings, so that a setting has the same name as a flag, with
//! `-o`, in the environment and in the configuration file.

use std::ffi::OsString;
use std::path::Path;

use clap::{Arg, ArgAction, ArgMatches, Args, FromArgMatches};

use crate::config::{
    Kind, Options, Origin, Raw, SETTINGS, Scope, Setting, Settings, parse_options,
};
use crate::error::Error;

/// The settings for which a command has flags.
pub(super) trait Scopes: std::fmt::Debug {
    const SCOPES: &'static [Scope];
}

/// For `init`.
#[derive(Debug)]
pub(super) struct ForInit;
impl Scopes for ForInit {
    const SCOPES: &'static [Scope] = &[Scope::Vault, Scope::Init];
}

/// For `mount`.
#[derive(Debug)]
pub(super) struct ForMount;
impl Scopes for ForMount {
    const SCOPES: &'static [Scope] = &[Scope::Vault, Scope::Open, Scope::Mount];
}

/// For commands that open an existing vault.
#[derive(Debug)]
pub(super) struct ForOpen;
impl Scopes for ForOpen {
    const SCOPES: &'static [Scope] = &[Scope::Vault, Scope::Open];
}

/// The flags of one command, and its `-o` lists.
#[derive(Debug)]
pub(super) struct Flags<S> {
    options: Vec<OsString>,
    raws: Vec<Raw>,
    scopes: std::marker::PhantomData<S>,
}

impl<S: Scopes> Flags<S> {
    /// Loads the settings: flags win over `-o`, and both over environment and files.
    pub(super) fn load(&self, config: Option<&Path>) -> Result<(Settings, Options), Error> {
        let options = parse_options(&self.options, false)?;
        options.refuse_foreign(S::SCOPES)?;
        let given: Vec<Raw> = options.settings.iter().chain(&self.raws).cloned().collect();
        let config = config.or(options.config.as_deref());
        let settings = Settings::load(config, &given)?;
        Ok((settings, options))
    }

    /// Removes the values given as `--NAME`, so that they override nothing, and returns them.
    pub(super) fn take(&mut self, name: &str) -> Vec<OsString> {
        let mut taken = Vec::new();
        self.raws.retain_mut(|raw| {
            let keep = raw.setting.name != name;
            if !keep {
                taken.extend(raw.value.take());
            }
            keep
        });
        taken
    }

    fn settings() -> impl Iterator<Item = &'static Setting> {
        SETTINGS.iter().filter(|s| S::SCOPES.contains(&s.scope))
    }
}

impl<S: Scopes> Args for Flags<S> {
    fn augment_args(command: clap::Command) -> clap::Command {
        let options = Arg::new("options")
            .short('o')
            .value_name("OPT,OPT...")
            .value_parser(clap::value_parser!(OsString))
            .action(ArgAction::Append)
            .help("Settings as mount options: NAME or NAME=VALUE, separated by commas");
        Self::settings().fold(command.arg(options), |command, setting| {
            let arg = Arg::new(setting.name)
                .long(setting.name)
                .help(setting.help)
                .help_heading("Settings");
            command.arg(match setting.kind {
                Kind::Switch => arg.action(ArgAction::SetTrue),
                _ => arg
                    .value_name(setting.value_name)
                    .value_parser(clap::value_parser!(OsString))
                    .action(ArgAction::Append),
            })
        })
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl<S: Scopes> FromArgMatches for Flags<S> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let values = |name: &str| -> Vec<OsString> {
            matches
                .get_many::<OsString>(name)
                .into_iter()
                .flatten()
                .cloned()
                .collect()
        };
        let mut raws = Vec::new();
        for setting in Self::settings() {
            let origin = Origin::Flag;
            if setting.kind == Kind::Switch {
                if matches.get_flag(setting.name) {
                    raws.push(Raw {
                        setting,
                        value: None,
                        origin,
                    });
                }
            } else {
                let of_flag = values(setting.name).into_iter();
                raws.extend(of_flag.map(|v| Raw {
                    setting,
                    value: Some(v),
                    origin: origin.clone(),
                }));
            }
        }
        Ok(Self {
            options: values("options"),
            raws,
            scopes: std::marker::PhantomData,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
