//! The file system: what open, read, write, rename and the rest mean for secrets.
//!
//! It knows inodes, handles, bytes and errno. Only `transport` knows a kernel. Every operation takes a
//! `done` that is called exactly once, on whichever thread: what can wait (for the disk, for a publication
//! under way) never keeps the thread that reads requests.
//!
//! A request goes from `transport` through the front door (`entry`) to the part that answers it. Each part
//! is a type that holds what it needs, and nothing more; `file_system` puts them together.
//!
//! | part | answers |
//! |---|---|
//! | `names` | lookup, make, link, unlink, rename; beside a writer with `beside` |
//! | `directories` | opendir, readdir, releasedir |
//! | `attr`, `attributes`, `xattrs` | getattr and seek, setattr, extended attributes |
//! | `open`, `io`, `write` | open and create, read, write and allocate |
//! | `closing` | flush, fsync, release |
//!
//! Below them: `truncation` and `drafts` edit; `publish` stores a draft as a version, `appended` one that
//! is only appended to; `commits` is the way to the vault's queue; `reaping` deletes; `loading`
//! takes contents into memory; `settling` waits for publications; `nodes` and `table` find what is there
//! and what is open; `kernel` is told to forget.

mod appended;
mod appends;
mod askers;
mod attr;
mod attributes;
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
mod file_system;
mod follow;
mod handle_state;
mod handles;
mod handoff;
mod io;
mod kernel;
mod loaded;
mod loading;
mod mapped;
mod names;
mod nodes;
mod open;
mod opened;
mod page_cache;
mod pages;
mod publish;
mod readers;
mod readings;
mod reaping;
mod request;
mod room;
mod routine;
mod set_attributes;
mod set_id;
mod settings;
mod settling;
mod table;
mod touch;
mod transport;
mod truncation;
mod virtual_dir;
mod watch;
mod watchers;
mod write;
mod xattrs;

pub use directory_entry::DirectoryEntry;
pub use ending::Ending;
pub use entry::FrontDoor;
pub use errno::Errno;
use errno::to_errno;
pub use file_system::FileSystem;
pub(crate) use handoff::answered_elsewhere;
pub use kernel::Transport;
pub use opened::Opened;
pub(crate) use request::window;
pub use request::{Access, Attr, Caller, Done, FileHandle, ReadDone, Transfer};
pub use room::Figures;
pub use set_attributes::SetAttributes;
pub use settings::Settings;
pub use touch::{Touched, Touches};
pub use transport::{MAX_TRANSFER, Serving, start as start_session};
pub use virtual_dir::{FIRST_VIRTUAL_HANDLE, VIRTUAL_DIRECTORY, VirtualDirectory};
