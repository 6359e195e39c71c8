//! Every decoder that meets hostile bytes: the corpora of the fuzz targets, run once.

mod bodies;
#[path = "../support/mod.rs"]
mod support;

mod corpora;
mod seed;
