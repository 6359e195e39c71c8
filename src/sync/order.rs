//! The order in which locks are taken, and what each thread holds.

#[cfg(debug_assertions)]
use std::cell::Cell;

/// Defines the ranks, and their list.
macro_rules! ranks {
    ($($(#[$doc:meta])* $rank:ident,)+) => {
        /// Where a lock stands in the order, from those that are taken first to those that are taken
        /// while others are held. Each says what it guards.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum Rank {
            $($(#[$doc])* $rank,)+
        }

        #[cfg(debug_assertions)]
        const RANKS: &[Rank] = &[$(Rank::$rank,)+];
    };
}

ranks! {
    /// Of a control socket: what it controls, over each use of that.
    ControlSocket,
    /// Of an open directory: how far it was read, while more of it is read.
    DirectoryReading,
    /// Of a handle: the piece of a content that was read last, while another is read.
    LastPiece,
    /// Of a vault: who begins or drives a rotation, over all that it does.
    Driving,
    /// Of a vault: whether a thread follows the writer's keyring.
    Follower,
    /// Of a vault: the keyring record that could not be followed.
    FollowFailed,
    /// Of a vault: the turn to commit, with the state, over a whole transaction that writes. The only one
    /// that is not waited for at the lock: see `src/vault/commit.rs`.
    Turn,
    /// Of a vault: who takes up marks from what it reads, over a whole read when alone.
    Following,
    /// Of a vault: what this host remembers of it.
    HostMemory,
    /// Of a store: what keeps the checkpoint that begins the WAL anew apart from transactions that write.
    Writes,
    /// Of a store: the connection that writes, over a whole transaction and all that its jobs do.
    Writer,
    /// Of a store opened for reading: the connection that sees changes.
    ForeignChanges,
    /// Of a store: why nobody knows what is on disk, over a sync of the WAL.
    WalSync,
    /// Of a store: the WAL's descriptor.
    WalFile,
    /// Of a store: what its checkpoints are to do.
    Checkpoints,
    /// Of a store: connections that read.
    Readers,
    /// Of a vault: its keyring.
    Keyring,
    /// Of a vault: the keys of its system node.
    SystemKeys,
    /// Of a vault: the state as those see it who only look.
    Seen,
    /// Of a vault: what its history comes to.
    Chronicle,
    /// Of a vault: nodes that were read.
    CachedNodes,
    /// Of a vault: entries of directories that were read.
    CachedEntries,
    /// Of a vault: contents that were read, as they are stored.
    CachedContents,
    /// Of a vault: what was committed during a count.
    Meanwhile,
    /// Of a vault: marks of names, a part of them.
    MarkedNames,
    /// Of a vault: marks of nodes and versions, a part of them.
    MarkedRecords,
    /// Of a vault: records that are in the way of a rotation.
    Damage,
    /// Of a vault: how far a rotation has come.
    Figures,
    /// Of a vault: whether it was counted and is what its sums say.
    Verdict,
    /// Of a vault: why it could not be verified.
    VerdictFailure,
    /// Of a vault: the thread that counts it.
    CountingThread,
    /// Of a vault: records that were not what they should be.
    Findings,
    /// Of a vault: those that the history does not have yet.
    Unrecorded,
    /// Of a file system: its open nodes. Taken by jobs while they run, and by what is left of them when
    /// it is dropped.
    OpenNodes,
    /// Of a file system: its open handles.
    OpenHandles,
    /// Of a job: nodes that it is deleting.
    DyingNodes,
    /// Of a file system: its open directories.
    OpenDirectories,
    /// Of a file system: threads that were told `ESTALE`, and what is held for them.
    Askers,
    /// Of a file system: nodes to which something was appended.
    Appends,
    /// Of a vault: what waits to be committed, and whose turn it is.
    CommitQueue,
    /// Of a mount: the thread that commits.
    CommitThread,
    /// What came of a job, until it is told.
    JobResult,
    /// Of a file system: who has taken how much memory.
    Budget,
    /// Of a file system: nodes whose pages the kernel is to drop.
    StalePages,
    /// Of a transport: the threads that read requests.
    RequestThreads,
    /// Of a file system: what is to be touched.
    Touches,
    /// Of a file system: the touch under way.
    Touch,
    /// Of a file system: nodes that are gone and are to be touched.
    GoneNodes,
    /// Of a mount: the last command.
    LastCommand,
    /// Of a mount: the texts of its control files.
    ControlTexts,
    /// Of a mount: its control files that are open.
    ControlHandles,
    /// The thread that renders control files.
    Renderer,
    /// Of a rotation driver: whether something may be begun.
    RotationWanted,
    /// Of a control socket: connections that are served.
    Connections,
    /// Of a control socket: peers that wait for the end of the mount.
    Farewells,
    /// Of a routine: whether it is to stop.
    Routine,
    /// A thread of a mount, for whoever ends it.
    MountThread,
    /// Work that is shared among threads.
    Crew,
    /// The thread on which calls of AWS KMS run.
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
    /// A bit for each rank. It needs no destructor, so locks may be taken until a thread is gone.
    static HELD: Cell<u128> = const { Cell::new(0) };
}

#[cfg(debug_assertions)]
const _: () = assert!(RANKS.len() <= u128::BITS as usize);

/// That of a lock. In release builds nothing is known of it.
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

    /// Checks that the lock may be taken now.
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

    /// Notes that it was taken.
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

/// The bit that goes when the lock is let go.
pub(super) struct Held(#[cfg(debug_assertions)] u128);

#[cfg(debug_assertions)]
impl Drop for Held {
    fn drop(&mut self) {
        HELD.set(HELD.get() & !self.0);
    }
}
