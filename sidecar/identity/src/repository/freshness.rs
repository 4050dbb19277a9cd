//! How long an answer counts, as its headers say (A16; RFC 9111 §4.2, RFC 5861 §3). Never reads the clock.

use http::HeaderMap;
use http::header::{AGE, CACHE_CONTROL};

/// Without a word of the repository: 10 min fresh.
const FRESH: u64 = 600;
/// Without a word of the repository: 20 min stale.
const STALE: u64 = 1200;
/// RFC 9111 §1.2.2: a larger number counts as this one.
const FOREVER: u64 = 1 << 31;

/// Seconds, counted from the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Freshness {
    /// No need to ask again.
    pub fresh: u64,
    /// After that: may be used while it is asked again.
    pub stale: u64,
}

impl Freshness {
    /// `max-age` (less `Age`) and `stale-while-revalidate` as they are given. A repository that gives `max-age` alone
    /// allows no stale use; one that gives neither gets 10 and 20 min. `no-store` and `no-cache` count as neither fresh
    /// nor stale, as does a value that is no number.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let mut max_age = None;
        let mut stale = None;
        for directive in headers.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok()).flat_map(split) {
            let (name, value) = directive.split_once('=').unwrap_or((directive, ""));
            let given = match name.trim().to_ascii_lowercase().as_str() {
                "max-age" => &mut max_age,
                "stale-while-revalidate" => &mut stale,
                "no-store" | "no-cache" => return Self { fresh: 0, stale: 0 },
                _ => continue,
            };
            // The shortest of several: whoever says two things gets the safer one.
            let seconds = seconds(value);
            *given = Some(given.map_or(seconds, |before: u64| before.min(seconds)));
        }
        let age = headers.get(AGE).and_then(|value| value.to_str().ok()).map_or(0, seconds);
        Self {
            fresh: max_age.unwrap_or(FRESH).saturating_sub(age),
            stale: stale.unwrap_or(if max_age.is_some() { 0 } else { STALE }),
        }
    }
}

/// At the commas outside of quotes.
fn split(value: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    value.split(move |letter| {
        quoted ^= letter == '"';
        letter == ',' && !quoted
    })
}

fn seconds(value: &str) -> u64 {
    let value = value.trim();
    let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value);
    if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_digit()) {
        return 0;
    }
    // Only digits: what does not fit is too large.
    value.parse().unwrap_or(FOREVER).min(FOREVER)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(headers: &[(&'static str, &'static str)]) -> (u64, u64) {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        let Freshness { fresh, stale } = Freshness::of(&map);
        (fresh, stale)
    }

    #[test]
    fn a16_without_a_word_ten_minutes_fresh_and_twenty_stale() {
        assert_eq!(of(&[]), (600, 1200));
        assert_eq!(of(&[("cache-control", "public, immutable")]), (600, 1200));
    }

    #[test]
    fn a16_max_age_and_stale_while_revalidate_are_honoured() {
        for (value, expected) in [
            ("max-age=60, stale-while-revalidate=30", (60, 30)),
            ("public,MAX-AGE=60,Stale-While-Revalidate=30,x", (60, 30)),
            ("max-age=\"60\"", (60, 0)),
            ("max-age=60", (60, 0)),
            ("stale-while-revalidate=30", (600, 30)),
            ("max-age=0, stale-while-revalidate=0", (0, 0)),
            ("max-age=99999999999999999999", (FOREVER, 0)),
            ("max-age=60, max-age=50", (50, 0)),
            ("x=\"a, max-age=1\", max-age=60", (60, 0)),
        ] {
            assert_eq!(of(&[("cache-control", value)]), expected, "{value}");
        }
        let both = [("cache-control", "max-age=60"), ("cache-control", "stale-while-revalidate=5"), ("age", "20")];
        assert_eq!(of(&both), (40, 5));
        assert_eq!(of(&[("cache-control", "max-age=60"), ("age", "61")]), (0, 0));
    }

    #[test]
    fn a16_what_must_not_be_kept_or_is_no_number_is_not_kept() {
        for value in ["no-store", "max-age=60, no-cache", "max-age=-1", "max-age=1.5", "max-age", "max-age=soon"] {
            assert_eq!(of(&[("cache-control", value)]), (0, 0), "{value}");
        }
    }
}
