//! The table of settings. Flags, `-o` options, environment variables, the configuration file and
//! the man pages all come from it, so that a setting has one name everywhere.

/// The kind of a setting's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// On if named without a value; otherwise `true` or `false`.
    Switch,
    /// Bytes: `16M`, `64MiB`.
    Size {
        /// Smallest allowed.
        min: u64,
        /// Largest allowed.
        max: u64,
    },
    /// A time span: `10`, `10s`, `2m`, `500ms`.
    Duration {
        /// Smallest allowed, in milliseconds.
        min_ms: u64,
        /// Largest allowed, in milliseconds.
        max_ms: u64,
    },
    /// A whole number.
    Count {
        /// Smallest allowed.
        min: u64,
        /// Largest allowed.
        max: u64,
    },
    /// A path.
    Path,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// KMS key URIs; may be given several times.
    KeyUris,
    /// A vault's id.
    VaultId,
}

/// The smallest `max-memory`, in bytes.
pub(super) const LEAST_MEMORY: u64 = 1 << 20;

/// The commands that use a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Commands that open or create a vault.
    Vault,
    /// `init` alone.
    Init,
    /// `mount` alone.
    Mount,
    /// Commands that open an existing vault, such as `mount`, `status` and `check`.
    Open,
}

/// One setting.
#[derive(Debug)]
pub struct Setting {
    /// Its name everywhere. The environment variable is `SECRETFS_` and the name in capitals, with
    /// `_` for `-`.
    pub name: &'static str,
    /// The kind of its value.
    pub kind: Kind,
    /// The commands that use it.
    pub scope: Scope,
    /// Whether files and environment may set it. A setting that lowers the guard must be given with
    /// the mount that it is meant for.
    pub lasting: bool,
    /// The placeholder for the value in help.
    pub value_name: &'static str,
    /// One sentence for help and man pages.
    pub help: &'static str,
}

impl Setting {
    /// The environment variable.
    pub fn variable(&self) -> String {
        format!("SECRETFS_{}", self.name.to_uppercase().replace('-', "_"))
    }
}

/// The setting `name`; `_` counts as `-`, so that `allow_other` works as in other file systems.
pub fn find(name: &str) -> Option<&'static Setting> {
    let name = name.replace('_', "-");
    SETTINGS.iter().find(|s| s.name == name)
}

const KIB: u64 = 1024;
const GIB: u64 = 1 << 30;

const fn switch(name: &'static str, scope: Scope, help: &'static str) -> Setting {
    Setting {
        name,
        kind: Kind::Switch,
        scope,
        lasting: true,
        value_name: "",
        help,
    }
}

const fn value(
    name: &'static str,
    kind: Kind,
    scope: Scope,
    value_name: &'static str,
    help: &'static str,
) -> Setting {
    Setting {
        name,
        kind,
        scope,
        lasting: true,
        value_name,
        help,
    }
}

/// All settings, in the order in which help shows them.
pub const SETTINGS: &[Setting] = &[
    switch(
        "ro",
        Scope::Mount,
        "Mount read-only. Any number of read-only mounts may exist beside one mount for writing",
    ),
    switch(
        "allow-other",
        Scope::Mount,
        "Let users other than the one who mounts (root included) use the mount",
    ),
    switch(
        "exec",
        Scope::Mount,
        "Allow programs in the vault to be executed; off by default",
    ),
    switch(
        "idmap",
        Scope::Mount,
        "Let the mount be idmapped (X-mount.idmap, pods with hostUsers: false). Needs Linux 6.12",
    ),
    value(
        "ttl",
        Kind::Duration {
            min_ms: 0,
            max_ms: 3_600_000,
        },
        Scope::Mount,
        "TIME",
        "How long the kernel may keep names and attributes. Default 1s",
    ),
    value(
        "max-secret-size",
        Kind::Size {
            min: KIB,
            max: 4 * GIB,
        },
        Scope::Mount,
        "SIZE",
        "Largest content of one file; beyond it writes fail with EFBIG. Default 16M",
    ),
    value(
        "max-memory",
        Kind::Size {
            min: LEAST_MEMORY,
            max: 1024 * GIB,
        },
        Scope::Mount,
        "SIZE",
        "Memory for the contents of all open files together; beyond it, and beyond the share of one user, writes fail with ENOSPC. Default 256M, or a third of the memory limit of the daemon's control group if that is less",
    ),
    value(
        "threads",
        Kind::Count { min: 1, max: 64 },
        Scope::Mount,
        "N",
        "Threads that read requests from the kernel, 1 to 64. Default 2, and 1 on a machine with one processor",
    ),
    value(
        "busy-poll",
        Kind::Count { min: 0, max: 1000 },
        Scope::Mount,
        "MICROSECONDS",
        "How long a thread looks for the next request after a reply, before it sleeps, up to 1000; 0: not at all. Default 50, and 0 on a machine with one processor",
    ),
    value(
        "drain-timeout",
        Kind::Duration {
            min_ms: 0,
            max_ms: 3_600_000,
        },
        Scope::Mount,
        "TIME",
        "How long the daemon serves open files after a request to end, and how long `umount` waits for it to release the vault. Default 10s",
    ),
    switch(
        "replace-stale",
        Scope::Mount,
        "If the mount point has a mount of the same vault whose daemon was killed, remove that first; any other mount there is still refused. On with -f, off otherwise",
    ),
    value(
        "rotate-every",
        Kind::Duration {
            min_ms: 1000,
            // Ten years.
            max_ms: 315_360_000_000,
        },
        Scope::Mount,
        "TIME",
        "Replace the master key this long after it was last replaced, for example 90d; off: only \
         on request. Default off",
    ),
    switch(
        "require-mlock",
        Scope::Mount,
        "Refuse to mount unless all memory of the daemon can be locked, so that none is swapped out",
    ),
    value(
        "uid",
        Kind::Count {
            min: 0,
            max: 0xffff_fffe,
        },
        Scope::Init,
        "UID",
        "Owner of the root of the new vault. Default: the user who runs the command",
    ),
    value(
        "gid",
        Kind::Count {
            min: 0,
            max: 0xffff_fffe,
        },
        Scope::Init,
        "GID",
        "Group of the root of the new vault. Default: the group of the user who runs the command",
    ),
    value(
        "control-uid",
        Kind::Count {
            min: 0,
            max: 0xffff_fffe,
        },
        Scope::Mount,
        "UID",
        "One more user, besides root and the user of the daemon, who may command the keys and see all of status and audit. This user cannot move the vault to KMS keys other than its present ones and those that kms-key names. Default nobody",
    ),
    value(
        "kms-key",
        Kind::KeyUris,
        Scope::Vault,
        "URI",
        "A KMS key: local-kms://NAME, or aws-kms:// and an ARN, key id or alias/NAME. May be repeated. init wraps the master key by each (default local-kms://default); the other commands then open a vault with no other key",
    ),
    value(
        "kms-timeout",
        Kind::Duration {
            min_ms: 100,
            max_ms: 600_000,
        },
        Scope::Vault,
        "TIME",
        "Limit on a call to a KMS, with all its attempts. Default 6s",
    ),
    value(
        "local-kms-dir",
        Kind::Path,
        Scope::Vault,
        "DIR",
        "Directory of the local KMS's keys. Default /var/lib/secretfs/kms for root, $XDG_DATA_HOME/secretfs/kms for others",
    ),
    switch(
        "insecure-kms-endpoint",
        Scope::Vault,
        "Call AWS KMS over http:// even if the endpoint is not on this machine, and through a proxy that HTTP_PROXY names: anyone on the way sees the master key. By default such an endpoint is refused",
    ),
    value(
        "anchor-dir",
        Kind::Path,
        Scope::Vault,
        "DIR",
        "Directory in which this host remembers the vaults it has seen. Default /var/lib/secretfs/anchors for root, $XDG_STATE_HOME/secretfs/anchors for others",
    ),
    value(
        "vault-id",
        Kind::VaultId,
        Scope::Open,
        "ID",
        "Accept no vault but the one with this id (`secretfs status VAULT` shows it)",
    ),
    switch(
        "require-anchor",
        Scope::Open,
        "Refuse a vault that this host has not seen before, or whose anchor it cannot store",
    ),
    value(
        "min-commit",
        Kind::Count {
            min: 0,
            max: i64::MAX as u64,
        },
        Scope::Open,
        "N",
        "Refuse a vault older than this commit, for hosts that remember nothing: `umount` and `status` show the number. Default 0",
    ),
    value(
        "verify",
        Kind::Choice(&["before", "background"]),
        Scope::Mount,
        "WHEN",
        "When the daemon counts the whole vault and compares it with its sums: before it serves anything, or in the background. In the background, records that an attacker put back may be served until the count finds them. Default before",
    ),
    value(
        "verify-within",
        Kind::Duration {
            min_ms: 0,
            max_ms: 3_600_000,
        },
        Scope::Mount,
        "TIME",
        "How long `mount` waits for the count of the vault; after that it returns, and every user of the mount waits for the rest. Default 2s",
    ),
    value(
        "verify-every",
        Kind::Duration {
            min_ms: 1000,
            max_ms: 3_600_000,
        },
        Scope::Mount,
        "TIME",
        "With ro: how long after a change of the vault the daemon counts it again. Default 60s",
    ),
    Setting {
        name: "accept-rollback",
        kind: Kind::Switch,
        scope: Scope::Mount,
        lasting: false,
        value_name: "",
        help: "Accept a vault older than this host has seen (after a legitimate restore); the history records it",
    },
    switch(
        "salvage",
        Scope::Mount,
        "With ro: mount the rest of a vault that was damaged or tampered with; records that do not authenticate are still refused",
    ),
    switch(
        "unsafe-filesystem",
        Scope::Vault,
        "Accept a vault on a network or FUSE file system, where durability and locks may not hold",
    ),
    value(
        "log-format",
        Kind::Choice(&["human", "json"]),
        Scope::Mount,
        "FORMAT",
        "Format of log lines: human or json. Default human",
    ),
    value(
        "log-level",
        Kind::Choice(&["off", "error", "warn", "info", "debug", "trace"]),
        Scope::Mount,
        "LEVEL",
        "Least important level that is logged: off, error, warn, info, debug or trace. Default info",
    ),
    value(
        "log-file",
        Kind::Path,
        Scope::Mount,
        "FILE",
        "Append the log to this file. Default: stderr in the foreground, syslog in the background",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_plain() {
        let mut names: Vec<_> = SETTINGS.iter().map(|s| s.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), SETTINGS.len());
        assert!(
            names
                .iter()
                .all(|n| n.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'))
        );
    }

    #[test]
    fn the_variable_of_the_local_kms_is_the_documented_one() {
        assert_eq!(
            find("local-kms-dir").map(Setting::variable).as_deref(),
            Some("SECRETFS_LOCAL_KMS_DIR")
        );
        assert_eq!(find("allow_other").map(|s| s.name), Some("allow-other"));
    }
}
