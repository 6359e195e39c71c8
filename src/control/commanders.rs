//! The commanders: root, the user of the daemon, and the user whom `control-uid` names. They may command
//! the keys and see the whole status. The owner of a node in the vault is never one for that: it may be
//! anybody.

/// The commands that a user may give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Right {
    /// Those that leave the vault under KMS keys that it is under, or that its mount names.
    KnownKeys,
    /// Everything.
    All,
}

/// The kernel sends this for a user of an idmapped mount whom it cannot name.
const NOBODY_KNOWN: u32 = u32::MAX;

/// See the module.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Commanders {
    /// The user of the daemon. A user who mounts without being root is that user.
    own: u32,
    group: u32,
    also: Option<u32>,
}

impl Commanders {
    /// Those of this process, and one more.
    pub(super) fn new(also: Option<u32>) -> Self {
        Self {
            own: nix::unistd::geteuid().as_raw(),
            group: nix::unistd::getegid().as_raw(),
            also,
        }
    }

    /// The right of a user who asks by the command or over the socket. A program that writes to the
    /// control file has [`Right::KnownKeys`] at most.
    pub(crate) fn right(&self, uid: u32) -> Option<Right> {
        match uid {
            NOBODY_KNOWN => None,
            uid if uid == 0 || uid == self.own => Some(Right::All),
            uid if Some(uid) == self.also => Some(Right::KnownKeys),
            _ => None,
        }
    }

    /// Whether a user may command at all.
    pub(super) fn may_command(&self, uid: u32) -> bool {
        self.right(uid).is_some()
    }

    /// The user and the group that the control directory belongs to.
    pub(super) fn owner(&self) -> (u32, u32) {
        (self.own, self.group)
    }

    /// The user whom `control-uid` names, if that is another.
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
