//! A version of a secret's content: sealed in chunks of 64 KiB under a key of its own.
//!
//! The version's own sealed part has the exact length and the number of chunks, so there are no
//! holes, and an attacker can neither cut off nor add chunks.

use bincode::{Decode, Encode};

use crate::codec;
use crate::crypto::padding::padded_content;
use crate::crypto::schedule::{ChunkKey, ContentKey, Context, Role, VaultId, VersionKey};
use crate::crypto::{Nonces, SecretBytes, SecretKey};
use crate::keyring::{Keyring, WRAPPED_LEN};
use crate::os::nice::let_others_run;
use crate::store::{NodeId, Read, ReadRecords as _, Record, StoreErrorKind};

use super::VaultError;
use super::keys::KeyedId;

/// Plain bytes in a chunk; the last chunk may have fewer.
pub const CHUNK: usize = 64 * 1024;

#[derive(Encode, Decode)]
struct Stored {
    wrapped: [u8; WRAPPED_LEN],
    sealed: Vec<u8>,
}

#[derive(Encode, Decode)]
struct Extent {
    length: u64,
    chunks: u32,
}

impl Extent {
    fn of(length: u64) -> Result<Self, VaultError> {
        let chunks = padded_content(length).div_ceil(CHUNK as u64);
        Ok(Self {
            length,
            chunks: u32::try_from(chunks).map_err(|_| VaultError::Invalid)?,
        })
    }
}

/// The unsealed rest of a content, which may be in several parts.
struct Rest<'a> {
    parts: &'a [&'a [u8]],
    /// Number of bytes of the first part that are sealed.
    sealed: usize,
}

impl<'a> Rest<'a> {
    /// The content from `start` on.
    fn from(mut parts: &'a [&'a [u8]], start: usize) -> Self {
        let mut sealed = start;
        while let Some((first, others)) = parts.split_first()
            && sealed >= first.len()
        {
            (parts, sealed) = (others, sealed - first.len());
        }
        Self { parts, sealed }
    }

    /// The next `length` bytes; `None` if they are not in one part.
    fn next(&mut self, length: usize) -> Option<&'a [u8]> {
        let next = self.first()?.get(..length)?;
        self.sealed += length;
        Some(next)
    }

    /// Copies the next bytes to the beginning of `out`, as far as there are any.
    fn copy_to(&mut self, out: &mut [u8]) {
        let mut filled = 0;
        while filled < out.len()
            && let Some(first) = self.first()
        {
            let length = first.len().min(out.len() - filled);
            out[filled..filled + length].copy_from_slice(&first[..length]);
            self.sealed += length;
            filled += length;
        }
    }

    /// The rest of the first part that has one; `None` at the end.
    fn first(&mut self) -> Option<&'a [u8]> {
        while let Some((first, others)) = self.parts.split_first() {
            match first.get(self.sealed..) {
                Some(rest) if !rest.is_empty() => return Some(rest),
                _ => (self.parts, self.sealed) = (others, 0),
            }
        }
        None
    }
}

/// Seals the content in `parts` as `version` of `node`; returns the version's record and its
/// chunks.
pub(super) fn seal(
    keyring: &Keyring,
    node: NodeId,
    version: u64,
    parts: &[&[u8]],
) -> Result<(Record, Vec<Vec<u8>>), VaultError> {
    let (record, version) = begin(keyring, node, version, length_of(parts))?;
    let chunks = version.seal_chunks(parts, 0..version.chunks)?;
    Ok((record, chunks))
}

/// The length of the content in `parts`.
pub(super) fn length_of(parts: &[&[u8]]) -> u64 {
    parts.iter().map(|part| part.len() as u64).sum()
}

/// Makes a fresh key for a content of `length` bytes, as `version` of `node`; returns the version's
/// record, and the version that seals its chunks.
pub(super) fn begin(
    keyring: &Keyring,
    node: NodeId,
    version: u64,
    length: u64,
) -> Result<(Record, Version), VaultError> {
    let vault = keyring.vault();
    let key = SecretKey::generate()?;
    let (generation, wrapped) = keyring.wrap(node, Role::Content { version }, &key)?;
    let key = ContentKey(key);
    let extent = Extent::of(length)?;
    let plain = codec::encode(&extent);
    let sealed =
        VersionKey::derive(&key).seal(vault, Context::Version { node, version }, &plain)?;
    let wrapped = wrapped[..]
        .try_into()
        .map_err(|_| VaultError::Integrity("a wrapped key has a wrong length".into()))?;
    let record = Record {
        generation,
        value: codec::encode(&Stored { wrapped, sealed }),
    };
    let version = Version {
        node,
        number: version,
        length,
        chunks: extent.chunks,
        key: ChunkKey::derive(&key),
        vault,
    };
    Ok((record, version))
}

/// Wraps a version's content key under the active master key; nothing else in it changes. The new
/// wrap is opened before it may replace the old one. A record that does not authenticate stays as
/// it is, for the operator to restore.
pub(super) fn rewrap(
    keyring: &Keyring,
    nonces: &mut Nonces,
    node: NodeId,
    version: u64,
    record: &Record,
) -> Result<Record, VaultError> {
    let id = KeyedId::Version(node, version);
    let bad = |why| VaultError::tampered(id, why);
    let mut stored: Stored =
        codec::decode(&record.value, "version").map_err(|_| bad("is not encoded as one"))?;
    let role = Role::Content { version };
    let key = ContentKey(keyring.unwrap(record.generation, node, role, &stored.wrapped)?);
    let context = Context::Version { node, version };
    VersionKey::derive(&key)
        .open(keyring.vault(), context, &stored.sealed)
        .map_err(|failure| VaultError::unopened(id, failure))?;
    let (generation, wrapped) = keyring.wrap_anew(nonces, node, role, &key.0)?;
    stored.wrapped = wrapped[..]
        .try_into()
        .map_err(|_| bad("was wrapped to a wrong length"))?;
    Ok(Record {
        generation,
        value: codec::encode(&stored),
    })
}

/// Seals a version's content again, under a fresh content key.
pub(super) fn reencrypt(
    keyring: &Keyring,
    records: &mut dyn Read,
    node: NodeId,
    version: u64,
    record: &Record,
) -> Result<(Record, Vec<Vec<u8>>), VaultError> {
    let content = Version::open(keyring, node, version, record)?.whole(records, None)?;
    seal(keyring, node, version, &[&content])
}

/// Checks that a version's content key unwraps, and nothing else.
pub(super) fn must_unwrap(
    keyring: &Keyring,
    node: NodeId,
    version: u64,
    record: &Record,
) -> Result<(), VaultError> {
    let bad = |why| VaultError::tampered(KeyedId::Version(node, version), why);
    let stored: Stored =
        codec::decode(&record.value, "version").map_err(|_| bad("is not encoded as one"))?;
    let role = Role::Content { version };
    keyring.unwrap(record.generation, node, role, &stored.wrapped)?;
    Ok(())
}

/// The snapshot that a chunk is read from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Snapshot {
    /// The one that has the version's record: a chunk that is missing in it was cut out.
    OfRecord,
    /// A later one, from which a writer may have removed the whole version.
    Later,
}

/// An open version, which can be read chunk by chunk.
#[derive(Clone, Debug)]
pub struct Version {
    node: NodeId,
    number: u64,
    length: u64,
    chunks: u32,
    key: ChunkKey,
    vault: VaultId,
}

impl Version {
    /// Opens a version's record, but no content.
    pub(super) fn open(
        keyring: &Keyring,
        node: NodeId,
        number: u64,
        record: &Record,
    ) -> Result<Self, VaultError> {
        let id = KeyedId::Version(node, number);
        let bad = |why| VaultError::tampered(id, why);
        let stored: Stored =
            codec::decode(&record.value, "version").map_err(|_| bad("is not encoded as one"))?;
        let role = Role::Content { version: number };
        let key = ContentKey(keyring.unwrap(record.generation, node, role, &stored.wrapped)?);
        let context = Context::Version {
            node,
            version: number,
        };
        let plain = VersionKey::derive(&key)
            .open(keyring.vault(), context, &stored.sealed)
            .map_err(|failure| VaultError::unopened(id, failure))?;
        let extent: Extent =
            codec::decode(&plain, "extent").map_err(|_| bad("has an unknown extent"))?;
        // Later code computes with the length, so it must match the number of chunks.
        if !Extent::of(extent.length).is_ok_and(|fits| fits.chunks == extent.chunks) {
            return Err(bad("has an impossible length"));
        }
        Ok(Self {
            node,
            number,
            length: extent.length,
            chunks: extent.chunks,
            key: ChunkKey::derive(&key),
            vault: keyring.vault(),
        })
    }

    /// The node that the version belongs to.
    pub(super) fn node(&self) -> NodeId {
        self.node
    }

    /// The version's number.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Exact length of the content in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Number of chunks.
    pub fn chunks(&self) -> u32 {
        self.chunks
    }

    /// Seals some chunks of the content; `parts` is the whole content.
    pub(super) fn seal_chunks(
        &self,
        parts: &[&[u8]],
        chunks: std::ops::Range<u32>,
    ) -> Result<Vec<Vec<u8>>, VaultError> {
        let first = chunks.start;
        let mut rest = Rest::from(parts, first as usize * CHUNK);
        chunks
            .map(|index| {
                if index > first {
                    let_others_run();
                }
                let length = self.plain_len(index);
                let context = Context::Chunk {
                    node: self.node,
                    version: self.number,
                    index,
                    last: index + 1 == self.chunks,
                };
                if let Some(plain) = rest.next(length) {
                    return Ok(self.key.seal(self.vault, context, plain)?);
                }
                let mut plain = SecretBytes::zeroed(length)?;
                rest.copy_to(&mut plain);
                Ok(self.key.seal(self.vault, context, &plain)?)
            })
            .collect()
    }

    pub(super) fn plain_len(&self, index: u32) -> usize {
        let start = u64::from(index) * CHUNK as u64;
        padded_content(self.length)
            .saturating_sub(start)
            .min(CHUNK as u64) as usize
    }

    /// Reads and opens one chunk into `plain`, which must have the chunk's padded length.
    pub(super) fn read_chunk(
        &self,
        records: &mut dyn Read,
        index: u32,
        snapshot: Snapshot,
        plain: &mut [u8],
    ) -> Result<(), VaultError> {
        let mut opened = None;
        records.with_chunk((self.node, self.number, index), &mut |sealed| {
            opened = Some(self.open_chunk(index, sealed, plain));
        })?;
        opened.unwrap_or_else(|| {
            let chunk = self.chunk_id(index);
            Err(match snapshot {
                Snapshot::OfRecord => VaultError::cut_out(chunk),
                Snapshot::Later => VaultError::tampered(chunk, "is missing"),
            })
        })
    }

    pub(super) fn open_chunk(
        &self,
        index: u32,
        sealed: &[u8],
        plain: &mut [u8],
    ) -> Result<(), VaultError> {
        let last = index.checked_add(1) == Some(self.chunks);
        let context = Context::Chunk {
            node: self.node,
            version: self.number,
            index,
            last,
        };
        self.key
            .open_into(self.vault, context, sealed, plain)
            .map_err(|_| VaultError::unauthentic(self.chunk_id(index)))
    }

    /// A chunk in words.
    fn chunk_id(&self, index: u32) -> String {
        let version = KeyedId::Version(self.node, self.number);
        format!("chunk {index} of {version}")
    }

    /// Whether the last chunk, which is stored last, is there.
    pub(super) fn has_end(&self, records: &mut (impl Read + ?Sized)) -> Result<bool, VaultError> {
        let last = self.chunks.saturating_sub(1);
        match records.chunk((self.node, self.number, last)) {
            Ok(found) => Ok(found.is_some()),
            // Another chunk is in its place.
            Err(error) if error.kind == StoreErrorKind::Corrupt => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// One chunk, with its padding.
    pub(super) fn chunk(
        &self,
        records: &mut dyn Read,
        index: u32,
    ) -> Result<SecretBytes, VaultError> {
        let mut plain = SecretBytes::zeroed(self.plain_len(index))?;
        self.read_chunk(records, index, Snapshot::Later, &mut plain)?;
        Ok(plain)
    }

    /// The whole content, from the snapshot that has the version's record. `first` is the first chunk if
    /// the caller has it already.
    pub(super) fn whole(
        &self,
        records: &mut dyn Read,
        first: Option<&[u8]>,
    ) -> Result<SecretBytes, VaultError> {
        self.assemble(|index, plain| match (index, first) {
            (0, Some(sealed)) => self.open_chunk(0, sealed, plain),
            _ => self.read_chunk(records, index, Snapshot::OfRecord, plain),
        })
    }

    /// The whole content of a version that has at most one chunk.
    pub(super) fn only(&self, first: Option<&[u8]>) -> Result<SecretBytes, VaultError> {
        self.assemble(|index, plain| match (index, first) {
            (0, Some(sealed)) => self.open_chunk(0, sealed, plain),
            _ => Err(VaultError::tampered(self.chunk_id(index), "is missing")),
        })
    }

    fn assemble(
        &self,
        mut open: impl FnMut(u32, &mut [u8]) -> Result<(), VaultError>,
    ) -> Result<SecretBytes, VaultError> {
        let padded = usize::try_from(padded_content(self.length));
        let mut content = SecretBytes::zeroed(padded.map_err(|_| VaultError::Invalid)?)?;
        for (index, plain) in (0..self.chunks).zip(content.chunks_mut(CHUNK)) {
            open(index, plain)?;
        }
        content.resize(usize::try_from(self.length).map_err(|_| VaultError::Invalid)?)?;
        Ok(content)
    }
}
