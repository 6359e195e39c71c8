//! What no single file shows: why the parts are as they are. The pages for users are in `man/`; the
//! format is in secretfs-vault(5).
//!
//! # The rooms
//!
//! Imports point only downward, and no circle runs between files. `tests/docs/house.rs` has the table
//! and fails where that does not hold.
//!
//! | room | what it does |
//! |---|---|
//! | `cli` | a file for each command: arguments, output, nothing else; the man pages |
//! | `daemon` | start order, hardening, mounting, signals, the log |
//! | `control` | commands, `status`, the files of `.secretfs`, the socket |
//! | `fs` | handles, drafts, publication, errno; only `fs/transport` knows fuser |
//! | `vault` | nodes, names, versions, sums; `check`, rotation, backup |
//! | `keyring` | master keys and their history |
//! | `config` | one table of settings |
//! | `kms` | local keys, AWS KMS |
//! | `aws` | credentials, endpoints, errors of AWS |
//! | `crypto` | labels, seal, open, memory; all derivations are in `crypto/schedule.rs` |
//! | `store` | transactions, one writer; SQLite as hostile input |
//! | `codec`, `error`, `os`, `sync` | the ground: encoding, classes of failure, the kernel, locks |
//!
//! Tests are named after promises. They run real mounts and a real KMS endpoint (moto, over HTTP); they
//! fail, and never skip, where something is missing. After a change of a command, a setting or a page
//! run `secretfs man --dir man`.
//!
//! # The scripts
//!
//! | script | what it does |
//! |---|---|
//! | `scripts/quickstart` | builds, and shows the main job |
//! | `scripts/install` | builds, and installs program, debug information and man pages |
//! | `scripts/test` | installs what the tests need, and runs them all |
//! | `scripts/fuzz` | fuzzes the decoders of hostile bytes, for ten minutes each |
//! | `scripts/soak` | writes, reads, unmounts, kills and checks for as long as wanted; `--rotations 300` kills as many rotations, `--sizes` reads while contents are replaced |
//! | `scripts/rotation-scale` | time and memory of rotations of a large vault, beside the bare work |
//! | `scripts/rotation-latency` | times of reads and writes while keys are replaced |
//! | `scripts/bench` | measures beside gocryptfs, securefs, CryFS, bindfs and tmpfs |
//! | `.ci/run` | format, lints, tests |

pub mod disk;
pub mod drafts;
pub mod locks;
pub mod one_writer;
pub mod sums;
