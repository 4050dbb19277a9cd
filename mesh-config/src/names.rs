//! The names that a mesh is spoken of in, each a type of its own that cannot hold anything else.
//!
//! All of them are cheap to clone (`Arc<str>`), compare as bytes and are never normalised: what is not already in the
//! right form is refused.

use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

/// Why a text is not the name that it was meant to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {what}, expected {expected}")]
pub struct NameError {
    /// What it was meant to be, for example "service name".
    what: &'static str,
    /// The text, cut short when it is long.
    text: String,
    /// The grammar in words.
    expected: &'static str,
}

impl NameError {
    /// What is wrong, with a hint behind it.
    pub(crate) fn with_hint(&self, hint: &str) -> String {
        format!("{:?} is not a {}{hint}, expected {}", self.text, self.what, self.expected)
    }

    /// The grammar in words, without the text that broke it.
    pub fn expected(&self) -> &'static str {
        self.expected
    }
}

/// `[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?` in words.
const LABEL: &str = "1 to 63 of a-z, 0-9 and \"-\", with a letter or digit first and last";

/// Names of the control-plane services, which have SVIDs like any other service but are no part of a mesh's policy.
pub mod control_plane {
    /// The certificate authority and key repository.
    pub const IDENTITY: &str = "tenon-identity";
    /// The Tenant Context Service.
    pub const TCS: &str = "tenon-tcs";
    /// The policy service.
    pub const POLICY: &str = "tenon-policy";
    /// What policy files may not begin a service's name with.
    pub const PREFIX: &str = "tenon-";
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $valid:path, $expected:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<&str> for $name {
            type Error = NameError;

            fn try_from(text: &str) -> Result<Self, NameError> {
                if $valid(text) {
                    Ok(Self(text.into()))
                } else {
                    Err(NameError { what: $what, text: short(text), expected: $expected })
                }
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::try_from(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                Self::try_from(text.as_str())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        // Sound for look-ups: Eq, Hash and Ord are those of the text.
        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl PartialEq<str> for $name {
            fn eq(&self, other: &str) -> bool {
                &*self.0 == other
            }
        }

        impl PartialEq<&str> for $name {
            fn eq(&self, other: &&str) -> bool {
                &*self.0 == *other
            }
        }
    };
}

name! {
    /// A service of the mesh: `[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?`. Never with a region.
    ServiceName, "service name", is_label, LABEL
}

name! {
    /// A region: the same grammar as a service.
    RegionName, "region name", is_label, LABEL
}

name! {
    /// A zone within a region: the same grammar as a service.
    ZoneName, "zone name", is_label, LABEL
}

name! {
    /// A tenant id (DESIGN §1): `[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?`, so that a UUID fits.
    TenantId, "tenant id", is_label, LABEL
}

name! {
    /// A product that tenants are licensed for: the same grammar as a service.
    ProductName, "product name", is_label, LABEL
}

name! {
    /// A tenant's site: a lower-case DNS name of at most 253 bytes (RFC 1123), without a dot at its end.
    HostName, "host name", is_dns_name,
    "a lower-case DNS name: labels of a-z, 0-9 and \"-\" with dots between them, at most 253 bytes"
}

name! {
    /// A SPIFFE trust domain: 1 to 255 of `a-z`, `0-9`, `.`, `-` and `_` (SPIFFE-ID §2.1).
    TrustDomain, "trust domain", is_trust_domain, "1 to 255 of a-z, 0-9, \".\", \"-\" and \"_\""
}

name! {
    /// Who signs ASAP tokens (A4, A5): what stands before the last part of a key id, so one or more segments with `/`
    /// between them.
    Issuer, "well-formed issuer", is_issuer,
    "segments of A-Z, a-z, 0-9 and \"_.-+\" with \"/\" between them, none of them \".\" or \"..\", at most 254 bytes"
}

name! {
    /// Name of a document or of a rule in policy files. Only people read it.
    DocumentName, "name", is_document_name,
    "1 to 63 of letters, digits, \".\", \"_\" and \"-\", with a letter or digit first and last"
}

fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        && bytes.first() != Some(&b'-')
        && bytes.last() != Some(&b'-')
}

fn is_dns_name(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_label)
}

fn is_trust_domain(text: &str) -> bool {
    (1..=255).contains(&text.len()) && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_'))
}

/// A key id is an issuer, `/` and something more, and has at most 256 bytes.
fn is_issuer(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-' | b'+' | b'/');
    text.len() <= 254 && text.bytes().all(allowed) && text.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

fn is_document_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
}

/// At most 80 characters of a text that somebody else wrote, so that a message stays a line.
pub(crate) fn short(text: &str) -> String {
    let mut cut: String = text.chars().take(80).collect();
    if cut.len() < text.len() {
        cut.push('…');
    }
    cut
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_takes_what_the_grammar_takes_and_nothing_else() {
        let longest = "a".repeat(63);
        let uuid = "018f4e6a-9c1d-7b3a-8f21-5d2c7e9a0b11";
        for good in ["a", "0", "media", "eu-west", "a--b", uuid, longest.as_str()] {
            assert_eq!(ServiceName::try_from(good).unwrap(), good);
        }
        let too_long = "a".repeat(64);
        for bad in ["", "-", "-a", "a-", "A", "media.eu", "me dia", "médias", "a_b", "a\n", too_long.as_str()] {
            assert!(TenantId::try_from(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_host_name_is_lower_case_labels_with_dots_between() {
        for good in ["acme.example", "a", "x-1.y.z"] {
            assert_eq!(HostName::try_from(good).unwrap().as_str(), good);
        }
        let too_long = ["a".repeat(63).as_str(); 4].join(".");
        for bad in ["", ".", "acme.", ".acme", "a..b", "Acme.example", "acme.example:80", too_long.as_str()] {
            assert!(HostName::try_from(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_issuer_is_what_may_stand_before_a_key_id() {
        let longest = "a".repeat(254);
        for good in ["partner", "micros/partner", "A_b.c-d+e/..f", longest.as_str()] {
            assert!(Issuer::try_from(good).is_ok(), "{good:?}");
        }
        let too_long = "a".repeat(255);
        for bad in ["", "/", "a/", "/a", "a//b", ".", "a/..", "a/./b", "a b", "a%2f", "é", "a:b", too_long.as_str()] {
            assert!(Issuer::try_from(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_trust_domain_follows_the_spiffe_grammar() {
        assert!(TrustDomain::try_from("demo.example").is_ok());
        assert!(TrustDomain::try_from("a_b-c.1").is_ok());
        for bad in ["", "Demo", "a/b", "a:1", "a%20"] {
            assert!(TrustDomain::try_from(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_error_says_what_was_expected_and_stays_short() {
        let error = ServiceName::try_from("X".repeat(500).as_str()).unwrap_err().to_string();
        assert!(error.contains("is not a service name, expected 1 to 63 of a-z"), "{error}");
        assert!(error.len() < 250, "{error}");
    }
}
