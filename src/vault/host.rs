//! The host's side of a vault: the anchor, which is its memory of the vault, the guard against
//! rollback, which compares the two, and the check that keys are apart from the vault.

pub(super) mod anchor;
pub(super) mod apart;
pub(super) mod guard;
pub(super) mod memory;
