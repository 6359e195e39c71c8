//! KMS keys: those of AWS over HTTP, and the local ones.

#[path = "../support/mod.rs"]
mod support;

mod aws;
mod aws_calls;
mod aws_errors;
mod credential;
mod endpoint;
mod local;
mod same_disk;

#[test]
#[ignore = "runs within other tests"]
fn kms_child() {
    support::kms_call::child();
}
