//! Settings: from the configuration file, the environment and the command line to validated
//! values. The same names in all three; what is nearer to the user wins: flags, then environment,
//! then file, then default. An unknown name or a bad value is an error that names it, its value,
//! where it came from, and what is allowed; nothing is ever silently ignored.

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

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

/// What the bound on memory follows from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitFrom {
    /// Nothing in particular.
    Default,
    /// What the control group of this process may have.
    Group,
    /// Somebody has set it.
    Option,
}

impl LimitFrom {
    /// As `status` tells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Group => "cgroup",
            Self::Option => "option",
        }
    }
}

/// Most memory for contents, unless it is set.
const MAX_MEMORY: u64 = 256 << 20;

/// Every setting, validated.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Mount read-only.
    pub read_only: bool,
    /// Let other users in.
    pub allow_other: bool,
    /// Allow execution.
    pub exec: bool,
    /// Let mounts be idmapped.
    pub idmap: bool,
    /// How long the kernel may keep names and attributes.
    pub ttl: Duration,
    /// Largest content of one file, in bytes.
    pub max_secret_size: u64,
    /// Memory for the contents of all open files, in bytes.
    pub max_memory: u64,
    /// What that follows from.
    pub max_memory_from: LimitFrom,
    /// The memory that the control group of this process may have, in bytes.
    pub group_memory: Option<u64>,
    /// Threads that read requests.
    pub threads: usize,
    /// How long one that has answered looks for the next request before it sleeps.
    pub busy_poll: Duration,
    /// How long open files are served after a request to end.
    pub drain_timeout: Duration,
    /// How long after its last replacement the master key is replaced; `None`: when asked to.
    pub rotate_every: Option<Duration>,
    /// Take away a dead mount of the same vault first; `None`: in the foreground.
    pub replace_stale: Option<bool>,
    /// Refuse to go on without locked memory.
    pub require_mlock: bool,
    /// Owner of the root of a new vault.
    pub uid: Option<u32>,
    /// Group of the root of a new vault.
    pub gid: Option<u32>,
    /// One more user who may command the keys of a mount.
    pub control_uid: Option<u32>,
    /// KMS keys: for `init` those that wrap, elsewhere the only ones accepted.
    pub kms_keys: Vec<KeyUri>,
    /// Bounds on KMS calls, and the place of the local KMS.
    pub kms: KmsSettings,
    /// Where this host remembers the vaults it has seen; `None` when there is no such place.
    pub anchor_dir: Option<PathBuf>,
    /// The only vault id accepted.
    pub vault_id: Option<String>,
    /// Refuse a vault without an anchor on this host.
    pub require_anchor: bool,
    /// Refuse a vault that has not come as far as this commit.
    pub min_commit: Option<u64>,
    /// Serve a vault while it is still being counted.
    pub verify_in_background: bool,
    /// How long a mount is kept waiting until its vault was counted.
    pub verify_within: Duration,
    /// How long after a change of the vault a mount that only reads counts it anew.
    pub verify_every: Duration,
    /// Accept an older vault than the anchor knows.
    pub accept_rollback: bool,
    /// Mount what is left of a damaged vault.
    pub salvage: bool,
    /// Accept a network or FUSE file system under the vault.
    pub unsafe_filesystem: bool,
    /// How log lines look.
    pub log_format: LogFormat,
    /// What is logged.
    pub log_level: LevelFilter,
    /// A file for the log.
    pub log_file: Option<PathBuf>,
    /// The configuration files that were read.
    pub config_files: Vec<PathBuf>,
}

/// Whether the threads of the daemon can only run in turns.
fn has_one_processor() -> bool {
    std::thread::available_parallelism().is_ok_and(|processors| processors.get() == 1)
}

/// Two, where they can run at once: on a virtual machine a processor that sleeps takes longer to wake
/// up than a request takes, and with two threads one is awake more often. More gain little.
fn default_threads() -> usize {
    if has_one_processor() { 1 } else { 2 }
}

/// A little longer than a program needs to come with its next request. With one processor it could
/// not come while it is looked for.
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
    /// Reads files and environment and lays `given` (flags and options) over them. `config` is the
    /// file that was named on the command line, if any.
    ///
    /// # Errors
    /// See the module.
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

    /// Places that nothing names are the usual ones. Nobody else resolves them.
    fn fill_in_places(&mut self) {
        if self.kms.local_dir.is_none() {
            self.kms.local_dir = local::usual_dir();
        }
        if self.anchor_dir.is_none() {
            self.anchor_dir = places::anchor_dir();
        }
    }

    /// Contents take at most a third of what the control group may have, unless somebody has said how
    /// much: beside them there is what is on its way to the disk, encrypted, and the rest of the program.
    fn fit_into_group(&mut self, limit: Option<u64>) {
        self.group_memory = limit;
        let third = limit.map_or(u64::MAX, |limit| limit / 3);
        if self.max_memory_from == LimitFrom::Default && third < self.max_memory {
            self.max_memory = third.max(LEAST_MEMORY);
            self.max_memory_from = LimitFrom::Group;
        }
    }

    /// That somebody asks for more memory for contents than the whole group may have.
    pub fn memory_warning(&self) -> Option<String> {
        let limit = self.group_memory.filter(|limit| *limit < self.max_memory)?;
        Some(format!(
            "max-memory is {} bytes, but the control group of this process may have no more than {limit}: \
             it is killed when open files take that; lower max-memory (a third by default), or raise \
             the limit of the group",
            self.max_memory
        ))
    }

    /// Applies values that stand at one level of precedence.
    fn apply_all(&mut self, raws: &[Raw]) -> Result<(), ConfigError> {
        // Keys accumulate within a level and replace those of the level below.
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

    /// One attempt gets a third of the whole, as by default.
    fn set_kms_timeout(&mut self, total: Duration) {
        self.kms.total_timeout = total;
        self.kms.attempt_timeout = total / 3;
    }
}

#[cfg(test)]
mod tests;
