//! Every decoder that meets hostile bytes: the corpora of the fuzz targets, run once.
#![allow(
    clippy::duplicate_mod,
    reason = "the bodies stand in fuzz programs, too, which have no `support`"
)]

mod bodies;
#[path = "../support/mod.rs"]
mod support;

mod corpora;
mod seed;
