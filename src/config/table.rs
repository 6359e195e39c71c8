//! The one table of settings. Flags, `-o` options, environment variables, the configuration file
//! and the man pages are all made from it, so that a setting has one name everywhere.

/// What a setting's value looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// On when named; `true` or `false` where a value is written.
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

/// Least memory for contents that can be set, in bytes.
pub(super) const LEAST_MEMORY: u64 = 1 << 20;

/// The commands that a setting means something to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Commands that open or make a vault.
    Vault,
    /// `init` alone.
    Init,
    /// `mount` alone.
    Mount,
    /// Commands that open an existing vault: `mount`, `status`, `check`.
    Open,
}

/// One setting.
#[derive(Debug)]
pub struct Setting {
    /// Its name in all places; the environment variable is `SECRETFS_` and this in capitals.
    pub name: &'static str,
    /// What its value looks like.
    pub kind: Kind,
    /// Who uses it.
    pub scope: Scope,
    /// Whether it may stand in a file or the environment. What lowers the guard for one mount must
    /// be asked for at that mount.
    pub lasting: bool,
    /// How help shows the value.
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

/// The setting of this name; `_` and `-` are the same, so that `allow_other` works as everywhere.
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
        "Mount read-only. Any number of these may stand beside one mount for writing",
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
        "Memory for the contents of all open files together; beyond it, and beyond the share of one user, writes fail with ENOSPC. Default 256M, or a third of the memory that the control group of the daemon may have if that is less",
    ),
    value(
        "threads",
        Kind::Count { min: 1, max: 64 },
        Scope::Mount,
        "N",
        "Threads that read requests from the kernel, 1 to 64. Default 2, and 1 on a machine of one processor",
    ),
    value(
        "busy-poll",
        Kind::Count { min: 0, max: 1000 },
        Scope::Mount,
        "MICROSECONDS",
        "How long a thread that has answered looks for the next request before it sleeps, up to 1000; 0: not at all. Default 50, and 0 on a machine of one processor",
    ),
    value(
        "drain-timeout",
        Kind::Duration {
            min_ms: 0,
            max_ms: 3_600_000,
        },
        Scope::Mount,
        "TIME",
        "How long open files are served after a request to end, and how long `umount` waits for the vault to be let go of. Default 10s",
    ),
    switch(
        "replace-stale",
        Scope::Mount,
        "Take a mount of the same vault whose daemon was killed away from the mount point, and mount again; any other mount there is refused as ever. On with -f, off otherwise",
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
         when asked to. Default off",
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
        "Owner of the root of the new vault. Default: who runs the command",
    ),
    value(
        "gid",
        Kind::Count {
            min: 0,
            max: 0xffff_fffe,
        },
        Scope::Init,
        "GID",
        "Group of the root of the new vault. Default: that of who runs the command",
    ),
    value(
        "control-uid",
        Kind::Count {
            min: 0,
            max: 0xffff_fffe,
        },
        Scope::Mount,
        "UID",
        "One more user who may command the keys and see all of status and audit, besides root and the user of the daemon; not move the vault to other KMS keys than those that it is under or kms-key names. Default nobody",
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
        "Longest time that a call to a KMS may take, with all its attempts. Default 6s",
    ),
    value(
        "local-kms-dir",
        Kind::Path,
        Scope::Vault,
        "DIR",
        "Where the local KMS keeps its keys. Default /var/lib/secretfs/kms for root, $XDG_DATA_HOME/secretfs/kms for others",
    ),
    switch(
        "insecure-kms-endpoint",
        Scope::Vault,
        "Call AWS KMS over http:// also where the endpoint is not on this machine, and through a proxy that HTTP_PROXY names: whoever is on the way sees the master key. Such an endpoint is refused by default",
    ),
    value(
        "anchor-dir",
        Kind::Path,
        Scope::Vault,
        "DIR",
        "Where this host remembers the vaults it has seen. Default /var/lib/secretfs/anchors for root, $XDG_STATE_HOME/secretfs/anchors for others",
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
        "Refuse a vault that has not come as far as this commit, for hosts that remember nothing: `umount` and `status` tell the number. Default 0",
    ),
    value(
        "verify",
        Kind::Choice(&["before", "background"]),
        Scope::Mount,
        "WHEN",
        "When the whole vault is counted and compared with its sums: before anything of it is served, or in the background, while what was put back may be served until it is found. Default before",
    ),
    value(
        "verify-within",
        Kind::Duration {
            min_ms: 0,
            max_ms: 3_600_000,
        },
        Scope::Mount,
        "TIME",
        "How long `mount` waits until the vault was counted; after that it returns, and whoever uses the mount waits for the rest. Default 2s",
    ),
    value(
        "verify-every",
        Kind::Duration {
            min_ms: 1000,
            max_ms: 3_600_000,
        },
        Scope::Mount,
        "TIME",
        "With ro: how long after the vault was changed it is counted anew. Default 60s",
    ),
    Setting {
        name: "accept-rollback",
        kind: Kind::Switch,
        scope: Scope::Mount,
        lasting: false,
        value_name: "",
        help: "Accept a vault older than this host has seen (after a legitimate restore); the history keeps a record of it",
    },
    switch(
        "salvage",
        Scope::Mount,
        "With ro: mount what is left of a vault that was damaged or tampered with; what does not authenticate is still refused",
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
        "How log lines look: human or json. Default human",
    ),
    value(
        "log-level",
        Kind::Choice(&["off", "error", "warn", "info", "debug", "trace"]),
        Scope::Mount,
        "LEVEL",
        "The least important event that is logged: off, error, warn, info, debug or trace. Default info",
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
