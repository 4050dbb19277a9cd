//! Where in which history a map is.

use std::{fmt, str::FromStr};

use tenon_proto::replication::v1 as wire;

/// A revision within an epoch. Pairs are ordered, so a newer history is always ahead of an older one (DESIGN §1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    pub epoch: u64,
    pub revision: u64,
}

impl Position {
    /// Nothing of any history; what an empty resume point means on the wire.
    pub const ZERO: Self = Self { epoch: 0, revision: 0 };

    #[must_use]
    pub const fn new(epoch: u64, revision: u64) -> Self {
        Self { epoch, revision }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.revision)
    }
}

/// The text is not `<epoch>.<revision>` in plain decimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected <epoch>.<revision>, two decimal numbers")]
pub struct ParsePositionError;

impl FromStr for Position {
    type Err = ParsePositionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |part: &str| {
            if part.is_empty() || !part.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(ParsePositionError);
            }
            part.parse().map_err(|_| ParsePositionError)
        };
        let (epoch, revision) = text.split_once('.').ok_or(ParsePositionError)?;
        Ok(Self { epoch: number(epoch)?, revision: number(revision)? })
    }
}

impl From<Position> for wire::Position {
    fn from(position: Position) -> Self {
        Self { epoch: position.epoch, revision: position.revision }
    }
}

impl From<wire::Position> for Position {
    fn from(position: wire::Position) -> Self {
        Self { epoch: position.epoch, revision: position.revision }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_epoch_is_ahead_of_any_revision_of_an_older_one() {
        assert!(Position::new(2, 0) > Position::new(1, u64::MAX));
        assert!(Position::new(2, 3) > Position::new(2, 2));
    }

    #[test]
    fn text_is_strict_decimal_and_round_trips() {
        for position in [Position::ZERO, Position::new(17, 4), Position::new(u64::MAX, u64::MAX)] {
            assert_eq!(position.to_string().parse(), Ok(position));
        }
        for bad in ["", ".", "1", "1.", ".1", "+1.2", "1.-2", "1.2.3", " 1.2", "1.18446744073709551616", "a.b"] {
            assert_eq!(bad.parse::<Position>(), Err(ParsePositionError), "{bad}");
        }
    }
}
