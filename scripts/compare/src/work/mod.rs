//! The kinds of work that are measured.

pub mod drafts;
pub mod fairness;
pub mod fresh;
pub mod large;
pub mod programs;
pub mod read;
pub mod replace;
pub mod scale;
pub mod start;
