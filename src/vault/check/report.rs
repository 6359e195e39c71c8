//! What a check came to.

use serde::Serialize;

use crate::store::NodeId;

/// More problems than these are counted, not listed.
const MAX_LISTED: usize = 1000;

/// What a check came to.
#[derive(Clone, Debug, Default, Serialize)]
pub struct CheckReport {
    /// The vault's id.
    pub vault: String,
    /// Nodes opened, the vault's own among them.
    pub nodes: u64,
    /// Files among them that have a name.
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
    /// The first thousand of them.
    pub problems: Vec<Problem>,
}

/// Something that is not as it was stored. Named by numbers: names are secrets.
#[derive(Clone, Debug, Serialize)]
pub struct Problem {
    /// The node concerned, if one is.
    pub node: Option<NodeId>,
    /// What is wrong.
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
