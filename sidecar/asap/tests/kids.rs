//! A key id joined to a repository's URL (A4, A15), as the URL standard's own parser reads the result.

#![allow(clippy::unwrap_used, reason = "test code: a panic is a failed test")]

use mesh_asap::Kid;
use proptest::prelude::*;
use url::Url;

const BASES: [&str; 6] = [
    "https://keys.example/",
    "https://keys.example",
    "https://keys.example/a/b/",
    "https://keys.example:8443/a/b",
    "http://127.0.0.1:15011/keys/",
    "http://[::1]:1/%20/..%2f/",
];

/// Whether `kid` joined to `base` is below it, and its segments are those of `kid`, byte for byte.
fn stays_below(kid: &Kid, base: &str) {
    let joined = Url::parse(&kid.join(base)).unwrap();
    let parsed = Url::parse(base).unwrap();
    assert_eq!(joined.origin(), parsed.origin());
    assert_eq!((joined.query(), joined.fragment(), joined.username(), joined.password()), (None, None, "", None));
    let folder = |url: &Url| url.path_segments().unwrap().filter(|s| !s.is_empty()).map(str::to_owned).collect();
    let (above, all): (Vec<String>, Vec<String>) = (folder(&parsed), folder(&joined));
    assert_eq!(all[..above.len()], above[..], "below the base");
    assert_eq!(all[above.len()..], kid.segments().collect::<Vec<_>>()[..], "the segments of the key id");
    assert!(joined.path().ends_with(&format!("/{kid}")), "byte for byte: {}", joined.path());
    assert_eq!(joined.as_str(), kid.join(base), "nothing was escaped or resolved");
}

fn segment() -> impl Strategy<Value = String> {
    prop_oneof!["[A-Za-z0-9_.+-]{1,12}", "[.]{1,4}", "[+]{1,3}", "[.+-]{1,3}", Just("..a".to_owned())]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn every_accepted_kid_is_below_the_base_byte_for_byte(segments in prop::collection::vec(segment(), 1..6)) {
        if let Ok(kid) = segments.join("/").parse::<Kid>() {
            for base in BASES {
                stays_below(&kid, base);
            }
        } else {
            prop_assert!(segments.iter().any(|segment| segment == "." || segment == ".."));
        }
    }

    #[test]
    fn whatever_text_is_accepted_as_a_kid_is_below_the_base(
        text in prop_oneof!["[ -~]{0,20}", "(\\.|\\.\\.|/|%2e|%2F|\\\\|a|\\+|:|@|\\?|#|//){0,8}", "\\PC{0,10}"],
    ) {
        if let Ok(kid) = text.parse::<Kid>() {
            for base in BASES {
                stays_below(&kid, base);
            }
        }
    }
}

#[test]
fn a_kid_with_every_allowed_character_is_below_the_base() {
    let kid: Kid = "abcdefghijklmnopqrstuvwxyz/ABCDEFGHIJKLMNOPQRSTUVWXYZ/0123456789/_.-+/.../+/-".parse().unwrap();
    for base in BASES {
        stays_below(&kid, base);
    }
    assert_eq!(kid.join("https://a.example"), kid.join("https://a.example/"));
}
