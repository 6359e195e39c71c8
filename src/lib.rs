//! secretfs mounts a *vault* as a directory in which every file is a secret.
//!
//! Each secret is encrypted under its own data keys, a master key wraps the data keys, and a KMS
//! key wraps the master key. Data flows one way, and imports point only downward (`codec`, `error`,
//! `os` and `sync` are at the bottom):
//!
//! ```text
//! cli -> daemon -> control -> fs -> vault -> keyring -> kms -> aws
//!                                     |         `-----> crypto
//!                                     `-> store
//! ```
//!
//! [`manual`] says why the parts are as they are.
#![deny(unsafe_code)]
#![warn(missing_docs, rust_2018_idioms, unreachable_pub)]
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used))]

mod aws;
pub mod cli;
pub mod codec;
pub mod config;
pub mod control;
pub mod crypto;
pub mod daemon;
pub mod error;
pub mod fs;
pub mod keyring;
pub mod kms;
pub mod manual;
pub mod os;
pub mod store;
mod sync;
pub mod vault;
