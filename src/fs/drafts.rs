//! In-place drafts: how they begin, and how the draft of a handle is edited.

use std::sync::Arc;

use crate::vault::{Content, LastChunk, Publication, Vault};

use super::appends::Appends;
use super::blocks::{BLOCK, Blocks};
use super::budget::{Account, Budget, CROWDED};
use super::draft::Draft;
use super::errno::file_of;
use super::failures::Failures;
use super::handles::{Handle, NodeState};
use super::loaded::LastPiece;
use super::nodes::Nodes;
use super::table::Table;
use super::{Errno, FileHandle};

/// The content with which an in-place draft begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Base {
    /// A copy of the published content.
    Copy,
    /// Nothing: the file is being emptied, which needs neither the old content nor memory for it.
    Nothing,
}

impl Base {
    /// The base of a draft that is going to be truncated or extended to `size`.
    pub(super) fn for_size(size: u64) -> Self {
        if size == 0 { Base::Nothing } else { Base::Copy }
    }
}

/// In-place drafts, as the module describes.
pub(super) struct Drafts {
    pub(super) is_beside_writer: bool,
    /// Limit on a secret, in bytes.
    pub(super) max_secret_size: u64,
    pub(super) vault: Arc<Vault>,
    pub(super) failures: Arc<Failures>,
    pub(super) table: Arc<Table>,
    pub(super) nodes: Arc<Nodes>,
    pub(super) budget: Arc<Budget>,
    pub(super) appends: Arc<Appends>,
}

impl Drafts {
    /// A draft of `blocks`.
    pub(super) fn begin(&self, blocks: Blocks, publication: Publication) -> Draft {
        Draft::new(blocks, publication, self.max_secret_size)
    }

    /// Edits the draft of a handle, which begins now if it has not; `None` if that must wait for a
    /// publication under way.
    pub(super) fn edit(
        &self,
        fh: FileHandle,
        handle: &Handle,
        base: Base,
        edit: impl Fn(&mut Draft) -> Result<(), Errno>,
    ) -> Option<Result<(), Errno>> {
        let edited = match self.try_to_edit(fh, handle, base, &edit) {
            Some(Err(CROWDED)) => {
                self.evict_snapshots();
                self.try_to_edit(fh, handle, base, &edit)
            }
            outcome => outcome,
        };
        match edited {
            // Other readers have filled the memory meanwhile.
            Some(Err(CROWDED)) => Some(Err(Errno(libc::ENOSPC))),
            outcome => outcome,
        }
    }

    fn try_to_edit(
        &self,
        fh: FileHandle,
        handle: &Handle,
        base: Base,
        edit: &impl Fn(&mut Draft) -> Result<(), Errno>,
    ) -> Option<Result<(), Errno>> {
        let mut state = handle.node.lock();
        if state.draft_of(fh).is_none() {
            if state.publishing > 0 {
                return None;
            }
            if let Err(error) = self.begin_shared(handle, base, &mut state) {
                return Some(Err(error));
            }
        }
        let Some(draft) = state.draft_of(fh) else {
            return Some(Err(Errno(libc::EBADF)));
        };
        let before = draft.edits();
        let mut outcome = edit(draft);
        let edits = draft.edits();
        if outcome.is_ok() && edits > before {
            match state.handles.get_mut(&fh) {
                Some(own) => own.wrote = edits,
                None => outcome = Err(Errno(libc::EBADF)),
            }
            self.appends.watch(handle.node.id, &mut state);
        }
        Some(outcome)
    }

    /// Begins the in-place draft of a node.
    fn begin_shared(
        &self,
        handle: &Handle,
        base: Base,
        state: &mut NodeState,
    ) -> Result<(), Errno> {
        if state.shared.is_some() {
            return Ok(());
        }
        let (id, account) = (handle.node.id, self.budget.of(handle.user));
        let is_first = file_of(&*self.nodes.stored_or_held(id)?)?.version == 0;
        let blocks = match base {
            Base::Copy if !is_first => self.published(id, &account)?,
            _ => Blocks::zeroed(0, &account)?,
        };
        let draft = self.begin(blocks, Publication::InPlace);
        state.shared = Some(match (is_first, base) {
            (true, _) => draft.first(),
            (false, Base::Nothing) => draft.cut(),
            (false, Base::Copy) => draft,
        });
        // Bytes written to the previous draft were published with it.
        for handle in state.handles.values_mut().filter(|h| h.own.is_none()) {
            handle.wrote = 0;
        }
        Ok(())
    }

    /// A copy of the published content.
    fn published(&self, id: u64, account: &Account) -> Result<Blocks, Errno> {
        let (_, content) = self
            .failures
            .to_errno(self.vault.content(id, BLOCK as u64))?;
        match content {
            Content::Whole { bytes, .. } => Blocks::of(bytes, account),
            Content::Pieces(version) => {
                let mut last = LastChunk::default();
                Blocks::filled(version.length(), account, |offset, out| {
                    let read = self.vault.read_at(&version, offset, out, &mut last);
                    self.failures.to_errno(read)
                })
            }
            Content::Unpublished => Blocks::zeroed(0, account),
        }
    }

    /// Wipes the decrypted contents that handles hold; later reads decrypt them again. The caller
    /// must hold no node's lock, because this locks all of them.
    fn evict_snapshots(&self) {
        if self.is_beside_writer {
            return;
        }
        for node in self.table.all_nodes() {
            let mut state = node.lock();
            for pin in state.handles.values_mut().filter_map(|h| h.pin.as_mut()) {
                pin.loaded = None;
                pin.last = LastPiece::default();
            }
        }
    }
}
