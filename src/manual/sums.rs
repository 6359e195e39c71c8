//! Why there are sums over all records.
//!
//! A seal shows that a record is genuine, and its associated data that it is in its place. Neither shows
//! that it is *current*: an older copy of the same record in the same place opens. Nor does it show that
//! a record is missing.
//!
//! So the state record holds, sealed, a sum modulo 2^256 of a keyed hash of every node and version
//! record (MSet-Add-Hash, Clarke et al., ASIACRYPT 2003), and each directory holds one of its entries.
//! A sum is changed in the transaction that changes a record, by subtracting the old hash and adding the
//! new: the cost does not depend on the size of the vault. A tree of hashes would cost a path of writes
//! for each change, and gives proofs of single records, which nobody needs here.
//!
//! An attacker who lacks the key cannot find another set of records with the same sum. If she puts back
//! the state record as well, its commit sequence is older: the anchor, outside of the vault, knows a
//! later one.
//!
//! Before a mount is announced all records are counted and the sums compared. From then on the mount
//! keeps a short mark of each record, so that it need not count again for each read.
//!
//! Every write transaction replaces the state record. So a compare of that one record is enough to make
//! any commit safe against another writer.
