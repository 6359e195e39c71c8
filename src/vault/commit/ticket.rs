//! What a job is queued by: whose it is, when it is done, and what it costs.

use crate::store::NodeId;

/// What a job costs beside the bytes of its content: as long as it takes, so many could be stored.
const QUICK: u64 = 16 << 10;
const SYNCED: u64 = 256 << 10;

/// Who has caused a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Whose {
    /// Nobody can tell.
    #[default]
    Unknown,
    User(u32),
}

impl Whose {
    /// As the kernel names the user of a request.
    pub(crate) fn of(uid: u32) -> Self {
        match uid {
            u32::MAX => Self::Unknown,
            uid => Self::User(uid),
        }
    }
}

/// When a job is done, and what may be done before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It need not be on disk.
    Quick,
    /// On disk. Whoever made it waits for it and asks for nothing else before.
    Awaited,
    /// On disk, and nobody waits for it.
    Unattended,
}

/// What a job is queued by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    pub(super) kind: Kind,
    pub(super) whose: Whose,
    pub(super) node: Option<NodeId>,
    /// Of content, in the next step.
    pub(super) bytes: u64,
    /// Steps after the next one.
    pub(super) more: u32,
}

impl Ticket {
    fn new(kind: Kind, whose: Whose) -> Self {
        Self {
            kind,
            whose,
            node: None,
            bytes: 0,
            more: 0,
        }
    }

    /// For what need not be on disk.
    pub(crate) fn quick(whose: Whose) -> Self {
        Self::new(Kind::Quick, whose)
    }

    /// For what is to be on disk, and somebody waits for that and asks for nothing else before.
    pub(crate) fn awaited(whose: Whose) -> Self {
        Self::new(Kind::Awaited, whose)
    }

    /// For what is to be on disk, and nobody waits for: what its program does next comes after it.
    pub(crate) fn unattended(whose: Whose) -> Self {
        Self::new(Kind::Unattended, whose)
    }

    /// After what was submitted before on this node.
    pub(crate) fn on(self, node: NodeId) -> Self {
        Self {
            node: Some(node),
            ..self
        }
    }

    /// With so much content.
    pub(crate) fn with_bytes(self, bytes: u64) -> Self {
        Self { bytes, ..self }
    }

    /// In so many steps, each with that much content.
    pub(crate) fn in_steps(self, steps: u32) -> Self {
        let more = steps.saturating_sub(1);
        Self { more, ..self }
    }

    /// For what is left after a step; `None` if that was the last.
    pub(super) fn next_step(self) -> Option<Self> {
        let more = self.more.checked_sub(1)?;
        Some(Self { more, ..self })
    }

    pub(super) fn whose(&self) -> Whose {
        self.whose
    }

    pub(super) fn is_quick(&self) -> bool {
        self.kind == Kind::Quick
    }

    pub(super) fn is_unattended(&self) -> bool {
        self.kind == Kind::Unattended
    }

    pub(super) fn cost(&self) -> u64 {
        let beside = match self.kind {
            Kind::Quick => QUICK,
            Kind::Awaited | Kind::Unattended => SYNCED,
        };
        self.bytes.saturating_add(beside)
    }
}
