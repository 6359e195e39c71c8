//! The vault: nodes, names and contents, opened from records and sealed into them, in transactions
//! that keep the whole provably consistent.
//!
//! Nothing here knows about file descriptors, kernels or processes. Every record from the store is
//! authenticated before any part of it is used.

/// A point at which tests can make the process die as if it were killed. Compiled into tests only.
macro_rules! die_at {
    ($point:literal) => {
        fail::fail_point!($point, |_| std::process::abort())
    };
}

mod backup;
mod cache;
mod check;
mod chronicle;
mod commit;
mod content;
mod counting;
mod crew;
mod current;
mod dates;
pub mod decode;
mod entry;
mod error;
mod facade;
mod findings;
mod follow;
mod history;
mod host;
mod init;
mod integrity;
mod keys;
mod leftovers;
mod node;
mod ops;
mod options;
mod pause;
mod pieces;
mod reading;
mod records;
mod renewing;
mod repair;
mod rotation;
mod state;
mod summary;
#[cfg(test)]
mod tests;
mod tx;
mod unlocked;

pub use crate::store::Footprint;
pub use backup::{CopyReport, NeededKey, backup, restore};
pub use check::{CheckReport, Problem, check};
pub use chronicle::RetiredGeneration;
pub(crate) use commit::{Committer, Ticket, Whose};
pub use content::{CHUNK, Version};
pub use dates::{SUFFIX as TIME_SUFFIX, rfc3339, time_of, with_times};
pub use entry::{Entry, MAX_NAME};
pub use error::{Failure, VaultError};
pub use facade::{Vault, Verify, id_at};
pub use history::HistoryLine;
pub use host::anchor::{Anchor, Anchors, decode as decode_anchor};
pub(crate) use host::apart::real_path;
pub use host::memory::AnchorSummary;
pub use init::{Created, init};
pub use integrity::{Finding, Findings, Integrity};
pub use node::{
    Attributes, DirectoryBody, FileBody, Kind, Node, NodeBody, ROOT, Remainder, SYSTEM, Timestamp,
};
pub use ops::{
    AttributeChange, MAX_LINKS, MAX_XATTRS, NewNode, NothingOpen, OpenFiles, Publication,
    RenameMode,
};
pub use options::{InitOptions, OpenOptions};
pub use pieces::LastChunk;
pub use reading::{Content, Listing, Since};
pub use repair::{RepairReport, Repairs, repair};
pub use rotation::{BLOCKED, Outcome, Phase, Progress, Request};
pub use state::State;
pub use summary::{GenerationSummary, Summary, WrapSummary};
pub use tx::{Job, PIECE, Tx, pieces_of, publish_staged, stage_piece};
