//! What a host has to do with a vault beside holding it: the anchor by which it remembers the vault, the
//! guard that compares the two, and whether keys lie apart from the vault.

pub(super) mod anchor;
pub(super) mod apart;
pub(super) mod guard;
pub(super) mod memory;
