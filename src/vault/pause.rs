//! Pauses on the vault's own threads, which must end soon when asked to.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// The time between two checks during a pause.
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
