//! How long a call may take.

use std::{fmt, time::Duration};

use crate::route::Timeout;

/// Reads `grpc-timeout`: 1 to 8 digits and one of `H M S m u n` (gRPC over HTTP/2, "Timeout"); nothing else is taken.
pub fn parse_grpc_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(value * 3600)),
        "M" => Some(Duration::from_secs(value * 60)),
        "S" => Some(Duration::from_secs(value)),
        "m" => Some(Duration::from_millis(value)),
        "u" => Some(Duration::from_micros(value)),
        "n" => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

/// How long a call may take that brings this `grpc-timeout`, or none; `None`: as long as it likes.
pub fn bounded(brought: Option<Duration>, timeout: Timeout) -> Option<Duration> {
    match (brought.or(timeout.default), timeout.max) {
        (Some(wanted), Some(max)) => Some(wanted.min(max)),
        (wanted, max) => wanted.or(max),
    }
}

/// Whether a `grpc-timeout` still says what is left, close enough to be passed on as it came: a value that stays the same
/// from call to call costs a byte on the wire, and whoever passed it on ends the call in time anyway.
pub fn still_says(brought: Duration, left: Duration) -> bool {
    brought.saturating_sub(left) <= brought / 128
}

/// What is left, as `grpc-timeout` has it: rounded down, in the finest unit that eight digits are enough for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrpcTimeout {
    value: u64,
    unit: char,
}

/// The largest value that eight digits can say.
const LARGEST: u128 = 99_999_999;

impl From<Duration> for GrpcTimeout {
    fn from(left: Duration) -> Self {
        let nanos = left.as_nanos();
        let units = [('n', 1), ('u', 1_000), ('m', 1_000_000), ('S', 1_000_000_000), ('M', 60_000_000_000)];
        let fits = units.into_iter().find(|(_, unit)| nanos / unit <= LARGEST);
        let (unit, value) = fits
            .map_or_else(|| ('H', (nanos / 3_600_000_000_000).min(LARGEST)), |(letter, unit)| (letter, nanos / unit));
        Self { value: u64::try_from(value).unwrap_or(u64::MAX), unit }
    }
}

impl fmt::Display for GrpcTimeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.value, self.unit)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_unit_is_read() {
        for (text, expected) in [
            ("1H", Duration::from_secs(3600)),
            ("2M", Duration::from_secs(120)),
            ("3S", Duration::from_secs(3)),
            ("250m", Duration::from_millis(250)),
            ("7u", Duration::from_micros(7)),
            ("0n", Duration::ZERO),
            ("00000001S", Duration::from_secs(1)),
            ("99999999H", Duration::from_secs(99_999_999 * 3600)),
        ] {
            assert_eq!(parse_grpc_timeout(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn nothing_else_is_read() {
        for text in
            ["", "1", "S", "100000000S", "+1S", "-1S", "1s", "1h", "1.5S", " 1S", "1S ", "1 S", "1mS", "1é", "١S"]
        {
            assert_eq!(parse_grpc_timeout(text), None, "{text:?}");
        }
    }

    #[test]
    fn the_route_says_how_long_a_call_takes_that_does_not_and_how_long_any_may() {
        let s = Duration::from_secs;
        for (brought, default, max, expected) in [
            (None, None, None, None),
            (None, Some(2), None, Some(2)),
            (None, None, Some(9), Some(9)),
            (None, Some(2), Some(9), Some(2)),
            (None, Some(9), Some(2), Some(2)),
            (Some(5), Some(2), None, Some(5)),
            (Some(5), Some(2), Some(3), Some(3)),
            (Some(1), Some(2), Some(3), Some(1)),
        ] {
            let timeout = Timeout { default: default.map(s), max: max.map(s) };
            assert_eq!(bounded(brought.map(s), timeout), expected.map(s), "{brought:?} {timeout:?}");
        }
    }

    #[test]
    fn what_is_left_is_written_in_the_finest_unit_that_has_room() {
        for (left, expected) in [
            (Duration::ZERO, "0n"),
            (Duration::from_nanos(99_999_999), "99999999n"),
            (Duration::from_nanos(100_000_000), "100000u"),
            (Duration::from_millis(4_999), "4999000u"),
            (Duration::from_secs(100), "100000m"),
            (Duration::from_secs(99_999), "99999000m"),
            (Duration::from_secs(100_000), "100000S"),
            (Duration::from_secs(100_000_000), "1666666M"),
            (Duration::from_secs(99_999_999 * 60 + 60), "1666666H"),
            (Duration::from_secs(u64::MAX), "99999999H"),
        ] {
            assert_eq!(GrpcTimeout::from(left).to_string(), expected, "{left:?}");
        }
    }

    #[test]
    fn a_timeout_is_passed_on_as_it_came_while_hardly_anything_is_spent() {
        let ms = Duration::from_millis;
        assert!(still_says(ms(1_280), ms(1_270)));
        assert!(!still_says(ms(1_280), ms(1_269)));
        assert!(!still_says(ms(1_280), Duration::ZERO));
        assert!(still_says(Duration::ZERO, Duration::ZERO));
    }

    proptest! {
        #[test]
        fn nobody_is_given_more_time_than_is_left_or_much_less(nanos in 0_u64..u64::MAX) {
            let left = Duration::from_nanos(nanos);
            let text = GrpcTimeout::from(left).to_string();
            let read = parse_grpc_timeout(&text);
            prop_assert!(read.is_some_and(|read| read <= left), "{} of {:?}", text, left);
            prop_assert!(read.is_some_and(|read| left - read <= left / 1_000), "{} of {:?}", text, left);
        }

        #[test]
        fn whatever_a_caller_writes_is_read_or_not_and_never_more_than_eight_digits(text in "\\PC{0,12}") {
            if let Some(read) = parse_grpc_timeout(&text) {
                prop_assert!(text.len() <= 9);
                prop_assert!(read <= Duration::from_secs(99_999_999 * 3600));
            }
        }

        #[test]
        fn every_value_of_eight_digits_in_every_unit_is_read(value in 0_u64..=99_999_999, unit in "[HMSmun]") {
            let text = format!("{value}{unit}");
            prop_assert!(parse_grpc_timeout(&text).is_some(), "{}", text);
        }
    }
}
