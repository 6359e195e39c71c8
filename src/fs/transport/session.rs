//! The session with the kernel: its handshake, the threads that serve it, and its end.

use std::io;
use std::os::fd::OwnedFd;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::store::NodeId;

use super::super::entry::FrontDoor;
use super::super::kernel::Transport;
use super::adapter::Adapter;
use super::busy_poll::BusyPoll;
use super::threads::{self, RequestThreads};
use super::who::Known;

/// The settings of a session.
#[derive(Clone, Copy, Debug)]
pub struct Serving {
    /// Number of threads that read requests.
    pub threads: usize,
    /// Limit on a thread's poll for the next request.
    pub patience: Duration,
    /// Whether mounts may be idmapped.
    pub idmap: bool,
    /// Whether this process has made the mount, itself or through fusermount3.
    pub is_own: bool,
}

/// The number of threads that may read requests, at most `wanted`: one if /proc does not show what
/// threads wait for.
fn usable_threads(wanted: usize) -> usize {
    if wanted > 1 && !threads::can_be_watched() {
        tracing::info!("one thread serves: /proc does not tell what several are waiting for");
        return 1;
    }
    wanted
}

/// Does the handshake with the kernel over `device`, and starts the threads that serve `door`.
/// Calls `on_end` when the session ends.
///
/// # Errors
/// When the kernel refuses the handshake, or a thread cannot be started.
pub fn start(
    door: &Arc<FrontDoor>,
    device: OwnedFd,
    serving: Serving,
    on_end: impl FnOnce(Result<(), String>) + Send + 'static,
) -> io::Result<()> {
    let count = usable_threads(serving.threads);
    let mut config = fuser::Config::default();
    // The kernel enforces allow_other. fuser's own check would refuse the FLUSH of a writer that
    // has changed its uid, without asking the file system.
    config.acl = fuser::SessionACL::All;
    config.n_threads = Some(count);
    let busy_poll = BusyPoll::new(device.try_clone()?, serving.patience);
    let threads = Arc::new(RequestThreads::new(count, busy_poll));
    let known = match serving.idmap {
        true => Known::of_idmapped(serving.is_own),
        false => Known::ByKernel,
    };
    let adapter = Adapter::new(Arc::clone(door), Arc::clone(&threads), known);
    let session = fuser::Session::from_fd(adapter, device, fuser::SessionACL::All, config)?;
    let notifier = session.notifier();
    door.fs().attach(Arc::new(Connection {
        notifier,
        threads: Arc::downgrade(&threads),
    }))?;
    let served = Arc::clone(door);
    std::thread::Builder::new()
        .name("session".to_owned())
        .spawn(move || {
            // Requests wait in the kernel meanwhile, where programs can be interrupted.
            let is_to_be_served = served.vault().await_verdict_or_end();
            drop(served);
            if !is_to_be_served {
                drop(session);
                return on_end(Ok(()));
            }
            let ended = std::panic::catch_unwind(AssertUnwindSafe(|| session.run()));
            on_end(match ended {
                // The connection ended while the kernel passed a request. At other moments the
                // errno is ENODEV, which the session treats as the end.
                Ok(Err(e)) if e.raw_os_error() == Some(libc::ECONNABORTED) => Ok(()),
                Ok(result) => result.map_err(|e| e.to_string()),
                Err(_) => Err("internal error".to_owned()),
            });
        })?;
    Ok(())
}

/// The channel for notifications to the kernel.
struct Connection {
    notifier: fuser::Notifier,
    /// The threads end with the session, before the file system.
    threads: Weak<RequestThreads>,
}

impl Transport for Connection {
    fn drop_pages(&self, node: NodeId) {
        // Drop all its pages. A node that the kernel has forgotten has none.
        if let Err(e) = self.notifier.inval_inode(fuser::INodeNo(node), 0, 0) {
            tracing::debug!("cannot drop pages: {e}");
        }
    }

    fn forget_attributes(&self, node: NodeId) {
        // Without a range of pages, this drops attributes only.
        if let Err(e) = self.notifier.inval_inode(fuser::INodeNo(node), -1, 0) {
            tracing::debug!("cannot have attributes forgotten: {e}");
        }
    }

    fn await_releases(&self) {
        if let Some(threads) = self.threads.upgrade() {
            threads.await_releases();
        }
    }
}
