//! Waiting on a thread of the vault's own, which is soon to end when it is told to.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// How often whoever waits looks whether to go on.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Waits, and often checks whether to go on.
pub(super) fn pause(time: Duration, go_on: &dyn Fn() -> ControlFlow<()>) -> ControlFlow<()> {
    let until = Instant::now() + time;
    loop {
        go_on()?;
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return ControlFlow::Continue(());
        }
        std::thread::sleep(left.min(LOOK_EVERY));
    }
}
