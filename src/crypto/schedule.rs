//! The key schedule: every derivation and every binding, on one page.
//!
//! Subkeys are HKDF-Expand-SHA256 (RFC 5869; no extraction, section 3.3: every input is a uniform
//! 256-bit key) with an `info` for each purpose. No key serves two purposes: each purpose is a type
//! of its own, so that the compiler refuses to mix them.
//!
//! Every AAD is `format u8 ‖ record kind u8 ‖ vault id 16 ‖ fields`, all fields of fixed length and
//! little-endian, so no two records of any kind share one.

use std::fmt;

use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::SecretKey;

/// The format number in every AAD.
pub const FORMAT: u8 = 1;

/// A vault's random identity, 128 bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct VaultId(pub [u8; 16]);

impl fmt::Display for VaultId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for VaultId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VaultId({self})")
    }
}

/// An HMAC-SHA256 value.
pub type Tag = [u8; 32];

// ---------------------------------------------------------------------------------------------
// Derivation

fn expand(key: &SecretKey, info: &[&[u8]]) -> SecretKey {
    SecretKey::filled_by(|subkey| {
        // Both calls fail for wrong lengths only, and both lengths are 32.
        let derived = Hkdf::<Sha256>::from_prk(key.expose())
            .map_err(|_| ())
            .and_then(|hkdf| hkdf.expand_multi_info(info, subkey).map_err(|_| ()));
        if derived.is_err() {
            std::process::abort();
        }
    })
}

fn keyed(key: &SecretKey) -> Hmac<Sha256> {
    // HMAC takes keys of any length.
    let mac = <Hmac<Sha256> as KeyInit>::new_from_slice(key.expose());
    mac.unwrap_or_else(|_| std::process::abort())
}

fn hmac(key: &SecretKey, parts: &[&[u8]]) -> Tag {
    finish(keyed(key), parts)
}

fn finish(mut mac: Hmac<Sha256>, parts: &[&[u8]]) -> Tag {
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

/// SHA-256 of the concatenation of `parts`.
pub fn digest(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    parts.iter().for_each(|part| hash.update(part));
    hash.finalize().into()
}

/// Whether two MACs or check values are the same, in constant time.
pub fn same(a: &Tag, b: &Tag) -> bool {
    a.ct_eq(b).into()
}

macro_rules! subkeys {
    ($($(#[$doc:meta])* $name:ident: $from:ident, $label:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $name(SecretKey);

        impl $name {
            /// Derives the key.
            pub fn derive(from: &$from) -> Self {
                Self(expand(&from.0, &[$label]))
            }
        }
    )*};
}

/// A master key of one generation.
#[derive(Clone, Debug)]
pub struct MasterKey(#[allow(missing_docs)] pub SecretKey);
/// The key of a node's metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetadataKey(pub SecretKey);
/// The key of one version of a node's content.
#[derive(Clone, Debug)]
pub struct ContentKey(pub SecretKey);

subkeys! {
    /// Wraps data keys.
    WrapKey: MasterKey, b"secretfs/1 master wrap";
    /// Authenticates the keyring record.
    KeyringMacKey: MasterKey, b"secretfs/1 master keyring-mac";
    /// Seals a node's attributes.
    AttributesKey: MetadataKey, b"secretfs/1 metadata attributes";
    /// Seals a directory's entries.
    EntryKey: MetadataKey, b"secretfs/1 metadata entry";
    /// Turns a directory's names into the tags that file its entries.
    NameTagKey: MetadataKey, b"secretfs/1 metadata name-tag";
    /// Hashes a directory's entries for its sum. The system node's key hashes the vault's records.
    SetKey: MetadataKey, b"secretfs/1 metadata set";
    /// Seals the state record; derived from the system node's key only.
    StateKey: MetadataKey, b"secretfs/1 metadata state";
    /// Seals a version's length and chunk count.
    VersionKey: ContentKey, b"secretfs/1 content version";
    /// Seals a version's chunks.
    ChunkKey: ContentKey, b"secretfs/1 content chunk";
}

impl MasterKey {
    /// The check value: it tells the right key from a wrong one, and commits every ciphertext below
    /// to this key.
    pub fn check_value(&self, header: &[u8], vault: VaultId, generation: u64) -> Tag {
        let header = digest(&[header]);
        let info: &[&[u8]] = &[
            b"secretfs/1 master check",
            &header,
            &vault.0,
            &generation.to_le_bytes(),
        ];
        *expand(&self.0, info).expose()
    }
}

impl KeyringMacKey {
    /// The MAC of a keyring record, over the digests of header and body.
    pub fn mac(&self, header: &[u8], body: &[u8]) -> Tag {
        hmac(&self.0, &[b"keyring", &digest(&[header]), &digest(&[body])])
    }
}

impl NameTagKey {
    /// The tag under which a directory files `name`.
    pub fn tag(&self, name: &[u8]) -> Tag {
        hmac(&self.0, &[name])
    }
}

impl SetKey {
    /// The hash that an entry adds to its directory's sum.
    pub fn entry(&self, tag: &Tag, record: &[u8]) -> Tag {
        hmac(&self.0, &[b"e", tag, &digest(&[record])])
    }

    /// The same key, prepared for many records.
    pub fn ready(&self) -> RecordHash {
        RecordHash(keyed(&self.0))
    }
}

/// Hashes records for the vault's sum: a [`SetKey`] whose HMAC is already keyed. Callers drop it
/// soon, which wipes it: unlike the key, it is not in memory for secrets.
pub struct RecordHash(Hmac<Sha256>);

impl fmt::Debug for RecordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RecordHash(..)")
    }
}

/// The digest of a record and of the generation under which it is filed. Every sum, under any key,
/// hashes this digest.
#[derive(Clone, Copy, Debug)]
pub struct RecordDigest([u8; 32]);

impl RecordDigest {
    /// The digest of `record`.
    pub fn of(generation: u64, record: &[u8]) -> Self {
        Self(digest(&[&generation.to_le_bytes(), record]))
    }
}

impl RecordHash {
    /// The hash that a node's record adds to the vault's sum.
    pub fn node(&self, id: u64, record: &RecordDigest) -> Tag {
        finish(self.0.clone(), &[b"n", &id.to_le_bytes(), &record.0])
    }

    /// The hash that a version's record adds to the vault's sum.
    pub fn version(&self, node: u64, version: u64, record: &RecordDigest) -> Tag {
        let (node, version) = (node.to_le_bytes(), version.to_le_bytes());
        finish(self.0.clone(), &[b"v", &node, &version, &record.0])
    }
}

// ---------------------------------------------------------------------------------------------
// Binding

/// The use of a wrapped key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A node's metadata.
    Metadata,
    /// One version of a node's content.
    Content {
        /// The version's number.
        version: u64,
    },
}

/// The context that a seal is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The names of the fields say enough.
pub enum Context<'a> {
    /// A data key under a master key.
    Key {
        node: u64,
        role: Role,
        generation: u64,
    },
    /// A node's attributes.
    Attributes { node: u64, kind: u8, revision: u64 },
    /// A directory's entry.
    Entry {
        directory: u64,
        tag: &'a Tag,
        epoch: u32,
    },
    /// A version's length and chunk count.
    Version { node: u64, version: u64 },
    /// A piece of content. The context names neither key nor generation, so re-wrapping leaves
    /// contents alone.
    Chunk {
        node: u64,
        version: u64,
        index: u32,
        last: bool,
    },
    /// The vault's state.
    State,
}

impl Context<'_> {
    /// The AAD: the fields above in order, as the module describes.
    pub fn bytes(&self, vault: VaultId) -> Vec<u8> {
        let mut aad = Vec::with_capacity(80);
        aad.push(FORMAT);
        aad.push(match self {
            Context::Key { .. } => 1,
            Context::Attributes { .. } => 2,
            Context::Entry { .. } => 3,
            Context::Version { .. } => 4,
            Context::Chunk { .. } => 5,
            Context::State => 6,
        });
        aad.extend_from_slice(&vault.0);
        match *self {
            Context::Key {
                node,
                role,
                generation,
            } => {
                aad.extend_from_slice(&node.to_le_bytes());
                let (role, version) = match role {
                    Role::Metadata => (0, 0),
                    Role::Content { version } => (1, version),
                };
                aad.push(role);
                aad.extend_from_slice(&version.to_le_bytes());
                aad.extend_from_slice(&generation.to_le_bytes());
            }
            Context::Attributes {
                node,
                kind,
                revision,
            } => {
                aad.extend_from_slice(&node.to_le_bytes());
                aad.push(kind);
                aad.extend_from_slice(&revision.to_le_bytes());
            }
            Context::Entry {
                directory,
                tag,
                epoch,
            } => {
                aad.extend_from_slice(&directory.to_le_bytes());
                aad.extend_from_slice(tag);
                aad.extend_from_slice(&epoch.to_le_bytes());
            }
            Context::Version { node, version } => {
                aad.extend_from_slice(&node.to_le_bytes());
                aad.extend_from_slice(&version.to_le_bytes());
            }
            Context::Chunk {
                node,
                version,
                index,
                last,
            } => {
                aad.extend_from_slice(&node.to_le_bytes());
                aad.extend_from_slice(&version.to_le_bytes());
                aad.extend_from_slice(&index.to_le_bytes());
                aad.push(last.into());
            }
            Context::State => {}
        }
        aad
    }
}

// ---------------------------------------------------------------------------------------------
// Sealing under a purpose

macro_rules! seals {
    ($($name:ident)*) => {$(
        impl $name {
            /// Seals `plain`, bound to `context`.
            ///
            /// # Errors
            /// When the generator yields no nonce, or the text is too long.
            pub fn seal(
                &self,
                vault: VaultId,
                context: Context<'_>,
                plain: &[u8],
            ) -> Result<Vec<u8>, super::SealError> {
                super::aead::seal(&self.0, &context.bytes(vault), plain)
            }

            /// Opens `sealed` into memory for secrets.
            ///
            /// # Errors
            /// When key, context or bytes are not those of the seal, or memory ran out.
            pub fn open(
                &self,
                vault: VaultId,
                context: Context<'_>,
                sealed: &[u8],
            ) -> Result<super::SecretBytes, super::OpenFailure> {
                super::aead::open(&self.0, &context.bytes(vault), sealed)
            }

            /// Opens `sealed` into `plain`, whose length must be that of the plain text.
            ///
            /// # Errors
            /// When key, context or bytes are not those of the seal.
            pub fn open_into(
                &self,
                vault: VaultId,
                context: Context<'_>,
                sealed: &[u8],
                plain: &mut [u8],
            ) -> Result<(), super::OpenError> {
                super::aead::open_into(&self.0, &context.bytes(vault), sealed, plain)
            }
        }
    )*};
}

seals!(WrapKey AttributesKey EntryKey StateKey VersionKey ChunkKey);

impl WrapKey {
    /// Seals a data key with one of `nonces`.
    ///
    /// # Errors
    /// When the generator yields no nonce.
    pub fn seal_with(
        &self,
        nonces: &mut super::Nonces,
        vault: VaultId,
        context: Context<'_>,
        plain: &[u8],
    ) -> Result<Vec<u8>, super::SealError> {
        super::aead::seal_with(&self.0, nonces, &context.bytes(vault), plain)
    }
}

#[cfg(test)]
mod tests;
