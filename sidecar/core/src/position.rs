//! Where a history stands.

use std::{fmt, str::FromStr};

/// An (epoch, revision) pair, ordered as a pair: a newer epoch outranks every revision of an older one (DESIGN §1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// One history of revisions.
    pub epoch: u64,
    /// Strictly increasing within the epoch.
    pub revision: u64,
}

/// A text that is not `<epoch>.<revision>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected <epoch>.<revision>, two decimal numbers without sign, blanks or leading zeros")]
pub struct PositionError;

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.revision)
    }
}

impl FromStr for Position {
    type Err = PositionError;

    /// Reads `x-tenant-revision`. Exactly what [`Position`]'s `Display` writes is taken.
    fn from_str(text: &str) -> Result<Self, PositionError> {
        let text = text.as_bytes();
        let dot = text.iter().position(|byte| *byte == b'.').ok_or(PositionError)?;
        Ok(Position { epoch: decimal(&text[..dot])?, revision: decimal(&text[dot + 1..])? })
    }
}

/// In one pass, since each call reads two; and `u64::from_str` also takes "+1" and "007".
fn decimal(text: &[u8]) -> Result<u64, PositionError> {
    if text.is_empty() || (text[0] == b'0' && text.len() > 1) {
        return Err(PositionError);
    }
    let digit = |byte: &u8| byte.wrapping_sub(b'0');
    if text.len() < 20 {
        // No number of 19 digits is too large.
        let (number, digits) = text.iter().fold((0_u64, true), |(number, digits), byte| {
            (number.wrapping_mul(10).wrapping_add(u64::from(digit(byte))), digits & (digit(byte) < 10))
        });
        return digits.then_some(number).ok_or(PositionError);
    }
    text.iter()
        .try_fold(0_u64, |number, byte| {
            let read = number.checked_mul(10)?.checked_add(u64::from(digit(byte)))?;
            (digit(byte) < 10).then_some(read)
        })
        .ok_or(PositionError)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_read_as_it_is_written() {
        for position in [(0, 0), (1, 2), (1_763_000_000_000, 10), (u64::MAX, u64::MAX)] {
            let position = Position { epoch: position.0, revision: position.1 };
            assert_eq!(position.to_string().parse(), Ok(position));
        }
    }

    #[test]
    fn a_position_takes_nothing_but_two_plain_numbers() {
        for bad in [
            "",
            ".",
            "1",
            "1.",
            ".1",
            "1.2.3",
            "+1.2",
            "1.+2",
            "-1.2",
            " 1.2",
            "1.2 ",
            "01.2",
            "1.02",
            "1,2",
            "0x1.2",
            "1.2\n",
            "18446744073709551616.0",
            "0.18446744073709551616",
            "١.٢",
        ] {
            assert_eq!(bad.parse::<Position>(), Err(PositionError), "{bad:?}");
        }
    }

    #[test]
    fn a_newer_epoch_outranks_every_revision_of_an_older_one() {
        let old = Position { epoch: 1, revision: 900 };
        let new = Position { epoch: 2, revision: 1 };
        assert!(new > old);
        assert!(Position { epoch: 2, revision: 2 } > new);
    }
}
