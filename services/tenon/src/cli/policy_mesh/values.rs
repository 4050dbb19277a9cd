//! What the flags of `tenon policy` take: spans of time, shares, revisions and notes.

use std::{str::FromStr, time::Duration};

use replica::Position;

/// The longest note that the policy service takes, in characters.
const LONGEST_NOTE: usize = 1_000;

/// A share of the sidecars, over 0 to 100.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Percent(pub f64);

/// A revision of the policy, as somebody types it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Revision {
    Whole(Position),
    /// Of the present epoch.
    Plain(u64),
}

impl Revision {
    /// With the epoch that the mesh is in.
    pub fn within(self, epoch: u64) -> Position {
        match self {
            Self::Whole(position) => position,
            Self::Plain(revision) => Position::new(epoch, revision),
        }
    }
}

impl FromStr for Revision {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let plain = text.parse().ok().filter(|_| digits).map(Self::Plain);
        let whole = || text.parse().ok().map(Self::Whole);
        plain.or_else(whole).ok_or_else(|| {
            "expected EPOCH.REVISION or a revision, as `tenon policy history` shows it: 1761302400000.42, 42".to_owned()
        })
    }
}

/// Whole numbers with their units, the larger one first: `30s`, `10m`, `1h30m`, `7d`.
pub(in crate::cli) fn span(text: &str) -> Result<Duration, String> {
    let wrong = || "expected a time with its unit, not 0: 30s, 10m, 12h, 7d".to_owned();
    let (mut rest, mut total, mut last) = (text, 0_u64, u64::MAX);
    while !rest.is_empty() {
        let unit_at = rest.find(|letter: char| !letter.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, unit) = rest.split_at(unit_at);
        let seconds = match unit.as_bytes().first() {
            Some(b's') => 1,
            Some(b'm') => 60,
            Some(b'h') => 60 * 60,
            Some(b'd') => 24 * 60 * 60,
            _ => return Err(wrong()),
        };
        if seconds >= last {
            return Err(wrong());
        }
        last = seconds;
        let number: u64 = number.parse().map_err(|_| wrong())?;
        total = number.checked_mul(seconds).and_then(|more| total.checked_add(more)).ok_or_else(wrong)?;
        rest = unit.get(1..).unwrap_or_default();
    }
    // A rollout counts in 32 bits, and nobody waits for a century.
    match u32::try_from(total) {
        Ok(1..) => Ok(Duration::from_secs(total)),
        _ => Err(wrong()),
    }
}

/// `5%`, `0.5%`; the sign may be left out.
pub(super) fn percent(text: &str) -> Result<Percent, String> {
    let number: f64 = text.strip_suffix('%').unwrap_or(text).parse().unwrap_or(f64::NAN);
    if number > 0.0 && number <= 100.0 {
        return Ok(Percent(number));
    }
    Err("expected a share over 0 % and at most 100 %: 5%".to_owned())
}

/// What fits into the history.
pub(super) fn note(text: &str) -> Result<String, String> {
    match text.chars().count() {
        ..=LONGEST_NOTE => Ok(text.to_owned()),
        characters => Err(format!("{characters} characters, expected {LONGEST_NOTE} at most")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_units_and_are_never_nothing() {
        let seconds = |text: &str| span(text).map(|span| span.as_secs());
        assert_eq!((seconds("30s"), seconds("10m"), seconds("7d")), (Ok(30), Ok(600), Ok(7 * 86_400)));
        assert_eq!((seconds("1h30m"), seconds("2m30s")), (Ok(5400), Ok(150)));
        for wrong in
            ["", "0s", "30", "s", "-1s", "1.5h", "30m1h", "1h1h", "1w", "1 h", "99999999999999999999d", "100000d", "é"]
        {
            assert!(span(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn shares_are_over_0_and_at_most_100() {
        assert_eq!(
            (percent("5%"), percent("0.5"), percent("100%")),
            (Ok(Percent(5.0)), Ok(Percent(0.5)), Ok(Percent(100.0)))
        );
        for wrong in ["", "%", "0%", "-1%", "101%", "NaN", "inf", "5%%"] {
            assert!(percent(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_revision_is_of_the_present_epoch_unless_it_says() {
        let within = |text: &str| text.parse::<Revision>().map(|revision| revision.within(7));
        assert_eq!((within("42"), within("6.42")), (Ok(Position::new(7, 42)), Ok(Position::new(6, 42))));
        for wrong in ["", "x", "-1", "+1", "1.", ".1", "1.2.3"] {
            assert!(wrong.parse::<Revision>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_note_fits_into_the_history() {
        assert_eq!(note(&"ä".repeat(1_000)).map(|note| note.chars().count()), Ok(1_000));
        assert!(note(&"ä".repeat(1_001)).is_err());
    }
}
