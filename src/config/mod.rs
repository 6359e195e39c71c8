//! Settings from the configuration file, the environment and the command line, as validated values.
//! A setting has the same name in all three. Flags win over the environment, that over files, and
//! those over defaults. An unknown name or a bad value is an error that names the setting, its
//! value, its origin, and the allowed values; nothing is ever silently ignored.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing::level_filters::LevelFilter;

use crate::error::{Class, Error};
use crate::kms::{KeyUri, KmsSettings, local};

pub mod options;
mod places;
mod raw;
mod source;
pub mod table;
mod value;

pub use options::{Options, parse_options};
pub use raw::{ConfigError, Origin, Raw};
pub use table::{Kind, SETTINGS, Scope, Setting};

use table::LEAST_MEMORY;

impl From<ConfigError> for Error {
    fn from(error: ConfigError) -> Self {
        Self::new(Class::Usage, error)
    }
}

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people.
    Human,
    /// One JSON object a line.
    Json,
}

/// The origin of the limit on memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitFrom {
    /// The default.
    Default,
    /// The memory limit of this process's control group.
    Group,
    /// The setting `max-memory`.
    Option,
}

impl LimitFrom {
    /// The word in `status`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Group => "cgroup",
            Self::Option => "option",
        }
    }
}

/// Default limit on the memory for contents, in bytes.
const MAX_MEMORY: u64 = 256 << 20;

/// Every setting, validated.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Mount read-only.
    pub read_only: bool,
    /// Let other users use the mount.
    pub allow_other: bool,
    /// Allow execution.
    pub exec: bool,
    /// Allow idmapped mounts.
    pub idmap: bool,
    /// How long the kernel may keep names and attributes.
    pub ttl: Duration,
    /// Largest content of one file, in bytes.
    pub max_secret_size: u64,
    /// Memory for the contents of all open files, in bytes.
    pub max_memory: u64,
    /// The origin of `max_memory`.
    pub max_memory_from: LimitFrom,
    /// The memory limit of this process's control group, in bytes.
    pub group_memory: Option<u64>,
    /// Threads that read requests.
    pub threads: usize,
    /// How long a thread looks for the next request after a reply, before it sleeps.
    pub busy_poll: Duration,
    /// How long the daemon serves open files after a request to end.
    pub drain_timeout: Duration,
    /// The age at which the master key is replaced; `None`: only on request.
    pub rotate_every: Option<Duration>,
    /// Remove a dead mount of the same vault first; `None`: only in the foreground.
    pub replace_stale: Option<bool>,
    /// Refuse to mount without locked memory.
    pub require_mlock: bool,
    /// Owner of the root of a new vault.
    pub uid: Option<u32>,
    /// Group of the root of a new vault.
    pub gid: Option<u32>,
    /// One more user who may command the keys of a mount.
    pub control_uid: Option<u32>,
    /// KMS keys: `init` wraps the master key with them; elsewhere they are the only ones accepted.
    pub kms_keys: Vec<KeyUri>,
    /// Limits on KMS calls, and the directory of the local KMS.
    pub kms: KmsSettings,
    /// The directory of this host's anchors; `None` when there is no such place.
    pub anchor_dir: Option<PathBuf>,
    /// The only vault id accepted.
    pub vault_id: Option<String>,
    /// Refuse a vault without an anchor on this host.
    pub require_anchor: bool,
    /// Refuse a vault older than this commit.
    pub min_commit: Option<u64>,
    /// Serve a vault while the count still runs.
    pub verify_in_background: bool,
    /// How long `mount` waits for the count of the vault.
    pub verify_within: Duration,
    /// How long after a change of the vault a read-only mount counts it again.
    pub verify_every: Duration,
    /// Accept a vault older than its anchor.
    pub accept_rollback: bool,
    /// Mount the rest of a damaged vault.
    pub salvage: bool,
    /// Accept a network or FUSE file system under the vault.
    pub unsafe_filesystem: bool,
    /// The format of log lines.
    pub log_format: LogFormat,
    /// The least important level that is logged.
    pub log_level: LevelFilter,
    /// The file for the log.
    pub log_file: Option<PathBuf>,
    /// The configuration files that were read.
    pub config_files: Vec<PathBuf>,
}

/// Whether there is one processor, so that the daemon's threads run in turns.
fn has_one_processor() -> bool {
    std::thread::available_parallelism().is_ok_and(|processors| processors.get() == 1)
}

/// Two threads if two can run at once: a virtual machine's processor takes longer to wake up than
/// to answer a request, and with two threads one is awake more often. More threads gain little.
fn default_threads() -> usize {
    if has_one_processor() { 1 } else { 2 }
}

/// A little longer than a program needs until its next request. With one processor, the program
/// could not run while the thread polls.
fn default_busy_poll() -> Duration {
    match has_one_processor() {
        true => Duration::ZERO,
        false => Duration::from_micros(50),
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            read_only: false,
            allow_other: false,
            exec: false,
            idmap: false,
            ttl: Duration::from_secs(1),
            max_secret_size: 16 << 20,
            max_memory: MAX_MEMORY,
            max_memory_from: LimitFrom::Default,
            group_memory: None,
            threads: default_threads(),
            busy_poll: default_busy_poll(),
            drain_timeout: Duration::from_secs(10),
            rotate_every: None,
            replace_stale: None,
            require_mlock: false,
            uid: None,
            gid: None,
            control_uid: None,
            kms_keys: Vec::new(),
            kms: KmsSettings::default(),
            anchor_dir: None,
            vault_id: None,
            require_anchor: false,
            min_commit: None,
            verify_in_background: false,
            verify_within: Duration::from_secs(2),
            verify_every: Duration::from_secs(60),
            accept_rollback: false,
            salvage: false,
            unsafe_filesystem: false,
            log_format: LogFormat::Human,
            log_level: LevelFilter::INFO,
            log_file: None,
            config_files: Vec::new(),
        }
    }
}

impl Settings {
    /// Reads files and environment, which `given` (flags and options) overrides. `config` is the
    /// file named on the command line, if any.
    ///
    /// # Errors
    /// As the module describes.
    pub fn load(config: Option<&Path>, given: &[Raw]) -> Result<Self, ConfigError> {
        let mut settings = Self::default();
        let (files, raws) = source::files(config)?;
        settings.config_files = files;
        settings.apply_all(&raws)?;
        settings.apply_all(&source::environment(std::env::vars_os())?)?;
        settings.apply_all(given)?;
        settings.fit_into_group(crate::os::cgroup::memory_limit());
        settings.fill_in_places();
        Ok(settings)
    }

    /// Fills in the default directories that no setting names. Nothing else resolves them.
    fn fill_in_places(&mut self) {
        if self.kms.local_dir.is_none() {
            self.kms.local_dir = local::usual_dir();
        }
        if self.anchor_dir.is_none() {
            self.anchor_dir = places::anchor_dir();
        }
    }

    /// Limits contents to a third of the control group's memory, unless `max-memory` is set:
    /// encrypted data on its way to the disk and the rest of the program need memory, too.
    fn fit_into_group(&mut self, limit: Option<u64>) {
        self.group_memory = limit;
        let third = limit.map_or(u64::MAX, |limit| limit / 3);
        if self.max_memory_from == LimitFrom::Default && third < self.max_memory {
            self.max_memory = third.max(LEAST_MEMORY);
            self.max_memory_from = LimitFrom::Group;
        }
    }

    /// A warning if `max-memory` is more than the limit of the control group.
    pub fn memory_warning(&self) -> Option<String> {
        let limit = self.group_memory.filter(|limit| *limit < self.max_memory)?;
        Some(format!(
            "max-memory is {} bytes, but the control group of this process may have no more than {limit}: \
             the kernel kills it if open files take that much; lower max-memory (a third by default), or raise \
             the limit of the group",
            self.max_memory
        ))
    }

    /// Applies the values of one level of precedence.
    fn apply_all(&mut self, raws: &[Raw]) -> Result<(), ConfigError> {
        // KMS keys accumulate within a level, and replace those of the level below.
        if raws.iter().any(|raw| raw.setting.kind == Kind::KeyUris) {
            self.kms_keys.clear();
        }
        raws.iter().try_for_each(|raw| self.apply(raw))
    }

    fn apply(&mut self, raw: &Raw) -> Result<(), ConfigError> {
        if !raw.setting.lasting && matches!(raw.origin, Origin::Environment(_) | Origin::File(_)) {
            return Err(raw.error(
                "it may only be given with the mount it is meant for, as a flag or with -o",
            ));
        }
        match raw.setting.name {
            "ro" => self.read_only = raw.switch()?,
            "allow-other" => self.allow_other = raw.switch()?,
            "exec" => self.exec = raw.switch()?,
            "idmap" => self.idmap = raw.switch()?,
            "ttl" => self.ttl = raw.duration()?,
            "max-secret-size" => self.max_secret_size = raw.number()?,
            "max-memory" => {
                self.max_memory = raw.number()?;
                self.max_memory_from = LimitFrom::Option;
            }
            "threads" => self.threads = raw.number()?.try_into().unwrap_or(1),
            "busy-poll" => self.busy_poll = Duration::from_micros(raw.number()?),
            "drain-timeout" => self.drain_timeout = raw.duration()?,
            "rotate-every" => self.rotate_every = raw.duration_or_off()?,
            "replace-stale" => self.replace_stale = Some(raw.switch()?),
            "require-mlock" => self.require_mlock = raw.switch()?,
            "uid" => self.uid = raw.number()?.try_into().ok(),
            "gid" => self.gid = raw.number()?.try_into().ok(),
            "control-uid" => self.control_uid = raw.number()?.try_into().ok(),
            "kms-key" => self.kms_keys.push(raw.key_uri()?),
            "kms-timeout" => self.set_kms_timeout(raw.duration()?),
            "local-kms-dir" => self.kms.local_dir = Some(raw.path()?),
            "insecure-kms-endpoint" => self.kms.insecure_endpoint = raw.switch()?,
            "anchor-dir" => self.anchor_dir = Some(raw.path()?),
            "vault-id" => self.vault_id = Some(raw.vault_id()?),
            "require-anchor" => self.require_anchor = raw.switch()?,
            "min-commit" => self.min_commit = Some(raw.number()?),
            "verify" => self.verify_in_background = raw.word()? == "background",
            "verify-within" => self.verify_within = raw.duration()?,
            "verify-every" => self.verify_every = raw.duration()?,
            "accept-rollback" => self.accept_rollback = raw.switch()?,
            "salvage" => self.salvage = raw.switch()?,
            "unsafe-filesystem" => self.unsafe_filesystem = raw.switch()?,
            "log-format" => {
                self.log_format = if raw.word()? == "json" {
                    LogFormat::Json
                } else {
                    LogFormat::Human
                };
            }
            "log-level" => {
                self.log_level = raw
                    .word()?
                    .parse()
                    .map_err(|_| raw.error("unknown level"))?;
            }
            "log-file" => self.log_file = Some(raw.path()?),
            other => {
                return Err(ConfigError::new(format!(
                    "the setting `{other}` has no meaning"
                )));
            }
        }
        Ok(())
    }

    /// One attempt gets a third of the total, as by default.
    fn set_kms_timeout(&mut self, total: Duration) {
        self.kms.total_timeout = total;
        self.kms.attempt_timeout = total / 3;
    }
}

#[cfg(test)]
mod tests;
