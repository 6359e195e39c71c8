//! Records of a stored vault that are changed, cut, swapped, copied, removed, put back or added by
//! somebody without a key: each case is found, or harms nothing.

mod asked;
mod columns;
mod files;
mod flips;
mod limits;
mod live;
mod mixtures;
mod moves;
mod sample;
#[path = "../support/mod.rs"]
mod support;
