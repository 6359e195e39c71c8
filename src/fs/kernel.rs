//! The kernel, as the file system tells it things: by the transport that brings its requests. Without a
//! transport, as in tests, there is no kernel that remembers anything.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, mpsc};

use crate::store::NodeId;
use crate::sync::{Mutex, Rank};

/// Brings the requests of a kernel, and tells it things.
pub trait Transport: Send + Sync {
    /// Makes the kernel drop all pages of a node. Called on a thread of its own: from inside a request
    /// it could wait for that request.
    fn drop_pages(&self, node: NodeId);

    /// Makes the kernel forget a node's attributes, and ignore those in answers that are on their way.
    /// Called from inside a request: it must not wait, nor touch pages.
    fn forget_attributes(&self, node: NodeId);

    /// Returns when every last close of a file of which the kernel has told before is seen here. A
    /// transport that begins requests in their order has nothing to wait for.
    fn await_releases(&self);
}

/// The kernel, once there is a transport to it.
#[derive(Default)]
pub(super) struct Kernel {
    transport: OnceLock<Arc<dyn Transport>>,
    /// Nodes whose pages are to be dropped.
    stale: OnceLock<Mutex<mpsc::Sender<NodeId>>>,
    /// Nothing is asked of it any more.
    ended: AtomicBool,
}

impl Kernel {
    /// Has the kernel be told things by `transport`. Each node whose pages are to be dropped is sent to
    /// the receiver that this returns.
    pub(super) fn attach(&self, transport: &Arc<dyn Transport>) -> mpsc::Receiver<NodeId> {
        let (sender, receiver) = mpsc::channel();
        // A second transport would only do the same.
        let _ = self.stale.set(Mutex::new(Rank::StalePages, sender));
        let _ = self.transport.set(Arc::clone(transport));
        receiver
    }

    pub(super) fn transport(&self) -> Option<&dyn Transport> {
        self.transport.get().map(|transport| &**transport)
    }

    pub(super) fn forget_attributes(&self, node: NodeId) {
        if let Some(transport) = self.transport() {
            transport.forget_attributes(node);
        }
    }

    /// The kernel drops the pages of a node soon, if it has any.
    pub(super) fn drop_pages(&self, node: NodeId) {
        if !self.has_ended()
            && let Some(sender) = self.stale.get()
        {
            // The thread that receives ends with the file system, which has this sender.
            let _ = sender.lock().send(node);
        }
    }

    /// The mount has ended: no page is dropped any more.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    /// Whether the mount has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }
}

/// The device number of the mount, as `major, minor`, once it is known.
#[derive(Default)]
pub(super) struct Device(OnceLock<(u32, u32)>);

impl Device {
    pub(super) fn attach(&self, device: (u32, u32)) {
        // It does not change.
        let _ = self.0.set(device);
    }

    pub(super) fn get(&self) -> Option<(u32, u32)> {
        self.0.get().copied()
    }
}
