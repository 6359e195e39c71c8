//! The file system: the meaning of open, read, write, rename and so on for secrets.
//!
//! It knows inodes, handles, bytes and errno. Only `transport` knows a kernel. Every operation
//! takes a `done` that is called exactly once, on any thread. A wait, for the disk or for a
//! publication under way, never blocks the thread that reads requests.
//!
//! A request goes from `transport` through the front door (`entry`) to the part that answers it.
//! Each part is a type that holds only what it needs; `file_system` assembles them.
//!
//! | part | answers |
//! |---|---|
//! | `names` | lookup, make, link, unlink, rename; beside a writer with `beside` |
//! | `directories` | opendir, readdir, releasedir |
//! | `getattr`, `setattr`, `xattrs` | getattr and seek, setattr, extended attributes |
//! | `open`, `read`, `write` | open and create, read, write and allocate |
//! | `closing` | flush, fsync, release |
//!
//! Below them: `truncation` and `drafts` edit; `publish` stores a draft as a version, `appended`
//! one that is only appended to; `commits` is the way to the vault's queue; `reaping` deletes;
//! `loading` takes contents into memory; `publication_wait` waits for publications; `nodes` and
//! `table` find what is there and what is open; `kernel` makes the kernel forget. A failure of the
//! vault passes `failures` on its way to an errno.

mod appended;
mod appends;
mod askers;
mod authors;
mod beside;
mod blocks;
mod budget;
mod closing;
mod commits;
mod counters;
mod descriptors;
mod directories;
mod directory_entry;
mod draft;
mod drafts;
mod ending;
mod entry;
mod errno;
mod failures;
mod file_system;
mod follow;
mod getattr;
mod handle_state;
mod handles;
mod handoff;
mod kernel;
mod loaded;
mod loading;
mod log_limiter;
mod mapped;
mod names;
mod nodes;
mod open;
mod opened;
mod page_cache;
mod pages;
mod publication_wait;
mod publish;
mod read;
mod readers;
mod readings;
mod reaping;
mod request;
mod room;
mod routine;
mod set_attributes;
mod set_id;
mod setattr;
mod settings;
mod table;
mod touch;
mod transport;
mod truncation;
mod upkeep;
mod virtual_dir;
mod watchers;
mod write;
mod xattrs;

pub use directory_entry::DirectoryEntry;
pub use ending::Ending;
pub use entry::FrontDoor;
pub use errno::Errno;
pub(crate) use failures::Failures;
pub use file_system::FileSystem;
pub(crate) use handoff::answered_elsewhere;
pub use kernel::Transport;
#[cfg(test)]
pub(crate) use log_limiter::EVERY;
pub(crate) use log_limiter::LogLimiter;
pub use opened::Opened;
pub(crate) use request::window;
pub use request::{Access, Attr, Caller, Done, FileHandle, ReadDone, Transfer};
pub use room::Figures;
pub use set_attributes::SetAttributes;
pub use settings::Settings;
pub use touch::{Touched, Touches};
pub use transport::{MAX_TRANSFER, Serving, start as start_session};
pub use virtual_dir::{FIRST_VIRTUAL_HANDLE, VIRTUAL_DIRECTORY, VirtualDirectory};
