//! The file system's notifications to the kernel, which go through the transport. Without a
//! transport, as in tests, there is no kernel that stores anything.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, mpsc};

use crate::store::NodeId;
use crate::sync::{Mutex, Rank};

/// Carries the requests of a kernel, and notifications to it.
pub trait Transport: Send + Sync {
    /// Makes the kernel drop all pages of a node. A thread of its own calls this: inside a request
    /// the call could wait for that very request.
    fn drop_pages(&self, node: NodeId);

    /// Makes the kernel forget a node's attributes, and ignore those in answers on their way.
    /// Requests call this, so it must neither wait nor touch pages.
    fn forget_attributes(&self, node: NodeId);

    /// Returns when every RELEASE that the kernel sent before has been handled. A transport that
    /// begins requests in order has nothing to wait for.
    fn await_releases(&self);
}

/// The kernel, once a transport is attached.
#[derive(Default)]
pub(super) struct Kernel {
    transport: OnceLock<Arc<dyn Transport>>,
    /// Sends the nodes whose pages to drop.
    stale: OnceLock<Mutex<mpsc::Sender<NodeId>>>,
    /// The mount has ended, and the kernel gets no more notifications.
    ended: AtomicBool,
}

impl Kernel {
    /// Attaches `transport`. The returned receiver gets each node whose pages to drop.
    pub(super) fn attach(&self, transport: &Arc<dyn Transport>) -> mpsc::Receiver<NodeId> {
        let (sender, receiver) = mpsc::channel();
        // A second transport would do the same.
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

    /// Makes the kernel drop the pages of a node soon.
    pub(super) fn drop_pages(&self, node: NodeId) {
        if !self.has_ended()
            && let Some(sender) = self.stale.get()
        {
            // The receiving thread ends with the file system, which owns this sender.
            let _ = sender.lock().send(node);
        }
    }

    /// Notes the end of the mount: no more pages are dropped.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    /// Whether the mount has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }
}

/// The device number of the mount, as `major, minor`, once known.
#[derive(Default)]
pub(super) struct Device(OnceLock<(u32, u32)>);

impl Device {
    pub(super) fn attach(&self, device: (u32, u32)) {
        // The number never changes.
        let _ = self.0.set(device);
    }

    pub(super) fn get(&self) -> Option<(u32, u32)> {
        self.0.get().copied()
    }
}
