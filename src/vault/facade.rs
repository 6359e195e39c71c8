//! The vault as other modules see it: each question goes to the part that answers it.
//!
//! Only this and its [opening](open) reach into its fields. Each part gets the other parts that it
//! needs in its constructor.

mod open;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::keyring::{HistoryHead, Keyring};
use crate::kms::{KeyUri, Kms};
use crate::store::{Durability, Footprint, NameTag, NodeId};
use crate::sync::Mutex;

use super::VaultError;
use super::chronicle::Chronicle;
use super::commit::Committer;
use super::commit::transact::Transactions;
use super::content::Version;
use super::counting::Counter;
use super::findings;
use super::follow::Follower;
use super::history::{self, HistoryLine};
use super::host::memory::HostMemory;
use super::integrity::{Findings, Guard, Integrity};
use super::leftovers::Leftovers;
use super::node::{FileBody, Node};
use super::pieces::LastChunk;
use super::reading::{Content, Listing, Reader, Since};
use super::records::Records;
use super::rotation::{Outcome, Progress, Request, Rotation};
use super::state::State;
use super::summary::{self, Summary};
use super::tx::Job;
pub(super) use open::claimed_id;
pub use open::{Verify, id_at};

/// An open, unlocked vault.
pub struct Vault {
    records: Arc<Records>,
    reader: Reader,
    transactions: Arc<Transactions>,
    counter: Counter,
    leftovers: Leftovers,
    rotation: Rotation,
    /// For a vault that is open for reading only.
    follower: Option<Arc<Follower>>,
    guard: Arc<Guard>,
    host: Arc<HostMemory>,
    /// A summary of the key-management history.
    chronicle: Arc<Mutex<Chronicle>>,
    /// The KMS that wraps the master keys, and the KMS keys that it may use.
    kms: Arc<Kms>,
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Vault({})", self.path().display())
    }
}

impl Vault {
    /// The stored records.
    pub(super) fn records(&self) -> &Records {
        &self.records
    }

    /// The write transactions.
    pub(super) fn transactions(&self) -> &Transactions {
        &self.transactions
    }

    /// This host's memory of the vault.
    pub(super) fn host(&self) -> &HostMemory {
        &self.host
    }

    // --- what it is --------------------------------------------------------------------------

    /// The vault's directory.
    pub fn path(&self) -> &Path {
        self.records.path()
    }

    /// The vault's directory, to which no other process writes. Not available in a vault opened for
    /// reading.
    ///
    /// # Errors
    /// The store's.
    pub fn locked_directory(&self) -> Result<std::fs::File, VaultError> {
        Ok(self.records.place().locked_directory()?)
    }

    /// Fails if this vault is no longer at its path.
    ///
    /// # Errors
    /// The store's.
    pub fn check_unmoved(&self) -> Result<(), VaultError> {
        Ok(self.records.place().check_unmoved()?)
    }

    /// Whether the vault was opened for reading only.
    pub fn is_read_only(&self) -> bool {
        self.records.is_read_only()
    }

    /// Whether records that do not match are passed over instead of being errors.
    pub fn is_salvage(&self) -> bool {
        self.records.is_salvage()
    }

    /// The present keyring.
    pub fn keyring(&self) -> Arc<Keyring> {
        self.records.keyring()
    }

    /// The state of the last commit, by this process or by the writer beside it.
    pub fn state(&self) -> State {
        self.records.state()
    }

    /// The bytes of the marks of current records, and their number.
    pub fn known_records(&self) -> (u64, u64) {
        self.records.current().size()
    }

    /// The facts that `status` shows.
    pub fn summary(&self) -> Summary {
        summary::summary(&summary::Parts {
            records: &self.records,
            rotation: &self.rotation,
            host: &self.host,
            chronicle: &self.chronicle,
            kms: &self.kms,
        })
    }

    // --- reading -----------------------------------------------------------------------------

    /// A node.
    ///
    /// # Errors
    /// `NotFound` when there is none.
    pub fn node(&self, id: NodeId) -> Result<Arc<Node>, VaultError> {
        self.reader.node(id)
    }

    /// The node that `name` names in `directory`.
    ///
    /// # Errors
    /// `NotFound` when there is no such name.
    pub fn lookup(&self, directory: NodeId, name: &[u8]) -> Result<Arc<Node>, VaultError> {
        self.reader.lookup(directory, name)
    }

    /// Like [`lookup`](Self::lookup), with the content of the node from the same snapshot. The
    /// content is whole if it has at most the bytes that `whole` returns for the node.
    ///
    /// # Errors
    /// As for [`lookup`](Self::lookup), and for the content as for [`content`](Self::content).
    pub fn lookup_with_content(
        &self,
        directory: NodeId,
        name: &[u8],
        whole: &mut dyn FnMut(&FileBody) -> u64,
    ) -> Result<(Arc<Node>, Result<Content, VaultError>), VaultError> {
        self.reader.lookup_with_content(directory, name, whole)
    }

    /// At most `limit` entries of a directory, those filed after `after`. `with_nodes` also reads
    /// their nodes, in one transaction instead of many.
    ///
    /// # Errors
    /// When the node is no directory, or an entry does not authenticate.
    pub fn list(
        &self,
        directory: NodeId,
        after: Option<&NameTag>,
        limit: usize,
        with_nodes: bool,
    ) -> Result<Listing, VaultError> {
        self.reader.list(directory, after, limit, with_nodes)
    }

    /// A file's current content and its node. The content is whole if it has at most `whole` bytes.
    ///
    /// # Errors
    /// When the node is no file, or does not authenticate.
    pub fn content(&self, id: NodeId, whole: u64) -> Result<(Arc<Node>, Content), VaultError> {
        self.content_within(id, &mut |_| whole)
    }

    /// The same, with a function for the limit: before any content is read, `whole` gets the node,
    /// perhaps more than once, and returns the limit. It must not wait.
    ///
    /// # Errors
    /// As [`content`](Self::content).
    pub fn content_within(
        &self,
        id: NodeId,
        whole: &mut dyn FnMut(&FileBody) -> u64,
    ) -> Result<(Arc<Node>, Content), VaultError> {
        self.reader.content_within(id, whole)
    }

    /// One version of a file's content.
    ///
    /// # Errors
    /// When it is missing or does not authenticate.
    pub fn version(&self, id: NodeId, number: u64, whole: u64) -> Result<Content, VaultError> {
        self.reader.version(id, number, whole)
    }

    /// Fills `out` with a version's content from `offset` on; the version must be that long. After
    /// an error, callers must not use `out`.
    ///
    /// # Errors
    /// When a chunk is missing or does not authenticate.
    pub fn read_at(
        &self,
        version: &Version,
        offset: u64,
        out: &mut [u8],
        last: &mut LastChunk,
    ) -> Result<(), VaultError> {
        last.read(&self.records, version, offset, out)
    }

    /// The changes of nodes since these revisions, in one transaction. Nodes that still have their
    /// revision are not opened.
    ///
    /// # Errors
    /// When the store fails, or a node does not authenticate.
    pub fn since(&self, nodes: &[(NodeId, Option<u64>)]) -> Result<Vec<Since>, VaultError> {
        self.reader.since(nodes)
    }

    // --- beside another process --------------------------------------------------------------

    /// A number that changes whenever another process commits. Cheap.
    ///
    /// # Errors
    /// The store's.
    pub fn changes_of_others(&self) -> Result<u64, VaultError> {
        Ok(self.records.store().foreign_changes()?)
    }

    /// The present state of the vault's files. Any change makes it differ.
    ///
    /// # Errors
    /// When the files cannot be examined.
    pub fn footprint(&self) -> Result<Footprint, VaultError> {
        let changes = self.records.store().foreign_changes()?;
        Ok(self.records.place().footprint(changes)?)
    }

    /// Follows the writer's keyring until `go_on` breaks. It needs a thread of its own.
    pub fn follow(&self, go_on: &dyn Fn() -> ControlFlow<()>) {
        if let Some(follower) = &self.follower {
            follower.follow(go_on);
        }
    }

    // --- writing -----------------------------------------------------------------------------

    /// Whether the vault refuses to write until it is reopened, because a failure left unknown what
    /// is on disk.
    pub fn has_stopped_writing(&self) -> bool {
        self.transactions.has_stopped_writing()
    }

    /// Runs `jobs` in one transaction. Each succeeds or fails alone. The outer error means that
    /// none had an effect, or that it is unknown whether they are on disk.
    ///
    /// # Errors
    /// When the vault is open for reading only, or the store fails.
    pub fn transact(
        &self,
        durability: Durability,
        jobs: &mut [Job<'_>],
    ) -> Result<Vec<Result<(), VaultError>>, VaultError> {
        self.transactions.transact(durability, jobs)
    }

    /// Starts the thread that commits the jobs of a mount. A caller that leaves a job to it calls
    /// `left_to_another`.
    ///
    /// # Errors
    /// When the thread cannot start, or the vault has one already.
    pub(crate) fn start_committer(&self, left_to_another: fn()) -> std::io::Result<Committer> {
        Committer::start(Arc::clone(&self.transactions), left_to_another)
    }

    /// Makes all commits durable.
    ///
    /// # Errors
    /// When the store fails.
    pub fn sync(&self) -> Result<(), VaultError> {
        self.records.sync()
    }

    /// At most `limit` nodes registered for reaping, after `after`.
    ///
    /// # Errors
    /// When the store fails.
    pub fn orphans(&self, after: Option<NodeId>, limit: usize) -> Result<Vec<NodeId>, VaultError> {
        self.leftovers.listed(after, limit)
    }

    /// Reaps all nodes on the list. Callers do this while no node is open: before a mount is
    /// served, and after it ends.
    ///
    /// # Errors
    /// When the store fails.
    pub fn reap_orphans(&self) -> Result<(), VaultError> {
        self.leftovers.reap()
    }

    /// Nodes that have no name, or stored versions that nothing refers to, and are not on the list
    /// for reaping: an attacker has removed them from it. Notes them as findings. The caller, who
    /// knows which nodes are open, reaps them.
    ///
    /// # Errors
    /// When the store fails, or a node does not authenticate.
    pub fn left_over(&self) -> Result<Vec<NodeId>, VaultError> {
        self.leftovers.find()
    }

    // --- integrity ---------------------------------------------------------------------------

    /// The verdict on the vault as a whole.
    pub fn integrity(&self) -> Integrity {
        self.guard.integrity()
    }

    /// Records that were not as they should be.
    pub fn findings(&self) -> Findings {
        self.guard.findings()
    }

    /// Sets the function that receives each finding, in words.
    pub fn on_alarm(&self, alarm: impl Fn(&str) + Send + Sync + 'static) {
        self.guard.on_alarm(Box::new(alarm));
    }

    /// Waits for the verdict, at most `patience`; `None` without one by then.
    ///
    /// # Errors
    /// When the vault does not match its sums, or counting failed.
    pub fn await_verdict(&self, patience: Option<Duration>) -> Option<Result<(), VaultError>> {
        self.guard.await_verdict(patience)
    }

    /// Waits for the verdict if service must wait for it. False if the mount ends without one.
    pub fn await_verdict_or_end(&self) -> bool {
        self.guard.await_verdict_or_end()
    }

    /// Whether a user of the vault would have to wait for the verdict.
    pub fn is_awaited(&self) -> bool {
        self.guard.is_awaited()
    }

    /// Waits until the vault may be served; for threads that read or write without a request.
    /// Returns whether it may.
    pub fn await_service(&self) -> bool {
        self.guard.await_service()
    }

    /// Stops a count under way, which then never reaches a verdict.
    pub fn stop_counting(&self) {
        self.guard.stop_counting();
    }

    /// Notes a finding if the error is damage.
    pub fn note_damage(&self, error: &VaultError) {
        self.guard.note_damage(error);
    }

    /// Whether the vault is no longer served.
    pub fn is_condemned(&self) -> bool {
        self.guard.is_condemned()
    }

    /// Counts all records, compares them with the sealed state, and keeps their marks.
    ///
    /// # Errors
    /// `Integrity` when an attacker has replayed, inserted or deleted part of the vault.
    pub fn recount(&self) -> Result<(), VaultError> {
        self.counter.count(&|| ControlFlow::Continue(())).map(drop)
    }

    /// Counts a vault again that another process may have written. If it does not match its sums,
    /// the mount serves nothing more.
    ///
    /// # Errors
    /// When the vault does not match its sums, or counting failed.
    pub fn count_afresh(&self) -> Result<(), VaultError> {
        self.counter.count_afresh()
    }

    /// Records new findings in the history. A vault opened for reading cannot; a condemned vault
    /// can once a count shows that it is right again.
    ///
    /// # Errors
    /// When the history cannot be written; the next call tries again.
    pub fn record_findings(&self) -> Result<(), VaultError> {
        match self.is_read_only() {
            true => Ok(()),
            false => findings::record(&self.guard, &self.counter, &self.transactions),
        }
    }

    /// The end of the key-management history. The history only grows, and another one of the same
    /// length has another hash.
    pub fn history_head(&self) -> HistoryHead {
        self.keyring().body().history.clone()
    }

    /// The key-management history, its chain verified.
    ///
    /// # Errors
    /// `Integrity` when an event was changed, removed or reordered.
    pub fn history(&self) -> Result<Vec<HistoryLine>, VaultError> {
        history::read_all(&self.records)
    }

    // --- what this host remembers ------------------------------------------------------------

    /// Stores the vault's commit in this host's memory if it has grown; callers do this every few
    /// seconds. The commit is on disk before the host remembers it: otherwise a power cut would
    /// look like an attack.
    ///
    /// # Errors
    /// When the vault cannot be read or synced, or the anchor cannot be written.
    pub fn keep_anchor(&self) -> Result<(), VaultError> {
        self.records.look()?;
        // Read the commit before the sync.
        let commit = self.records.seen().commit;
        self.host.keep(commit, || self.sync())
    }

    /// The first of `keys` that neither wraps the vault's master key nor was named when it was
    /// opened.
    ///
    /// # Errors
    /// When the keyring names an invalid KMS key.
    pub fn first_unknown_key<'k>(
        &self,
        keys: &'k [KeyUri],
    ) -> Result<Option<&'k KeyUri>, VaultError> {
        let now_under = self.keyring().kms_keys()?;
        Ok(self.host.first_unknown_key(keys, &now_under))
    }

    // --- rotations ---------------------------------------------------------------------------

    /// The progress of the rotation under way; `None` when there is none.
    pub fn progress(&self) -> Option<Progress> {
        self.rotation.progress()
    }

    /// Whether a rotation is under way.
    pub fn is_rotating(&self) -> bool {
        self.rotation.is_rotating()
    }

    /// The time until the master key is `every` old.
    pub fn until_rotation(&self, every: Duration) -> Duration {
        self.rotation.until_rotation(every)
    }

    /// Begins a rotation, which calls the KMS. Once this returns, the rotation will complete, even
    /// after a crash, unless the KMS does not unwrap what it has just wrapped.
    /// [`drive`](Self::drive) does the rest.
    ///
    /// # Errors
    /// `Busy` when one is under way; when KMS does not wrap, or does not unwrap what it wrapped, or
    /// the intent cannot be stored. Then nothing has changed.
    pub fn begin(&self, request: &Request) -> Result<(), VaultError> {
        self.rotation.begin(request)
    }

    /// Continues the rotation under way to its end, whichever process began it. It calls `go_on`
    /// between steps and batches.
    ///
    /// # Errors
    /// When a record does not authenticate, or the store fails. The rotation stays where it is and
    /// goes on the next time.
    pub fn drive(&self, go_on: &dyn Fn() -> ControlFlow<()>) -> Result<Outcome, VaultError> {
        self.rotation.drive(go_on)
    }
}
