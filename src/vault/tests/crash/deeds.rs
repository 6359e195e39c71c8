//! The changes that the writers of a schedule make, and what each leaves.
//!
//! Each writer has a directory of its own, with a log: the transaction of a deed also stores its
//! number there. So the log says up to which deed a vault has come, and all else must agree.

use std::collections::BTreeMap;

use crate::store::NodeId;

use super::super::super::{
    AttributeChange, Content, Kind, NewNode, NothingOpen, PIECE, Publication, RenameMode, Tx,
    Vault, VaultError, publish_staged, stage_piece,
};
use super::turns::Numbers;

/// The name of a writer's log.
const LOG: &[u8] = b"log";
/// The names that a writer's deeds use.
const NAMES: [&[u8]; 4] = [b"a", b"b", b"c", b"d"];
/// Lengths of contents.
const LENGTHS: [usize; 7] = [0, 1, 40, 255, 256, 2_000, 66_000];

/// A file as a user sees it: its permissions and its content.
type File = (u32, Vec<u8>);

/// The files in a writer's directory, but its log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Files(BTreeMap<Vec<u8>, File>);

/// A change.
#[derive(Clone, Debug)]
pub(super) enum Deed {
    Write(&'static [u8], Vec<u8>),
    /// In several transactions.
    WriteInPieces(&'static [u8], Vec<u8>),
    Remove(&'static [u8]),
    Rename(&'static [u8], &'static [u8]),
    Mode(&'static [u8], u32),
}

impl Deed {
    /// A deed that is possible with these files.
    pub(super) fn choose(files: &Files, numbers: &mut Numbers) -> Self {
        let name = NAMES[numbers.below(NAMES.len())];
        let other = NAMES[numbers.below(NAMES.len())];
        let content = vec![numbers.next() as u8; LENGTHS[numbers.below(LENGTHS.len())]];
        if !files.0.contains_key(name) {
            return Self::Write(name, content);
        }
        match numbers.below(40) {
            0 => Self::WriteInPieces(name, vec![numbers.next() as u8; PIECE as usize + 1]),
            1..8 => Self::Remove(name),
            8..16 if other != name => Self::Rename(name, other),
            16..22 => Self::Mode(name, 0o400 + numbers.below(0o400) as u32),
            _ => Self::Write(name, content),
        }
    }

    /// The files after it.
    pub(super) fn done(&self, files: &Files) -> Files {
        let mut files = files.clone();
        match self {
            Self::Write(name, content) | Self::WriteInPieces(name, content) => {
                let file = files.0.entry(name.to_vec());
                file.or_insert((0o600, Vec::new())).1.clone_from(content);
            }
            Self::Remove(name) => drop(files.0.remove(*name)),
            Self::Rename(name, to) => {
                if let Some(file) = files.0.remove(*name) {
                    files.0.insert(to.to_vec(), file);
                }
            }
            Self::Mode(name, mode) => {
                if let Some(file) = files.0.get_mut(*name) {
                    file.0 = *mode;
                }
            }
        }
        files
    }

    /// The transactions before the last one.
    pub(super) fn begin(&self, tx: &mut Tx<'_>, directory: NodeId) -> Result<(), VaultError> {
        match self {
            Self::WriteInPieces(name, content) => {
                let node = file(tx, directory, name)?;
                stage_piece(tx, node, &[content], 0)
            }
            _ => Ok(()),
        }
    }

    /// Whether it has a transaction before the last one.
    pub(super) fn has_pieces(&self) -> bool {
        matches!(self, Self::WriteInPieces(..))
    }

    /// The last transaction, which also notes the deed's number in the log.
    pub(super) fn end(
        &self,
        tx: &mut Tx<'_>,
        directory: NodeId,
        number: usize,
    ) -> Result<(), VaultError> {
        const REPLACEMENT: Publication = Publication::Replacement;
        match self {
            Self::Write(name, content) => {
                let node = file(tx, directory, name)?;
                tx.publish(node, content, REPLACEMENT, None, &[])?;
            }
            Self::WriteInPieces(name, content) => {
                let node = file(tx, directory, name)?;
                publish_staged(tx, node, &[content], REPLACEMENT, None, &[])?;
            }
            Self::Remove(name) => drop(tx.unlink(directory, name, &NothingOpen)?),
            Self::Rename(name, to) => tx.rename(
                (directory, name),
                (directory, to),
                RenameMode::Replace,
                &NothingOpen,
            )?,
            Self::Mode(name, mode) => {
                let node = file(tx, directory, name)?;
                let change = AttributeChange {
                    mode: Some(*mode),
                    ..AttributeChange::default()
                };
                tx.set_attributes(node, &change)?;
            }
        }
        let log = file(tx, directory, LOG)?;
        let text = number.to_string();
        tx.publish(log, text.as_bytes(), REPLACEMENT, None, &[])?;
        Ok(())
    }
}

/// The file of that name, which is made if there is none.
fn file(tx: &mut Tx<'_>, directory: NodeId, name: &[u8]) -> Result<NodeId, VaultError> {
    if let Some((entry, _)) = tx.find(directory, name)? {
        return Ok(entry.node);
    }
    let new = NewNode {
        kind: Kind::File,
        mode: 0o600,
        uid: 0,
        gid: 0,
        device: 0,
        target: Vec::new(),
    };
    tx.create(directory, name, &new)
}

/// The number of deeds in the log of a directory, and its other files.
pub(super) fn found(vault: &Vault, directory: NodeId) -> Result<(usize, Files), VaultError> {
    let mut files = Files::default();
    let mut number = 0;
    for entry in vault.list(directory, None, 100, false)?.entries {
        let (node, content) = vault.content(entry.node, u64::MAX)?;
        let bytes = match content {
            Content::Unpublished => Vec::new(),
            Content::Whole { bytes, .. } => bytes.to_vec(),
            Content::Pieces(_) => return Err(VaultError::Invalid),
        };
        match entry.name == LOG {
            true => {
                let text = String::from_utf8_lossy(&bytes);
                number = text.parse().map_err(|_| VaultError::Invalid)?;
            }
            false => drop(files.0.insert(entry.name, (node.attributes.mode, bytes))),
        }
    }
    Ok((number, files))
}
