//! The chain: what a record's hash is over, and who checks that nothing was changed, removed or put elsewhere. Pure.

use aws_lc_rs::digest::{Context, SHA256, digest};
use tenon_proto::audit::v1::Record;

/// SHA-256.
pub type Hash = [u8; 32];

/// What is hashed first, so that no other use of SHA-256 makes one of these.
const RECORD: &[u8] = b"tenon audit record 1\0";
const BEGINNING: &[u8] = b"tenon audit chain 1\0";

/// What the first record of a service's chain follows on.
#[must_use]
pub fn beginning(service: &str) -> Hash {
    to_hash(digest(&SHA256, &[BEGINNING, service.as_bytes()].concat()).as_ref())
}

/// What the hash of a record must be: over all of its other fields, numbers as 8 bytes in network order, everything else
/// with its length before it.
#[must_use]
pub fn hash(record: &Record) -> Hash {
    let Record { sequence, at_unix_ms, service, by, action, what, outcome, of, details, previous, hash: _ } = record;
    let mut context = Context::new(&SHA256);
    let number = |context: &mut Context, number: u64| context.update(&number.to_be_bytes());
    let part = |context: &mut Context, part: &[u8]| {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    };
    context.update(RECORD);
    part(&mut context, previous);
    for value in [*sequence, *at_unix_ms, *of] {
        number(&mut context, value);
    }
    for text in [service, by, action, what, outcome] {
        part(&mut context, text.as_bytes());
    }
    number(&mut context, details.len() as u64);
    for (name, value) in details {
        part(&mut context, name.as_bytes());
        part(&mut context, value.as_bytes());
    }
    to_hash(context.finish().as_ref())
}

fn to_hash(bytes: &[u8]) -> Hash {
    bytes.try_into().expect("SHA-256 has 32 bytes")
}

/// Where a chain stands: its last record, or none at 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub sequence: u64,
    pub hash: Hash,
}

/// The first thing that is wrong with a chain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("record {0} was changed: it is not what its hash, or that of the record after it, says")]
    Changed(u64),
    #[error("record {0} was removed")]
    Removed(u64),
    #[error("the records were reordered: record {found} stands where record {expected} should be")]
    Reordered { expected: u64, found: u64 },
    #[error("the end was removed: the last record is {last}, and there was one {known}")]
    Cut { last: u64, known: u64 },
    #[error("record {0} was replaced, and all after it were made anew: it is not the one that was there before")]
    Rewritten(u64),
}

/// Checks a chain, record after record.
#[derive(Debug)]
pub struct Verifier {
    last: Head,
    /// What stood there at earlier times.
    known: Vec<Head>,
    fault: Option<Fault>,
    /// The record that came in place of the one that is missing: whether that one comes later is not known yet.
    instead: Option<u64>,
}

impl Verifier {
    /// For the chain of one service, from its first record on. `known` are heads that it had at earlier times.
    #[must_use]
    pub fn new(service: &str, known: Vec<Head>) -> Self {
        Self { last: Head { sequence: 0, hash: beginning(service) }, known, fault: None, instead: None }
    }

    /// Takes the next record, in the order in which they are kept.
    pub fn push(&mut self, record: &Record) {
        let expected = self.last.sequence + 1;
        if let Some(found) = self.instead {
            if record.sequence == expected {
                self.fault = Some(Fault::Reordered { expected, found });
                self.instead = None;
            }
            return;
        }
        if self.fault.is_some() {
            return;
        }
        match self.judge(record, expected) {
            Ok(head) => self.last = head,
            Err(fault) => {
                self.instead = matches!(fault, Fault::Removed(_)).then_some(record.sequence);
                self.fault = Some(fault);
            }
        }
    }

    /// Where the chain ends, when nothing is wrong with it.
    ///
    /// # Errors
    /// The first thing that is.
    pub fn finish(self) -> Result<Head, Fault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        match self.known.iter().map(|known| known.sequence).max() {
            Some(known) if known > self.last.sequence => Err(Fault::Cut { last: self.last.sequence, known }),
            Some(_) | None => Ok(self.last),
        }
    }

    fn judge(&self, record: &Record, expected: u64) -> Result<Head, Fault> {
        let hash = hash(record);
        if record.hash[..] != hash {
            return Err(Fault::Changed(expected));
        }
        if record.sequence > expected {
            return Err(Fault::Removed(expected));
        }
        if record.sequence < expected {
            return Err(Fault::Reordered { expected, found: record.sequence });
        }
        if record.previous[..] != self.last.hash {
            return Err(Fault::Changed(expected.saturating_sub(1).max(1)));
        }
        if self.known.iter().any(|known| known.sequence == expected && known.hash != hash) {
            return Err(Fault::Rewritten(expected));
        }
        Ok(Head { sequence: expected, hash })
    }
}

#[cfg(test)]
mod tests;
