//! What a repair came to.

use std::path::PathBuf;

use serde::Serialize;

use super::super::check::CheckReport;

/// What a repair did.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Repairs {
    /// Number of deeds.
    pub count: u64,
    /// The first thousand of them. Name records by number: names are secrets.
    pub done: Vec<String>,
    /// Where the records are that were taken out.
    pub taken_out: Option<PathBuf>,
}

/// What a repair did, and what a check found afterwards.
#[derive(Clone, Debug, Serialize)]
pub struct RepairReport {
    /// What was done.
    pub repairs: Repairs,
    /// How the vault is now.
    #[serde(flatten)]
    pub check: CheckReport,
}
