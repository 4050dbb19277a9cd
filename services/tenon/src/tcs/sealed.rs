//! The file of a backup: encrypted, authenticated, and known to be whole.
//!
//! A header ([`HEADER`] bytes: magic, version, id of the key, salt), then chunks of 64 KiB, the last one shorter or as long,
//! each encrypted with AES-256-GCM under a key that HKDF-SHA256 makes of the key and the salt, so that no two files share
//! one. As in the STREAM construction (Hoang, Reyhanitabar, Rogaway, Vizár 2015) the nonce of a chunk is its number and
//! whether it is the last: chunks that are left out, doubled, swapped or cut off at the end do not open. The header is
//! authenticated with each chunk.

use std::io::{self, Read, Write};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    hkdf::{HKDF_SHA256, Salt},
    rand,
};

use super::key::{Key, hex};

const MAGIC: &[u8; 12] = b"tenon-sealed";
const VERSION: u8 = 1;
const SALT: usize = 32;
/// Bytes of the header: magic, version, id of the key, salt.
const HEADER: usize = MAGIC.len() + 1 + 8 + SALT;
/// Plain bytes of a chunk.
pub(super) const CHUNK: usize = 64 << 10;
/// Bytes that encrypting adds to a chunk.
const TAG: usize = 16;

/// Why a file cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    #[error("this is not a backup")]
    Foreign,
    #[error("the backup is of version {0}, which this program does not know")]
    Version(u8),
    #[error("the backup was made with the key {of}, and this is the key {given}")]
    OtherKey { of: String, given: String },
    #[error("the backup ends too early: the rest of it is missing")]
    Truncated,
    #[error("the backup is damaged, or cut off, within 64 KiB after byte {at}")]
    Damaged {
        /// Where in the file the first chunk begins that does not open.
        at: u64,
    },
    #[error("the backup cannot be read")]
    Read(#[source] io::Error),
}

/// What both sides share.
struct Cipher {
    key: LessSafeKey,
    header: [u8; HEADER],
    chunk: u32,
}

impl Cipher {
    fn new(key: &Key, header: [u8; HEADER]) -> Self {
        let salt = &header[HEADER - SALT..];
        let derived = Salt::new(HKDF_SHA256, salt).extract(key.bytes());
        let key = derived.expand(&[b"tenon backup"], &AES_256_GCM).expect("AES-256 has a shorter key than HKDF makes");
        Self { key: LessSafeKey::new(UnboundKey::from(key)), header, chunk: 0 }
    }

    fn nonce(&self, last: bool) -> Nonce {
        let mut nonce = [0; 12];
        nonce[7..11].copy_from_slice(&self.chunk.to_be_bytes());
        nonce[11] = u8::from(last);
        Nonce::assume_unique_for_key(nonce)
    }
}

/// Encrypts what is written to it. Not whole before [`Sealer::finish`].
pub(super) struct Sealer<W> {
    out: W,
    cipher: Cipher,
    /// Less than a chunk, or a whole one that may be the last.
    plain: Vec<u8>,
}

impl<W: Write> Sealer<W> {
    pub(super) fn begin(mut out: W, key: &Key) -> io::Result<Self> {
        let mut header = [0; HEADER];
        let (magic, rest) = header.split_at_mut(MAGIC.len());
        magic.copy_from_slice(MAGIC);
        rest[0] = VERSION;
        rest[1..9].copy_from_slice(&key.id());
        rand::fill(&mut rest[9..]).map_err(|_| io::Error::other("the operating system gives no randomness"))?;
        out.write_all(&header)?;
        Ok(Self { out, cipher: Cipher::new(key, header), plain: Vec::with_capacity(CHUNK + TAG) })
    }

    pub(super) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.plain.len() == CHUNK {
                self.chunk(false)?;
            }
            let (now, later) = bytes.split_at(bytes.len().min(CHUNK - self.plain.len()));
            self.plain.extend_from_slice(now);
            bytes = later;
        }
        Ok(())
    }

    /// Writes the end, and returns what was written to.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.chunk(true)?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn chunk(&mut self, last: bool) -> io::Result<()> {
        let Cipher { key, header, chunk } = &self.cipher;
        let nonce = self.cipher.nonce(last);
        key.seal_in_place_append_tag(nonce, Aad::from(header), &mut self.plain)
            .map_err(|_| io::Error::other("a chunk cannot be encrypted"))?;
        let next = chunk.checked_add(1).ok_or_else(|| io::Error::other("a backup has at most 256 TiB"))?;
        self.cipher.chunk = next;
        self.out.write_all(&self.plain)?;
        self.plain.clear();
        Ok(())
    }
}

/// Decrypts chunk by chunk. Ends after the last one; what comes before an error is as it was written, but not all.
pub(super) struct Opener<R> {
    input: R,
    cipher: Cipher,
    /// What was read of the file and not opened yet: at most a chunk and one byte more, which tells that there is another.
    sealed: Vec<u8>,
    at: u64,
    ended: bool,
}

impl<R: Read> Opener<R> {
    pub(super) fn begin(mut input: R, key: &Key) -> Result<Self, SealError> {
        let mut header = Vec::new();
        input.by_ref().take(HEADER as u64).read_to_end(&mut header).map_err(SealError::Read)?;
        let known = header.len().min(MAGIC.len());
        if known == 0 || header[..known] != MAGIC[..known] {
            return Err(SealError::Foreign);
        }
        match header.get(MAGIC.len()) {
            Some(&VERSION) => {}
            Some(&version) => return Err(SealError::Version(version)),
            None => return Err(SealError::Truncated),
        }
        let header: [u8; HEADER] = header.try_into().map_err(|_| SealError::Truncated)?;
        let of = &header[MAGIC.len() + 1..HEADER - SALT];
        if of != key.id() {
            return Err(SealError::OtherKey { of: hex(of), given: hex(&key.id()) });
        }
        let cipher = Cipher::new(key, header);
        Ok(Self { input, cipher, sealed: Vec::with_capacity(CHUNK + TAG + 1), at: HEADER as u64, ended: false })
    }

    fn chunk(&mut self) -> Result<Vec<u8>, SealError> {
        let wanted = CHUNK + TAG + 1 - self.sealed.len();
        self.input.by_ref().take(wanted as u64).read_to_end(&mut self.sealed).map_err(SealError::Read)?;
        let last = self.sealed.len() <= CHUNK + TAG;
        if self.sealed.is_empty() {
            return Err(SealError::Truncated);
        }
        let rest = self.sealed.split_off(self.sealed.len().min(CHUNK + TAG));
        let mut chunk = std::mem::replace(&mut self.sealed, rest);
        // Opening overwrites it, and what was cut off at a chunk's end is to be told from what is damaged.
        let kept = last.then(|| chunk.clone());
        let opened = self.open(&mut chunk, last);
        if opened.is_none() {
            let whole = kept.is_some_and(|mut kept| self.open(&mut kept, false).is_some());
            return Err(if whole { SealError::Truncated } else { SealError::Damaged { at: self.at } });
        }
        self.ended = last;
        self.at += chunk.len() as u64;
        self.cipher.chunk = self.cipher.chunk.wrapping_add(1);
        chunk.truncate(chunk.len() - TAG);
        Ok(chunk)
    }

    fn open(&self, chunk: &mut [u8], last: bool) -> Option<()> {
        let Cipher { key, header, .. } = &self.cipher;
        key.open_in_place(self.cipher.nonce(last), Aad::from(header), chunk).ok().map(|_| ())
    }
}

impl<R: Read> Iterator for Opener<R> {
    type Item = Result<Vec<u8>, SealError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let chunk = self.chunk();
        self.ended |= chunk.is_err();
        Some(chunk)
    }
}

#[cfg(test)]
mod tests;
