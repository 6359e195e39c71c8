//! A setting as written, and the parsing of its value.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use crate::kms::KeyUri;

use super::table::{Kind, Setting};
use super::value;

/// A mistake in settings: one line with the setting, its origin, and the allowed values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

impl ConfigError {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

/// A setting as written.
#[derive(Clone, Debug)]
pub struct Raw {
    /// The setting.
    pub setting: &'static Setting,
    /// The value; `None` for a switch without one.
    pub value: Option<OsString>,
    /// The origin of the value.
    pub origin: Origin,
}

/// The origin of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// `--NAME`.
    Flag,
    /// `-o NAME`.
    Option,
    /// An environment variable.
    Environment(String),
    /// A configuration file.
    File(PathBuf),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("given as a flag"),
            Self::Option => f.write_str("given with -o"),
            Self::Environment(name) => write!(f, "from the environment variable {name}"),
            Self::File(path) => write!(f, "from {}", path.display()),
        }
    }
}

impl Raw {
    pub(super) fn error(&self, allowed: impl fmt::Display) -> ConfigError {
        let name = self.setting.name;
        let value = self.value.as_deref().map_or_else(String::new, |value| {
            let shown: String = value.to_string_lossy().chars().take(200).collect();
            format!(" `{}`", shown.escape_debug())
        });
        ConfigError::new(format!("bad {name}{value} ({}): {allowed}", self.origin))
    }

    fn text(&self) -> Result<&str, ConfigError> {
        match self.value.as_deref().map(OsStr::to_str) {
            Some(Some(text)) if !text.is_empty() => Ok(text),
            Some(_) if self.value.as_deref().is_some_and(|v| !v.is_empty()) => {
                Err(self.error("it is not UTF-8"))
            }
            _ => Err(self.error(format!(
                "a value is missing; write {}={}",
                self.setting.name, self.setting.value_name
            ))),
        }
    }

    pub(super) fn switch(&self) -> Result<bool, ConfigError> {
        match &self.value {
            None => Ok(true),
            Some(value) => value
                .to_str()
                .and_then(value::switch)
                .ok_or_else(|| self.error("allowed are true and false")),
        }
    }

    pub(super) fn duration(&self) -> Result<Duration, ConfigError> {
        self.duration_or("")
    }

    /// `otherwise` names other allowed values in the error.
    fn duration_or(&self, otherwise: &str) -> Result<Duration, ConfigError> {
        let Kind::Duration { min_ms, max_ms } = self.setting.kind else {
            return Err(self.error("internal error: not a time span"));
        };
        let allowed = || {
            self.error(format!(
                "allowed is a whole number with ms, s, m, h or d behind it (s if none), {otherwise}from {min_ms}ms to {}s",
                max_ms / 1000
            ))
        };
        value::duration(self.text()?)
            .filter(|d| (u128::from(min_ms)..=u128::from(max_ms)).contains(&d.as_millis()))
            .ok_or_else(allowed)
    }

    /// A time span, or `None` for `off`.
    pub(super) fn duration_or_off(&self) -> Result<Option<Duration>, ConfigError> {
        match self.text()? {
            "off" => Ok(None),
            _ => self.duration_or("or off, ").map(Some),
        }
    }

    pub(super) fn number(&self) -> Result<u64, ConfigError> {
        let text = self.text()?;
        let (number, min, max, form) = match self.setting.kind {
            Kind::Size { min, max } => (
                value::size(text),
                min,
                max,
                "a number of bytes with K, M or G behind it",
            ),
            Kind::Count { min, max } => (text.parse().ok(), min, max, "a whole number"),
            _ => return Err(self.error("internal error: not a number")),
        };
        number
            .filter(|n| (min..=max).contains(n))
            .ok_or_else(|| self.error(format!("allowed is {form}, from {min} to {max}")))
    }

    pub(super) fn word(&self) -> Result<&str, ConfigError> {
        let text = self.text()?;
        match self.setting.kind {
            Kind::Choice(words) if words.contains(&text) => Ok(text),
            Kind::Choice(words) => Err(self.error(format!("allowed are {}", words.join(", ")))),
            _ => Err(self.error("internal error: not a choice")),
        }
    }

    pub(super) fn path(&self) -> Result<PathBuf, ConfigError> {
        match self.value.as_deref() {
            Some(value) if !value.is_empty() && !value.as_bytes().contains(&0) => {
                // Make it absolute now: the daemon changes its working directory.
                std::path::absolute(value).map_err(|e| self.error(e))
            }
            _ => Err(self.error("a path is missing")),
        }
    }

    pub(super) fn key_uri(&self) -> Result<KeyUri, ConfigError> {
        self.text()?.parse().map_err(|e| self.error(e))
    }

    pub(super) fn vault_id(&self) -> Result<String, ConfigError> {
        let text = self.text()?;
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if text.len() <= 64 && text.chars().all(plain) {
            Ok(text.to_owned())
        } else {
            Err(self.error("allowed is the id that `secretfs status VAULT` shows"))
        }
    }
}
