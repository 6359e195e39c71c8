//! The file system: what open, read, write, rename and the rest mean for secrets.
//!
//! It knows inodes, handles, bytes and errno, not fuser and no kernel: [`fuse`] is one adapter.
//! Every operation takes a `done` that is called exactly once, on whichever thread: what can wait
//! (for the disk, for a publication under way) never keeps the thread that reads requests.

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
mod handles;
mod handoff;
mod io;
mod kernel;
mod loaded;
mod loading;
mod names;
mod nodes;
mod open;
mod opened;
mod page_cache;
mod pages;
mod process;
mod publish;
mod queue;
mod readings;
mod reaping;
mod request;
mod room;
mod routine;
mod set_attributes;
mod set_id;
mod settings;
mod settling;
mod touch;
mod transport;
mod truncation;
mod virtual_dir;
mod watch;
mod watchers;
mod write;
mod writer;
mod xattrs;

pub use directory_entry::DirectoryEntry;
pub use ending::Ending;
pub use entry::FrontDoor;
pub use errno::Errno;
use errno::to_errno;
pub use file_system::FileSystem;
pub use handles::{Access, FileHandle};
pub(crate) use handoff::answered_elsewhere;
pub(crate) use io::window;
pub use io::{ReadDone, Transfer};
pub use kernel::Transport;
pub use opened::Opened;
pub use request::{Attr, Caller, Done};
pub use room::Figures;
pub use set_attributes::SetAttributes;
pub use settings::Settings;
pub use touch::{Touched, Touches};
pub use transport::{MAX_TRANSFER, Serving, start as start_session};
pub use virtual_dir::{FIRST_VIRTUAL_HANDLE, VIRTUAL_DIRECTORY, VirtualDirectory};

use appended::Appended;
