//! What this host has to do with a vault, beside holding it: the anchor that it remembers the vault by,
//! the guard that compares the two, and whether keys lie apart from the vault.

pub(super) mod anchor;
pub(super) mod apart;
pub(super) mod guard;
