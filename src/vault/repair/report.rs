//! The report of a repair.

use std::path::PathBuf;

use serde::Serialize;

use super::super::check::CheckReport;

/// The steps of a repair.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Repairs {
    /// Number of steps.
    pub count: u64,
    /// The first thousand steps. They identify records by number, because names are secrets.
    pub done: Vec<String>,
    /// The file with the removed records, if any.
    pub taken_out: Option<PathBuf>,
}

/// The steps of a repair, and the report of a check after it.
#[derive(Clone, Debug, Serialize)]
pub struct RepairReport {
    /// The steps.
    pub repairs: Repairs,
    /// The check of the vault after the repair.
    #[serde(flatten)]
    pub check: CheckReport,
}
