//! Daemons of other mounts, as the processes that they are seen as here. One may be in another PID
//! namespace, and calls itself something else then.

use super::holders::processes;

/// A process, told from later ones with its number.
pub(super) struct Daemon {
    pub(super) id: u64,
    started: String,
}

/// What a daemon is called, by what it was started as; the kernel keeps 15 bytes.
const NAMES: [&[u8]; 3] = [b"secretfs", b"mount.secretfs", b"mount.fuse.secr"];

impl Daemon {
    /// The one that calls itself `id`, in a PID namespace that may be another; `None` when it is not seen
    /// here, or several might be it.
    pub(super) fn of(id: u64) -> Option<Self> {
        let mut found = processes()
            .into_iter()
            .map(u64::from)
            .filter(|seen| is_ours(*seen) && id_within(*seen) == Some(id));
        let seen = found.next().filter(|_| found.next().is_none())?;
        let started = started(seen)?;
        Some(Self { id: seen, started })
    }

    pub(super) fn is_alive(&self) -> bool {
        started(self.id).is_some_and(|now| now == self.started)
    }
}

fn is_ours(process: u64) -> bool {
    std::fs::read(format!("/proc/{process}/comm"))
        .is_ok_and(|name| NAMES.contains(&name.trim_ascii()))
}

/// What a process is numbered in the innermost PID namespace that it is in.
fn id_within(process: u64) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let mut lines = status.lines();
    let ids = lines.find_map(|line| line.strip_prefix("NSpid:"))?;
    ids.split_ascii_whitespace().next_back()?.parse().ok()
}

/// When a process was started, unless it has ended.
fn started(id: u64) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    let state = fields.next()?;
    // Its first thread ends before the others, which may still have what it had.
    let is_over = matches!(state, "Z" | "X") && threads(id) <= 1;
    // The 22nd of all.
    (!is_over).then(|| fields.nth(18).map(str::to_owned))?
}

fn threads(id: u64) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{id}/task"));
    tasks.into_iter().flatten().flatten().count()
}
