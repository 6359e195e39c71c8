//! What several test files share.
#![allow(dead_code, reason = "no test file uses all of it")]

pub mod at_work;
pub mod attacker;
pub mod aws;
pub mod cache;
pub mod cgroup;
pub mod child;
pub mod clock;
pub mod contents;
pub mod core_pattern;
pub mod damaged;
pub mod disk;
pub mod evil;
pub mod failing_disk;
pub mod forbid;
pub mod forge;
pub mod idmap;
pub mod keys;
pub mod kms_call;
pub mod kms_proxy;
pub mod layer;
pub mod ledger;
pub mod listing;
pub mod load;
pub mod map;
pub mod memory;
pub mod moto;
pub mod process;
pub mod put_back;
pub mod reference;
pub mod rotating;
pub mod socket;
pub mod tree;
pub mod venv;
pub mod versions;
pub mod watching;
