//! What several test files share.
#![allow(dead_code, reason = "no test file uses all of it")]

pub mod disk;
pub mod evil;
pub mod kms_call;
pub mod kms_proxy;
pub mod layer;
pub mod load;
pub mod moto;
pub mod process;
pub mod reference;
pub mod tree;
