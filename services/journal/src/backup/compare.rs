//! Whether two histories say the same: a backup and a store that was made from it.

use std::cmp::Ordering;

use futures_util::{TryStreamExt as _, future, stream};

use super::{Item, Reader};
use crate::{Cause, Part, Parts, ReadError};

/// Differences that are told one by one.
const TOLD: usize = 10;

/// How two histories differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// Records and changes that only one has, or that are not the same.
    pub count: u64,
    /// What the first of them are, for people.
    pub first: Vec<String>,
    /// Records and changes that were compared.
    pub compared: u64,
}

/// Compares all records and changes, each pair once, with bounded memory.
///
/// # Errors
/// When one of them cannot be read to its end.
pub async fn compare(mut one: Parts, mut other: Parts) -> Result<Differences, ReadError> {
    let (mut ours, mut theirs) = (Vec::new().into_iter(), Vec::new().into_iter());
    let mut found = Differences::default();
    loop {
        if ours.as_slice().is_empty() {
            ours = one.try_next().await?.unwrap_or_default().into_iter();
        }
        if theirs.as_slice().is_empty() {
            theirs = other.try_next().await?.unwrap_or_default().into_iter();
        }
        let order = match (ours.as_slice().first(), theirs.as_slice().first()) {
            (None, None) => return Ok(found),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(ours), Some(theirs)) => in_history(ours, theirs),
        };
        let ours = if order.is_le() { ours.next() } else { None };
        let theirs = if order.is_ge() { theirs.next() } else { None };
        found.compared += 1;
        if ours != theirs {
            found.count += 1;
            if found.first.len() < TOLD {
                found.first.extend(ours.as_ref().or(theirs.as_ref()).map(name));
            }
        }
    }
}

/// The records and changes of one kind of a backup that comes in these pieces. The whole backup is read and checked.
pub fn parts(kind: &str, pieces: impl Iterator<Item = Result<Vec<u8>, Cause>> + Send + 'static) -> Parts {
    let (kind, mut within) = (kind.to_owned(), false);
    let mut reading = Some((pieces, Reader::default()));
    let batches = std::iter::from_fn(move || {
        let (pieces, reader) = reading.as_mut()?;
        let read = match pieces.next() {
            None => reading.take().map(|(_, reader)| reader.finish().map(|()| Vec::new()))?.map_err(Cause::from),
            Some(piece) => piece.and_then(|piece| {
                reader.push(&piece);
                let mut parts = Vec::new();
                while let Some(item) = reader.item()? {
                    match item {
                        Item::Section(section) => within = section.kind == kind,
                        Item::Part(part) if within => parts.push(part),
                        Item::Part(_) | Item::Begin { .. } | Item::End => {}
                    }
                }
                Ok(parts)
            }),
        };
        if read.is_err() {
            reading = None;
        }
        Some(read.map_err(ReadError))
    });
    Box::pin(stream::iter(batches).try_filter(|parts| future::ready(!parts.is_empty())))
}

/// The same without its changes.
pub fn records(parts: Parts) -> Parts {
    let records = parts.map_ok(|parts| parts.into_iter().filter(|part| matches!(part, Part::Record(_))).collect());
    Box::pin(records.try_take_while(|parts: &Vec<_>| future::ready(Ok(!parts.is_empty()))))
}

fn in_history(one: &Part, other: &Part) -> Ordering {
    match (one, other) {
        (Part::Record(one), Part::Record(other)) => one.key.cmp(&other.key),
        (Part::Record(_), Part::Change(_)) => Ordering::Less,
        (Part::Change(_), Part::Record(_)) => Ordering::Greater,
        (Part::Change(one), Part::Change(other)) => other.entry.revision.cmp(&one.entry.revision),
    }
}

fn name(part: &Part) -> String {
    match part {
        Part::Record(record) => format!("the record of {}", record.key),
        Part::Change(change) => format!("the change of revision {}, of {}", change.entry.revision, change.entry.key),
    }
}
