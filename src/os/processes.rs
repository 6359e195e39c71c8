//! Processes as `/proc` tells of them.

/// When a process was started, in clock ticks since the host was booted (field 22 of `/proc/PID/stat`);
/// `None` when it has ended. With its number it tells a process from all others: nobody is started in
/// the past.
pub fn started(process: &str) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // Its name stands in brackets before the rest, and may hold anything.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    let state = fields.next()?;
    // Its first thread ends before the others, which may still have what it had.
    let is_over = matches!(state, "Z" | "X") && threads(process) <= 1;
    // The third of all was the first here.
    (!is_over).then(|| fields.nth(18)?.parse().ok())?
}

fn threads(process: &str) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task"));
    tasks.into_iter().flatten().flatten().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_one_that_was_started_before_and_one_that_has_ended() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn();
        let child = child.as_mut().expect("sleep");
        let id = child.id().to_string();
        let (own, other) = (started("self"), started(&id));
        assert!(own.is_some() && own <= other, "{own:?} {other:?}");
        child.kill().expect("killed");
        child.wait().expect("reaped");
        assert_eq!(started(&id), None);
    }
}
