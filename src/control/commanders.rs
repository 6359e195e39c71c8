//! The commanders: root, the user of the daemon, and the user whom `control-uid` names. They may
//! command the keys and see the full status. Owning a node in the vault gives no such right: any
//! user may own one.

/// The commands that a user may give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Right {
    /// Commands that leave the vault under KMS keys that already wrap it, or that its mount names.
    KnownKeys,
    /// All commands.
    All,
}

/// The kernel sends this uid for a user whom it cannot map on an idmapped mount.
const NOBODY_KNOWN: u32 = u32::MAX;

/// The users who may command, as the module describes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Commanders {
    /// The user of the daemon: without root, the user who mounted.
    own: u32,
    group: u32,
    also: Option<u32>,
}

impl Commanders {
    /// Root, the user of this process, and the user `also`.
    pub(super) fn new(also: Option<u32>) -> Self {
        Self {
            own: nix::unistd::geteuid().as_raw(),
            group: nix::unistd::getegid().as_raw(),
            also,
        }
    }

    /// The right of a user who sends a command over the socket. A program that writes to the
    /// control file has [`Right::KnownKeys`] at most.
    pub(crate) fn right(&self, uid: u32) -> Option<Right> {
        match uid {
            NOBODY_KNOWN => None,
            uid if uid == 0 || uid == self.own => Some(Right::All),
            uid if Some(uid) == self.also => Some(Right::KnownKeys),
            _ => None,
        }
    }

    /// Whether a user may give any command.
    pub(super) fn may_command(&self, uid: u32) -> bool {
        self.right(uid).is_some()
    }

    /// The user and the group that own the control directory.
    pub(super) fn owner(&self) -> (u32, u32) {
        (self.own, self.group)
    }

    /// The user whom `control-uid` names, if that user has no right otherwise.
    pub(crate) fn also(&self) -> Option<u32> {
        self.also
            .filter(|also| self.right(*also) == Some(Right::KnownKeys))
    }
}

impl std::fmt::Display for Commanders {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "root may, and the user of the daemon, {}", self.own)?;
        match self.also() {
            Some(also) => write!(f, ", and by control-uid {also}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_who_cannot_be_known_may_nothing_whatever_the_settings_say() {
        let commanders = Commanders {
            own: 1000,
            group: 1000,
            also: Some(2000),
        };
        assert_eq!(commanders.right(0), Some(Right::All));
        assert_eq!(commanders.right(1000), Some(Right::All));
        assert_eq!(commanders.right(2000), Some(Right::KnownKeys));
        assert_eq!(commanders.right(65534), None);
        assert_eq!(commanders.right(u32::MAX), None);
        let careless = Commanders {
            own: u32::MAX,
            group: 0,
            also: Some(u32::MAX),
        };
        assert_eq!(careless.right(u32::MAX), None);
        assert_eq!(careless.also(), None);
    }
}
