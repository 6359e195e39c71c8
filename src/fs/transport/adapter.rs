//! The adapter, which every request needs: it has the front door, and knows the caller and the
//! request threads.

use std::cell::Cell;
use std::sync::Arc;

use fuser::{INodeNo, ReplyEntry, Request};

use super::super::entry::FrontDoor;
use super::super::{Attr, Caller, Done};
use super::convert::MAX_TRANSFER;
use super::replies::{self, ByNumber};
use super::threads::{AtWork, RequestThreads};
use super::who::Known;
use crate::crypto::memory;

/// Serves a file system through fuser.
#[derive(Debug)]
pub(super) struct Adapter {
    pub(super) door: Arc<FrontDoor>,
    threads: Arc<RequestThreads>,
    known: Known,
}

impl Adapter {
    /// An adapter for `door`, on `threads`. `known` is the source of the caller.
    pub(super) fn new(door: Arc<FrontDoor>, threads: Arc<RequestThreads>, known: Known) -> Self {
        Self {
            door,
            threads,
            known,
        }
    }

    /// Whether mounts of the file system may be idmapped.
    pub(super) fn is_idmapped(&self) -> bool {
        self.known != Known::ByKernel
    }

    /// Begins a request, before anything else. The request lasts until the result is dropped.
    pub(super) fn begin(&self, request: &Request) -> AtWork {
        received(request);
        self.threads.begin()
    }

    /// Begins a RELEASE in the same way.
    pub(super) fn begin_release(&self, request: &Request) -> AtWork {
        received(request);
        self.threads.begin_release()
    }

    /// The calling thread, and its user.
    pub(super) fn caller(&self, request: &Request) -> Caller {
        self.known.caller(request)
    }

    /// The same, exact only if it `matters`: the look-up may take longer than the answer.
    pub(super) fn caller_if(&self, matters: bool, request: &Request) -> Caller {
        self.known.caller_if(matters, request)
    }

    /// Answers with a node that the kernel knows from now on.
    pub(super) fn entry(&self, reply: ReplyEntry) -> Done<Attr> {
        replies::entry(&self.door, reply)
    }

    /// Turns failures of a request that names a node by number into replies.
    pub(super) fn by_number(&self, request: &Request, ino: INodeNo) -> ByNumber {
        let door = &self.door;
        ByNumber {
            beside_writer: door.vault().is_read_only().then(|| Arc::clone(door)),
            thread: request.pid(),
            ino: ino.0,
        }
    }
}

thread_local! {
    static RECEIVED: Cell<bool> = const { Cell::new(false) };
}

/// Keeps the stack of this thread, and its buffer for names and contents, out of swap. fuser has
/// one buffer for each thread, and a request is at its beginning. Pages behind the largest request
/// are never touched.
fn received(request: &Request) {
    if !RECEIVED.replace(true) {
        let start = std::ptr::from_ref(request).cast();
        memory::keep_in(start, MAX_TRANSFER as usize + 4096);
        memory::keep_stack_in();
    }
}
