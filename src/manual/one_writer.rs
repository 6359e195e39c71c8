//! Why there is one writer.
//!
//! One process at a time has a vault open for writing. It holds an OFD lock on `VAULT/lock`, which the
//! kernel releases when the process ends, however it ends. Any number of processes of the host read
//! beside it.
//!
//! That rule removes a class of races instead of solving each: two drivers of one rotation; a writer
//! that seals under a key which another has retired; a version that one process erases while another
//! has it open; drafts of one file in two processes. It also gives a mount for writing the right to
//! remember what it has committed: a record that differs from that was changed by somebody else.
//!
//! Commands on a vault that is mounted for writing therefore go to its daemon, over `control.sock`. On a
//! free vault the command takes the lock and does the work itself, by the same code.
//!
//! Readers cannot know what the writer has done. They serve nothing older than what they have counted
//! or read themselves, count again after changes, and follow the keyring by its sequence.
//!
//! All writes of a process go through one queue, `vault/commit.rs`. What has gathered there is committed
//! together and synced once; of several users, the one who has had least of the disk comes next.
