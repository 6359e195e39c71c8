//! The report of a check.

use serde::Serialize;

use crate::store::NodeId;

/// Limit on listed problems; more are only counted.
const MAX_LISTED: usize = 1000;

/// The report of a check.
#[derive(Clone, Debug, Default, Serialize)]
pub struct CheckReport {
    /// The vault's id.
    pub vault: String,
    /// Nodes opened, including the vault's own.
    pub nodes: u64,
    /// Files that have a name.
    #[serde(skip)]
    pub files: u64,
    /// Names opened.
    pub entries: u64,
    /// Versions opened.
    pub versions: u64,
    /// Chunks opened.
    pub chunks: u64,
    /// Key-management events verified.
    pub events: u64,
    /// Bytes of content opened, without padding.
    pub bytes: u64,
    /// Number of problems.
    pub problem_count: u64,
    /// The first thousand problems.
    pub problems: Vec<Problem>,
}

/// A record that is not as it was stored, identified by number, because names are secrets.
#[derive(Clone, Debug, Serialize)]
pub struct Problem {
    /// The node, if the problem concerns one.
    pub node: Option<NodeId>,
    /// The defect.
    pub what: String,
}

impl CheckReport {
    pub(super) fn add(&mut self, node: Option<NodeId>, what: impl std::fmt::Display) {
        self.problem_count += 1;
        if self.problems.len() < MAX_LISTED {
            self.problems.push(Problem {
                node,
                what: what.to_string(),
            });
        }
    }
}
