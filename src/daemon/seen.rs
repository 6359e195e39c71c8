//! Daemons of other mounts, as the processes that they are seen as here. One may be in another PID
//! namespace, and calls itself something else then.

use super::holders::processes;
use crate::host;

/// A process, told from later ones with its number.
pub(super) struct Daemon {
    pub(super) id: u64,
    started: u64,
}

impl Daemon {
    /// The one that calls itself `id`, in a PID namespace that may be another, and says when it was
    /// started; `None` when it is not seen here.
    pub(super) fn of(id: u64, started: u64) -> Option<Self> {
        let mut all = processes().into_iter().map(u64::from);
        let is_it = |seen: &u64| {
            id_within(*seen) == Some(id)
                && host::processes::started(&seen.to_string()) == Some(started)
        };
        let id = all.find(is_it)?;
        Some(Self { id, started })
    }

    pub(super) fn is_alive(&self) -> bool {
        host::processes::started(&self.id.to_string()) == Some(self.started)
    }
}

/// What a process is numbered in the innermost PID namespace that it is in.
fn id_within(process: u64) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let mut lines = status.lines();
    let ids = lines.find_map(|line| line.strip_prefix("NSpid:"))?;
    ids.split_ascii_whitespace().next_back()?.parse().ok()
}
