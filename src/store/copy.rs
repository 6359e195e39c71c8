//! Copies all records of a store, as of one commit and as they are sealed, into an empty store.
//!
//! It must never interpret a record, and never leave out a record on which another may depend. It
//! leaves out chunks that no version owns: nobody reads them, and no sum counts them.

use std::ops::ControlFlow;

use super::kinds::{ReadRecords as _, WriteRecords as _};
use super::{
    Abort, ChunkKey, Durability, NameTag, NodeId, Read, Record, Store, StoreError,
    StoreErrorKind as Kind, Write,
};

/// Rows read at a time.
const BATCH: usize = 64;
/// A write transaction ends once it has this many bytes of content, even within a version.
const ENOUGH: usize = 4 << 20;

/// The reason that a copy is incomplete.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CopyError {
    /// One of the two stores failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The caller ended it.
    #[error("interrupted")]
    Interrupted,
}

/// A function that a long operation calls again and again; it ends the operation by breaking.
pub type GoOn<'a> = &'a dyn Fn() -> ControlFlow<()>;

/// Copies all records of `from`, as of one commit, into `to`, which has none. The header, the
/// keyring and the state come last, in one transaction: until then nobody can open the copy.
///
/// The copy holds a snapshot of `from`, as any long read does: a writer goes on meanwhile, but
/// cannot drop what it has replaced since. The copy needs memory for some megabytes of records.
///
/// Of an incomplete version it copies the chunks that exist: the sums count its record, too.
///
/// # Errors
/// [`CopyError::Interrupted`] when `go_on` breaks, or the error of a store. `to` is useless then.
pub fn copy(from: &dyn Store, to: &dyn Store, go_on: GoOn<'_>) -> Result<(), CopyError> {
    let mut outcome = None;
    let run = from.read(&mut |records| {
        // A second run would mix its snapshot with the records that the first one has copied.
        let result = match outcome {
            None => Copy { to, go_on }.all(records),
            Some(_) => Err(StoreError::new(
                Kind::Io,
                "cannot read the vault as of one commit: another process kept it locked; try again",
            )
            .into()),
        };
        let verdict = result.as_ref().map(drop).map_err(|_| Abort);
        outcome = Some(result);
        verdict
    });
    match (run, outcome) {
        (_, Some(Err(error))) => Err(error),
        (Err(error), _) => Err(error.into()),
        (Ok(_), Some(Ok(()))) => Ok(()),
        (Ok(_), None) => {
            Err(StoreError::new(Kind::Io, "the store did not run a transaction").into())
        }
    }
}

struct Copy<'a> {
    to: &'a dyn Store,
    go_on: GoOn<'a>,
}

impl Copy<'_> {
    fn all(&self, from: &mut dyn Read) -> Result<(), CopyError> {
        self.nodes(from)?;
        self.entries(from)?;
        self.versions(from)?;
        self.orphans(from)?;
        self.events(from)?;
        let (header, keyring, state) = (from.header()?, from.keyring()?, from.state()?);
        super::write(self.to, Durability::Now, |to| {
            if let Some(header) = &header {
                to.put_header(header)?;
            }
            if let Some(keyring) = &keyring {
                to.put_keyring(keyring)?;
            }
            if let Some(state) = &state {
                to.put_state(state)?;
            }
            Ok(())
        })
    }

    /// Runs `body` in a write transaction of the copy.
    fn put<T>(
        &self,
        body: impl FnMut(&mut dyn Write) -> Result<T, CopyError>,
    ) -> Result<T, CopyError> {
        if (self.go_on)().is_break() {
            return Err(CopyError::Interrupted);
        }
        super::write(self.to, Durability::Soon, body)
    }

    fn nodes(&self, from: &mut dyn Read) -> Result<(), CopyError> {
        let mut after: Option<NodeId> = None;
        loop {
            let batch = from.scan_nodes(after, BATCH)?;
            self.put(|to| {
                for (id, record) in &batch {
                    to.put_node(*id, record)?;
                }
                Ok(())
            })?;
            after = batch.last().map(|(id, _)| *id);
            if batch.len() < BATCH {
                return Ok(());
            }
        }
    }

    fn entries(&self, from: &mut dyn Read) -> Result<(), CopyError> {
        let mut after: Option<(NodeId, NameTag)> = None;
        loop {
            let batch = from.scan_entries(after.as_ref().map(|(d, tag)| (*d, tag)), BATCH)?;
            self.put(|to| {
                for row in &batch {
                    to.put_entry(row.directory, &row.tag, &row.value)?;
                }
                Ok(())
            })?;
            after = batch.last().map(|row| (row.directory, row.tag));
            if batch.len() < BATCH {
                return Ok(());
            }
        }
    }

    fn versions(&self, from: &mut dyn Read) -> Result<(), CopyError> {
        let mut after: Option<(NodeId, u64)> = None;
        loop {
            let batch = from.scan_versions(after, BATCH)?;
            let (mut whole, mut bytes) = (Vec::new(), 0);
            for (key, record) in &batch {
                let piece = self.piece(from, (key.0, key.1, 0))?;
                if piece.is_last {
                    bytes += piece.bytes;
                    whole.push((*key, record, piece));
                } else {
                    self.in_pieces(from, (*key, record), piece)?;
                }
                if bytes >= ENOUGH {
                    self.whole_versions(&std::mem::take(&mut whole))?;
                    bytes = 0;
                }
            }
            self.whole_versions(&whole)?;
            after = batch.last().map(|(key, _)| *key);
            if batch.len() < BATCH {
                return Ok(());
            }
        }
    }

    fn whole_versions(&self, versions: &[(VersionKey, &Record, Piece)]) -> Result<(), CopyError> {
        self.put(|to| {
            for ((node, version), record, piece) in versions {
                to.insert_version(*node, *version, record, &mut piece.chunks.iter().cloned())?;
            }
            Ok(())
        })
    }

    /// Copies a version in several transactions: in one, its chunks would take the room of the
    /// version twice, in the WAL and in the database.
    fn in_pieces(
        &self,
        from: &mut dyn Read,
        ((node, version), record): (VersionKey, &Record),
        first: Piece,
    ) -> Result<(), CopyError> {
        // The number of its chunks is not known yet, and no version has more than this.
        self.put(|to| Ok(to.begin_version(node, version, record, u32::MAX)?))?;
        let (mut index, mut piece) = (0, first);
        loop {
            self.put(|to| {
                let mut chunks = piece.chunks.iter().cloned();
                Ok(to.put_chunks(node, version, index, &mut chunks)?)
            })?;
            if piece.is_last {
                return Ok(());
            }
            index = piece.next;
            piece = self.piece(from, (node, version, index))?;
        }
    }

    /// Reads the chunks of a version from `first` on, as many as one transaction takes, up to the
    /// first one that is missing.
    fn piece(&self, from: &mut dyn Read, first: ChunkKey) -> Result<Piece, CopyError> {
        let (node, version, mut next) = first;
        let (mut chunks, mut bytes) = (Vec::new(), 0);
        let is_last = loop {
            if (self.go_on)().is_break() {
                return Err(CopyError::Interrupted);
            }
            let chunk = match from.chunk((node, version, next)) {
                Ok(Some(chunk)) if next < u32::MAX => chunk,
                Ok(_) => break true,
                // Behind the last chunk, or in place of a missing one, lies a chunk of another
                // version. The check of the copy knows how many chunks belong here.
                Err(error) if error.kind == Kind::Corrupt => break true,
                Err(error) => return Err(error.into()),
            };
            next += 1;
            bytes += chunk.len();
            chunks.push(chunk);
            if bytes >= ENOUGH {
                break false;
            }
        };
        Ok(Piece {
            chunks,
            bytes,
            next,
            is_last,
        })
    }

    fn orphans(&self, from: &mut dyn Read) -> Result<(), CopyError> {
        let mut after = None;
        loop {
            let batch = from.orphans(after, BATCH)?;
            self.put(|to| {
                for id in &batch {
                    to.put_orphan(*id)?;
                }
                Ok(())
            })?;
            after = batch.last().copied();
            if batch.len() < BATCH {
                return Ok(());
            }
        }
    }

    fn events(&self, from: &mut dyn Read) -> Result<(), CopyError> {
        let mut next = 0;
        loop {
            let batch = from.events(next, BATCH)?;
            self.put(|to| {
                for (sequence, value) in &batch {
                    to.insert_event(*sequence, value)?;
                }
                Ok(())
            })?;
            let Some((last, _)) = batch.last().filter(|_| batch.len() == BATCH) else {
                return Ok(());
            };
            next = last + 1;
        }
    }
}

/// Identifies a version: node, number.
type VersionKey = (NodeId, u64);

/// Chunks of a version, in order.
struct Piece {
    chunks: Vec<Vec<u8>>,
    bytes: usize,
    /// The index of the next chunk.
    next: u32,
    /// The version has no more.
    is_last: bool,
}
