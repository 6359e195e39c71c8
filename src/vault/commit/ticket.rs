//! The ticket of a job: its user, when it counts as done, and its cost.

use crate::store::NodeId;

/// The cost of a job beside the bytes of its content: the number of bytes that could be stored in
/// the time it takes.
const QUICK: u64 = 16 << 10;
const SYNCED: u64 = 256 << 10;

/// The user who caused a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Whose {
    /// The user is unknown.
    #[default]
    Unknown,
    User(u32),
}

impl Whose {
    /// The user as the kernel names it in a request.
    pub(crate) fn of(uid: u32) -> Self {
        match uid {
            u32::MAX => Self::Unknown,
            uid => Self::User(uid),
        }
    }
}

/// When a job counts as done, and which jobs may overtake it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Done when committed; it need not be on disk.
    Quick,
    /// Done when on disk. Its program waits for it, and sends nothing else before.
    Awaited,
    /// Done when on disk. No program waits for it.
    Unattended,
}

/// The facts by which a job is queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    pub(super) kind: Kind,
    pub(super) whose: Whose,
    pub(super) node: Option<NodeId>,
    /// Bytes of content in the next step.
    pub(super) bytes: u64,
    /// Number of steps after the next one.
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

    /// For a job that need not be on disk.
    pub(crate) fn quick(whose: Whose) -> Self {
        Self::new(Kind::Quick, whose)
    }

    /// For a job that must be on disk, whose program waits for it and sends nothing else before.
    pub(crate) fn awaited(whose: Whose) -> Self {
        Self::new(Kind::Awaited, whose)
    }

    /// For a job that must be on disk, and that no program waits for: its program's next job comes
    /// after it.
    pub(crate) fn unattended(whose: Whose) -> Self {
        Self::new(Kind::Unattended, whose)
    }

    /// Orders the job after earlier jobs on this node.
    pub(crate) fn on(self, node: NodeId) -> Self {
        Self {
            node: Some(node),
            ..self
        }
    }

    /// Sets the bytes of content.
    pub(crate) fn with_bytes(self, bytes: u64) -> Self {
        Self { bytes, ..self }
    }

    /// Sets the number of steps, each with that much content.
    pub(crate) fn in_steps(self, steps: u32) -> Self {
        let more = steps.saturating_sub(1);
        Self { more, ..self }
    }

    /// The ticket for the rest after a step; `None` after the last.
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
