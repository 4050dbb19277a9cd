//! Reading a message field by field where it lies, without building it: a sidecar may read a million of them at its start.

use std::ops::Range;

use prost::{
    DecodeError,
    bytes::Buf as _,
    encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field},
};

/// A field's value. Those of other types than our messages have are passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Field<'m> {
    Number(u64),
    /// A text or a message, and where it begins.
    Bytes(&'m [u8], usize),
}

impl<'m> Field<'m> {
    /// An enum's value; protobuf keeps its lower half, whatever was sent.
    pub(crate) fn number(self) -> Option<u64> {
        match self {
            Field::Number(number) => Some(number),
            Field::Bytes(..) => None,
        }
    }

    pub(crate) fn bytes(self) -> Option<&'m [u8]> {
        match self {
            Field::Bytes(bytes, _) => Some(bytes),
            Field::Number(_) => None,
        }
    }
}

/// The fields of a message in the order in which they came; ends after the first that is broken.
pub(crate) struct Fields<'m> {
    message: &'m [u8],
    rest: &'m [u8],
    /// Where the field begins that came last.
    last: usize,
}

impl<'m> Fields<'m> {
    pub(crate) fn of(message: &'m [u8]) -> Self {
        Self { message, rest: message, last: 0 }
    }

    /// Where the field that came last begins and ends.
    pub(crate) fn span(&self) -> Range<usize> {
        self.last..self.message.len() - self.rest.len()
    }

    /// The values of all fields with this tag.
    pub(crate) fn all(message: &'m [u8], tag: u32) -> impl Iterator<Item = Field<'m>> {
        Self::of(message).filter_map(move |field| field.ok().filter(|(of, _)| *of == tag).map(|(_, field)| field))
    }

    fn read(&mut self) -> Result<Option<(u32, Field<'m>)>, String> {
        let broken = |error: DecodeError| error.to_string();
        while !self.rest.is_empty() {
            self.last = self.message.len() - self.rest.len();
            let (tag, wire_type) = self.key().map_err(broken)?;
            match wire_type {
                WireType::Varint => {
                    let number = self.varint().map_err(broken)?;
                    return Ok(Some((tag, Field::Number(number))));
                }
                WireType::LengthDelimited => {
                    let length = self.varint().map_err(broken)?;
                    let length = usize::try_from(length).unwrap_or(usize::MAX);
                    let start = self.message.len() - self.rest.len();
                    let bytes = self.rest.get(..length).ok_or_else(|| format!("field {tag} is cut off"))?;
                    self.rest.advance(length);
                    return Ok(Some((tag, Field::Bytes(bytes, start))));
                }
                WireType::StartGroup | WireType::EndGroup | WireType::SixtyFourBit | WireType::ThirtyTwoBit => {
                    skip_field(wire_type, tag, &mut self.rest, DecodeContext::default()).map_err(broken)?;
                }
            }
        }
        Ok(None)
    }

    /// Nearly all keys are a single byte, ...
    fn key(&mut self) -> Result<(u32, WireType), DecodeError> {
        match self.rest {
            [key @ 8..0x80, rest @ ..] => {
                self.rest = rest;
                Ok((u32::from(key >> 3), WireType::try_from(u64::from(key & 7))?))
            }
            _ => decode_key(&mut self.rest),
        }
    }

    /// ... and so are nearly all numbers.
    fn varint(&mut self) -> Result<u64, DecodeError> {
        match self.rest {
            [number @ ..0x80, rest @ ..] => {
                self.rest = rest;
                Ok(u64::from(*number))
            }
            _ => decode_varint(&mut self.rest),
        }
    }
}

impl<'m> Iterator for Fields<'m> {
    type Item = Result<(u32, Field<'m>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        let read = self.read().transpose();
        if matches!(read, Some(Err(_))) {
            self.rest = &[];
        }
        read
    }
}

/// A field that must be text.
pub(crate) fn text<'m>(field: Field<'m>, name: &str) -> Result<&'m str, String> {
    let bytes = field.bytes().ok_or_else(|| format!("{name} is no text"))?;
    std::str::from_utf8(bytes).map_err(|_| format!("{name} is no text"))
}
