//! The order of locks, and the locks that each thread holds.

#[cfg(debug_assertions)]
use std::cell::Cell;

/// Defines the ranks and their list.
macro_rules! ranks {
    ($($(#[$doc:meta])* $rank:ident,)+) => {
        /// A lock's place in the order. Threads take earlier locks first, and may take later ones
        /// while they hold them. Each rank names the data under its locks.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum Rank {
            $($(#[$doc])* $rank,)+
        }

        #[cfg(debug_assertions)]
        const RANKS: &[Rank] = &[$(Rank::$rank,)+];
    };
}

ranks! {
    /// Of a control socket: its controller. Held over each use of it.
    ControlSocket,
    /// Of an open directory: the position of the listing. Held while more of it is read.
    DirectoryReading,
    /// Of a handle: the last piece of a content. Held while another is read.
    LastPiece,
    /// Of a vault: the thread that begins or drives a rotation. Held over everything it does.
    Driving,
    /// Of a vault: the turn to commit, with the state. Held over a whole write transaction. It is
    /// the only one for which threads do not wait at the lock: see `src/vault/commit.rs`.
    Turn,
    /// Of a store: keeps the checkpoint that restarts the WAL apart from write transactions.
    Writes,
    /// Of a store: the connection that writes. Held over a whole transaction, with everything that
    /// its jobs do.
    WriteConnection,
    /// Of a file system: its open nodes. Jobs take it while they run, and the remains of a job when
    /// it is dropped.
    OpenNodes,
    /// Of an open node: the decryption of a large content. Held over that.
    Loading,
    /// Of an open node: its handles and drafts. Jobs take it while they run, and requests hold it while
    /// they read the vault.
    NodeState,
    /// Of a vault: whether a thread follows the keyring of the writer.
    Follower,
    /// Of a vault: the keyring record that could not be followed.
    FollowFailed,
    /// Of a vault: readers that take up marks share it. One that must not be overtaken holds it
    /// alone, over a whole read.
    Following,
    /// Of a vault: this host's memory of it.
    HostMemory,
    /// Of a store opened for reading: the connection that sees changes.
    ForeignChanges,
    /// Of a store: why nobody knows what is on disk. Held over a sync of the WAL.
    WalSync,
    /// Of a store: the WAL's descriptor.
    WalFile,
    /// Of a store: the orders to its checkpoint thread.
    Checkpoints,
    /// Of a store: connections that read.
    Readers,
    /// Of a vault: its keyring.
    Keyring,
    /// Of a vault: the keys of its system node.
    SystemKeys,
    /// Of a vault: the state as shown to readers.
    Seen,
    /// Of a vault: the summary of its history.
    Chronicle,
    /// Of a vault: nodes that were read.
    CachedNodes,
    /// Of a vault: entries of directories that were read.
    CachedEntries,
    /// Of a vault: contents that were read, as they are stored.
    CachedContents,
    /// Of a vault: the commits during a count.
    Meanwhile,
    /// Of a vault: one part of the marks of names.
    MarkedNames,
    /// Of a vault: one part of the marks of nodes and versions.
    MarkedRecords,
    /// Of a vault: records that block a rotation.
    Damage,
    /// Of a vault: the progress of a rotation.
    Figures,
    /// Of a vault: whether it was counted and matches its sums.
    Verdict,
    /// Of a vault: why it could not be verified.
    VerdictFailure,
    /// Of a vault: the thread that counts it.
    CountingThread,
    /// Of a vault: findings, which are records that were not what they should be.
    Findings,
    /// Of a vault: findings that are not in the history yet.
    Unrecorded,
    /// Of a file system: its open handles.
    OpenHandles,
    /// Of a job: nodes that it is deleting.
    DyingNodes,
    /// Of a file system: its open directories.
    OpenDirectories,
    /// Of a file system: threads that got `ESTALE`, and the nodes held for them.
    Askers,
    /// Of a file system: nodes with appended data.
    Appends,
    /// Of a vault: the jobs to commit, and the turn to commit them.
    CommitQueue,
    /// Of a mount: the thread that commits.
    CommitThread,
    /// The result of a job, until the caller gets it.
    JobResult,
    /// Of a file system: the memory that each user has taken.
    Budget,
    /// Of a file system: nodes whose pages the kernel must drop.
    StalePages,
    /// Of a transport: the threads that read requests.
    RequestThreads,
    /// Of a file system: the nodes to touch.
    Touches,
    /// Of a file system: the touch under way.
    Touch,
    /// Of a file system: deleted nodes to touch.
    GoneNodes,
    /// Of a mount: the last command.
    LastCommand,
    /// Of a mount: the texts of its control files.
    ControlTexts,
    /// Of a mount: its open control files.
    ControlHandles,
    /// The thread that renders control files.
    Renderer,
    /// Of a rotation driver: whether a rotation may be waiting to begin.
    RotationWanted,
    /// Of a control socket: the connections being served.
    Connections,
    /// Of a control socket: peers that wait for the end of the mount.
    Farewells,
    /// Of a routine: whether it has to stop.
    Routine,
    /// A thread of a mount, for the thread that ends it.
    MountThread,
    /// Work shared among threads.
    Crew,
    /// The thread that runs calls of AWS KMS.
    AwsWorker,
    /// Clients of AWS KMS by region.
    AwsSessions,
    /// AWS credentials.
    AwsCredentials,
    /// Free pieces of memory for secrets.
    Slabs,
    /// Free mappings for secrets.
    Spares,
    /// When something was logged last.
    LogLimiter,
    /// The log file. Something may be logged while any other lock is held.
    LogFile,
}

#[cfg(debug_assertions)]
thread_local! {
    /// One bit for each rank. It needs no destructor, so a thread may take locks until its very
    /// end.
    static HELD: Cell<u128> = const { Cell::new(0) };
}

#[cfg(debug_assertions)]
const _: () = assert!(RANKS.len() <= u128::BITS as usize);

/// The rank of a lock; empty in release builds.
pub(super) struct Place {
    #[cfg(debug_assertions)]
    rank: Rank,
}

impl Place {
    #[cfg_attr(not(debug_assertions), allow(unused_variables))]
    pub(super) const fn new(rank: Rank) -> Self {
        Self {
            #[cfg(debug_assertions)]
            rank,
        }
    }

    /// Checks that the thread may take the lock now, and notes that it does.
    #[inline]
    pub(super) fn take(&self) -> Held {
        #[cfg(debug_assertions)]
        {
            let after = HELD.get() >> self.rank as u32;
            assert!(
                after == 0,
                "a thread takes the lock {:?} while it holds {:?}, which stands after it (src/sync/order.rs)",
                self.rank,
                RANKS.get(self.rank as usize + after.ilog2() as usize),
            );
        }
        self.note()
    }

    /// Notes that the thread took the lock.
    #[inline]
    pub(super) fn note(&self) -> Held {
        #[cfg(debug_assertions)]
        {
            let (held, bit) = (HELD.get(), 1 << self.rank as u32);
            HELD.set(held | bit);
            Held(bit & !held)
        }
        #[cfg(not(debug_assertions))]
        Held()
    }
}

/// Clears the lock's bit when the lock is released.
pub(super) struct Held(#[cfg(debug_assertions)] u128);

#[cfg(debug_assertions)]
impl Drop for Held {
    fn drop(&mut self) {
        HELD.set(HELD.get() & !self.0);
    }
}
