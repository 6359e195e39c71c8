//! Daemons of other mounts, as processes of this PID namespace. A daemon in another PID namespace
//! knows itself by another number.

use crate::os::process;

/// A process, distinguished from later ones with the same number by its start.
pub(super) struct Daemon {
    pub(super) id: u64,
    started: u64,
}

impl Daemon {
    /// The daemon that has the number `id` in its own PID namespace, and started at `started`;
    /// `None` when it is not visible here.
    pub(super) fn of(id: u64, started: u64) -> Option<Self> {
        let mut all = process::all().into_iter().map(u64::from);
        let is_it = |seen: &u64| {
            process::id_within(*seen) == Some(id)
                && process::started(&seen.to_string()) == Some(started)
        };
        let id = all.find(is_it)?;
        Some(Self { id, started })
    }

    pub(super) fn is_alive(&self) -> bool {
        process::started(&self.id.to_string()) == Some(self.started)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_a_daemon_only_if_it_was_started_when_that_says_it_was() {
        let id = u64::from(std::process::id());
        let started = process::started("self").expect("/proc");
        let daemon = Daemon::of(id, started).expect("it is seen");
        assert!(daemon.is_alive());
        // A process that took over the number later, or claims to have it.
        assert!(Daemon::of(id, started - 1).is_none());
    }
}
