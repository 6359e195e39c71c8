//! The single thread that runs AWS calls, and its runtime.
//!
//! Calls from several threads run concurrently, each with its own deadline, so a call that hangs
//! delays no other. The worker must never start before the process's last fork, because threads do
//! not survive a fork.

use std::future::Future;
use std::io;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::time::timeout_at;
use tracing::dispatcher::{Dispatch, set_default};

/// A caller waits this long beyond the deadline. The runtime ends a call at its deadline, unless
/// something in the SDK blocks the runtime; the caller then stops waiting here.
const GRACE: Duration = Duration::from_millis(250);

/// Why a call has no outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoOutcome {
    /// The deadline passed.
    TimedOut,
    /// The call panicked.
    Died,
}

/// Whether the environment asks the SDK to log requests and answers, keys included. The worker then
/// logs nothing of the SDK: a variable that was set for one program must not reveal the keys of
/// another.
fn logs_bodies() -> bool {
    ["LOG_SENSITIVE_BODIES", "LOG_SIGNABLE_BODY"]
        .iter()
        .any(|name| std::env::var_os(name).is_some())
}

/// The thread and its runtime. Dropping this ends both, and the calls under way.
pub(crate) struct Worker {
    handle: Handle,
    _stop: oneshot::Sender<()>,
}

impl Worker {
    /// Starts the thread.
    pub(crate) fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        std::thread::Builder::new()
            .name("kms".to_owned())
            .spawn(move || {
                let _quiet = logs_bodies().then(|| set_default(&Dispatch::none()));
                // Returns an error when the sender is dropped, which is the sign to stop.
                let _ = runtime.block_on(stopped);
                // Do not wait for the calls: a name lookup may hang for minutes.
                runtime.shutdown_background();
            })?;
        Ok(Self {
            handle,
            _stop: stop,
        })
    }

    /// Runs `call` until `deadline`.
    pub(crate) fn call<T: Send + 'static>(
        &self,
        deadline: Instant,
        call: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, NoOutcome> {
        let (send, receive) = sync_channel(1);
        self.handle.spawn(async move {
            let outcome = timeout_at(deadline.into(), call).await;
            // The caller may have given up.
            let _ = send.send(outcome.map_err(|_| NoOutcome::TimedOut));
        });
        let left = deadline.saturating_duration_since(Instant::now());
        receive
            .recv_timeout(left + GRACE)
            .unwrap_or_else(|e| match e {
                RecvTimeoutError::Timeout => Err(NoOutcome::TimedOut),
                RecvTimeoutError::Disconnected => Err(NoOutcome::Died),
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn within(time: Duration) -> Instant {
        Instant::now() + time
    }

    #[test]
    fn calls_from_several_threads_run_at_once_and_a_hanging_one_holds_up_no_other() {
        let worker = Worker::start().unwrap();
        std::thread::scope(|scope| {
            let hung = scope.spawn(|| {
                worker.call(within(Duration::from_secs(1)), std::future::pending::<()>())
            });
            for i in 0..8 {
                let worker = &worker;
                scope.spawn(move || {
                    let call = async move {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                        i
                    };
                    assert_eq!(worker.call(within(Duration::from_secs(60)), call), Ok(i));
                });
            }
            assert_eq!(hung.join().unwrap(), Err(NoOutcome::TimedOut));
        });
    }

    #[test]
    fn a_caller_is_let_go_even_when_the_runtime_is_blocked() {
        let worker = Worker::start().unwrap();
        let blocking = async { std::thread::sleep(Duration::from_secs(30)) };
        let start = Instant::now();
        let outcome = worker.call(within(Duration::from_millis(50)), blocking);
        assert_eq!(outcome, Err(NoOutcome::TimedOut));
        assert!(start.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn a_panic_in_a_call_is_told_and_the_next_call_works() {
        let worker = Worker::start().unwrap();
        let outcome = worker.call(within(Duration::from_secs(60)), async {
            panic!("on purpose")
        });
        assert_eq!(outcome, Err::<(), _>(NoOutcome::Died));
        assert_eq!(
            worker.call(within(Duration::from_secs(60)), async { 1 }),
            Ok(1)
        );
    }
}
