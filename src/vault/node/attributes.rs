//! The attributes of a node, beside its content.

use std::time::{SystemTime, UNIX_EPOCH};

use bincode::{Decode, Encode};

use super::body::NodeBody;

/// A point in time with nanoseconds, even before 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct Timestamp {
    /// Seconds since 1970.
    pub seconds: i64,
    /// 0 to 999,999,999, always counted forward.
    pub nanoseconds: u32,
}

impl Timestamp {
    /// The present time.
    pub fn now() -> Self {
        SystemTime::now().into()
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        let seconds = |s: u64| i64::try_from(s).unwrap_or(i64::MAX);
        match time.duration_since(UNIX_EPOCH) {
            Ok(after) => Self {
                seconds: seconds(after.as_secs()),
                nanoseconds: after.subsec_nanos(),
            },
            Err(before) => {
                let before = before.duration();
                match before.subsec_nanos() {
                    0 => Self {
                        seconds: -seconds(before.as_secs()),
                        nanoseconds: 0,
                    },
                    n => Self {
                        seconds: -seconds(before.as_secs()) - 1,
                        nanoseconds: 1_000_000_000 - n,
                    },
                }
            }
        }
    }
}

/// The kind of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A regular file.
    File = 1,
    /// A directory.
    Directory = 2,
    /// A symbolic link.
    Symlink = 3,
    /// A named pipe.
    Fifo = 4,
    /// A Unix socket.
    Socket = 5,
    /// A character device.
    CharDevice = 6,
    /// A block device.
    BlockDevice = 7,
    /// The vault's own node.
    System = 8,
}

impl Kind {
    /// The kind with this `number` in a record.
    pub fn from_number(number: u8) -> Option<Self> {
        [
            Kind::File,
            Kind::Directory,
            Kind::Symlink,
            Kind::Fifo,
            Kind::Socket,
            Kind::CharDevice,
            Kind::BlockDevice,
            Kind::System,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == number)
    }
}

/// Everything about a node except its name and content.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Attributes {
    /// Permission bits, set-id bits and sticky bit (07777).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of entries that name the node; for a directory 1 while it is in the tree.
    pub links: u32,
    /// Last access, if set explicitly.
    pub accessed: Timestamp,
    /// Last change of the content.
    pub modified: Timestamp,
    /// Last change of anything.
    pub changed: Timestamp,
    /// When the node was created.
    pub created: Timestamp,
    /// Extended attributes, ordered by name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The part that depends on the kind.
    pub body: NodeBody,
}

impl Attributes {
    /// The attributes of a node that is created now, with one name.
    pub(in crate::vault) fn of_new(
        mode: u32,
        (uid, gid): (u32, u32),
        now: Timestamp,
        body: NodeBody,
    ) -> Self {
        Self {
            mode,
            uid,
            gid,
            links: 1,
            accessed: now,
            modified: now,
            changed: now,
            created: now,
            xattrs: Vec::new(),
            body,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times_before_1970_keep_their_nanoseconds() {
        let time = Timestamp::from(UNIX_EPOCH - Duration::new(1, 250_000_000));
        assert_eq!(
            time,
            Timestamp {
                seconds: -2,
                nanoseconds: 750_000_000
            }
        );
        let time = Timestamp::from(UNIX_EPOCH - Duration::new(3, 0));
        assert_eq!(
            time,
            Timestamp {
                seconds: -3,
                nanoseconds: 0
            }
        );
    }
}
