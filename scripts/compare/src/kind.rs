//! The file systems that are compared.

/// A file system. Their order is that of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Secretfs,
    /// Another build of secretfs.
    Before,
    Gocryptfs,
    /// With XChaCha20-Poly1305, which secretfs uses, too.
    GocryptfsX,
    Securefs,
    Cryfs,
    Bindfs,
    Tmpfs,
    Floor,
    /// With SQLite behind.
    FloorSqlite,
}

impl Kind {
    pub const ALL: [Self; 10] = [
        Self::Secretfs,
        Self::Before,
        Self::Gocryptfs,
        Self::GocryptfsX,
        Self::Securefs,
        Self::Cryfs,
        Self::Bindfs,
        Self::Tmpfs,
        Self::Floor,
        Self::FloorSqlite,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Secretfs => "secretfs",
            Self::Before => "before",
            Self::Gocryptfs => "gocryptfs",
            Self::GocryptfsX => "gocryptfs -xchacha",
            Self::Securefs => "securefs",
            Self::Cryfs => "CryFS",
            Self::Bindfs => "bindfs",
            Self::Tmpfs => "tmpfs",
            Self::Floor => "floor",
            Self::FloorSqlite => "floor + SQLite",
        }
    }

    /// As a part of paths.
    pub fn directory(self) -> &'static str {
        match self {
            Self::GocryptfsX => "gocryptfs-xchacha",
            Self::Cryfs => "cryfs",
            Self::FloorSqlite => "floor-sqlite",
            // They show the same plain files.
            Self::Bindfs | Self::Floor => "plain",
            other => other.name(),
        }
    }

    /// Whether what is written to it is still there after the next mount.
    pub fn keeps(self) -> bool {
        !matches!(self, Self::Tmpfs | Self::Floor | Self::FloorSqlite)
    }
}
