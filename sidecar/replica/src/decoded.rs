//! The handle of kinds whose records are few: any type, with the bytes it was read from.

use std::{fmt, ops::Deref};

use bytes::Bytes;
use triomphe::ThinArc;

use crate::Value;

/// What is made of a record's bytes. [`Decoded`] makes a [`Value`] of it.
pub trait Decode: Sized + Send + Sync + 'static {
    /// Decodes the record of `key` as it was at `revision`. `raw` may be a slice of a large message: what keeps bytes of
    /// it copies them.
    ///
    /// # Errors
    /// As [`Value::decode`].
    fn decode(key: &str, revision: u64, raw: Bytes) -> Result<Self, String>;

    /// As [`Value::aliases`].
    fn aliases(&self) -> impl Iterator<Item = &str> {
        std::iter::empty()
    }
}

/// A decoded record, as a handle that is cheap to clone: key, revision, bytes and what was made of them, in one
/// allocation.
pub struct Decoded<T>(ThinArc<Header<T>, u8>);

/// A record of which only the bytes are of interest.
pub type Raw = Decoded<()>;

struct Header<T> {
    revision: u64,
    /// Where the raw bytes begin: the key comes before them.
    key_end: usize,
    value: T,
}

impl<T: Decode> Decoded<T> {
    /// A record of its own, for tests and for maps that are built by hand.
    ///
    /// # Errors
    /// As [`Value::decode`].
    pub fn new(key: &str, revision: u64, raw: Bytes) -> Result<Self, String> {
        let bytes = [key.as_bytes(), &raw].concat();
        let value = T::decode(key, revision, raw)?;
        Ok(Self(ThinArc::from_header_and_slice(Header { revision, key_end: key.len(), value }, &bytes)))
    }
}

impl<T: Decode> Value for Decoded<T> {
    fn decode(key: &str, revision: u64, raw: Bytes) -> Result<Self, String> {
        Self::new(key, revision, raw)
    }

    fn key(&self) -> &str {
        let key = &self.0.slice[..self.0.header.header.key_end];
        std::str::from_utf8(key).expect("copied from a str")
    }

    fn revision(&self) -> u64 {
        self.0.header.header.revision
    }

    fn raw(&self) -> &[u8] {
        &self.0.slice[self.0.header.header.key_end..]
    }

    fn aliases(&self) -> impl Iterator<Item = &str> {
        self.0.header.header.value.aliases()
    }
}

impl Decode for () {
    fn decode(_: &str, _: u64, _: Bytes) -> Result<Self, String> {
        Ok(())
    }
}

impl<T> Clone for Decoded<T> {
    fn clone(&self) -> Self {
        Self(ThinArc::clone(&self.0))
    }
}

impl<T> Deref for Decoded<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.header.header.value
    }
}

impl<T: fmt::Debug> fmt::Debug for Decoded<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        T::fmt(self, f)
    }
}

/// Two are equal when the same was received.
impl<T: Decode> PartialEq for Decoded<T> {
    fn eq(&self, other: &Self) -> bool {
        (self.key(), self.revision(), self.raw()) == (other.key(), other.revision(), other.raw())
    }
}

impl<T: Decode> Eq for Decoded<T> {}
