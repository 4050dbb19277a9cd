//! Which calls an operator wants to watch (`tenon tap`), and what of their headers may be told.

use tenon_proto::policy::v1::TapFilter;

/// Which calls are wanted; `None` is any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    service: Option<Box<str>>,
    caller: Option<Box<str>>,
    tenant: Option<Box<str>>,
    path: Option<Paths>,
    refused: bool,
    both_sides: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Paths {
    Exactly(Box<str>),
    BeginWith(Box<str>),
}

/// What a filter looks at of a call that has ended.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// By the callee's sidecar; else by the caller's.
    pub inbound: bool,
    /// By the sidecar that saw it.
    pub refused: bool,
    /// Who called.
    pub caller: &'a str,
    /// The callee.
    pub service: &'a str,
    /// Without query.
    pub path: &'a str,
    /// Its id; empty: none was named.
    pub tenant: &'a str,
}

/// Longest text in a filter, in bytes.
const LONGEST: usize = 1024;

impl TryFrom<TapFilter> for Filter {
    type Error = String;

    /// # Errors
    /// Which field is wrong, and what was expected.
    fn try_from(filter: TapFilter) -> Result<Self, String> {
        let TapFilter { service, caller, tenant, path, refused, both_sides } = filter;
        for (field, text) in [("service", &service), ("caller", &caller), ("tenant", &tenant), ("path", &path)] {
            if text.len() > LONGEST {
                return Err(format!("{field} has more than {LONGEST} bytes"));
            }
        }
        let path = match path.strip_suffix('*') {
            _ if path.is_empty() => None,
            _ if !path.starts_with('/') => {
                return Err(format!("path is {path}, expected /package.Service/Method, or a beginning of it and `*`"));
            }
            Some(beginning) => Some(Paths::BeginWith(beginning.into())),
            None => Some(Paths::Exactly(path.into())),
        };
        let some = |text: String| (!text.is_empty()).then(|| text.into());
        Ok(Self { service: some(service), caller: some(caller), tenant: some(tenant), path, refused, both_sides })
    }
}

impl Filter {
    /// Whether the call is one of those.
    #[must_use]
    pub fn matches(&self, seen: &Seen<'_>) -> bool {
        let fits = |wanted: &Option<Box<str>>, is: &str| wanted.as_deref().is_none_or(|wanted| wanted == is);
        // What the callee's sidecar has not refused, and the caller's has let go, the callee's tells of.
        let its_side = seen.inbound || seen.refused || self.both_sides;
        its_side
            && (seen.refused || !self.refused)
            && fits(&self.service, seen.service)
            && fits(&self.caller, seen.caller)
            && fits(&self.tenant, seen.tenant)
            && match &self.path {
                None => true,
                Some(Paths::Exactly(path)) => **path == *seen.path,
                Some(Paths::BeginWith(beginning)) => seen.path.starts_with(&**beginning),
            }
    }
}

/// Headers whose values are told to whoever may watch: they are of the protocol, and say nothing about anybody.
const TOLD: [&str; 9] = [
    "content-type",
    "te",
    "user-agent",
    "grpc-accept-encoding",
    "grpc-encoding",
    "grpc-previous-rpc-attempts",
    "grpc-timeout",
    "traceparent",
    "x-tenant-revision",
];

/// Parts of the names of headers that hold credentials. Their values are told to nobody.
const SECRET: [&str; 9] = ["auth", "cookie", "credential", "key", "pass", "secret", "session", "signature", "token"];

/// What may be told of a header's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Telling {
    /// It is told.
    Always,
    /// Where an admin asks for it by name.
    WhenAsked,
    /// Never: it holds a credential, or is binary.
    Never,
}

/// What may be told of the values of header `name`, which is in lower case.
#[must_use]
pub fn telling(name: &str) -> Telling {
    if TOLD.contains(&name) {
        Telling::Always
    } else if name.ends_with("-bin") || SECRET.iter().any(|part| name.contains(part)) {
        Telling::Never
    } else {
        Telling::WhenAsked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALL: Seen<'_> = Seen {
        inbound: true,
        refused: false,
        caller: "wiki",
        service: "media",
        path: "/media.v1.Media/Get",
        tenant: "acme",
    };

    fn filter(change: impl FnOnce(&mut TapFilter)) -> Filter {
        let mut filter = TapFilter::default();
        change(&mut filter);
        Filter::try_from(filter).unwrap()
    }

    #[test]
    fn each_field_narrows_and_an_empty_one_does_not() {
        for (filter, matches) in [
            (filter(|_| {}), true),
            (filter(|it| it.service = "media".into()), true),
            (filter(|it| it.service = "wiki".into()), false),
            (filter(|it| it.caller = "wiki".into()), true),
            (filter(|it| it.caller = "media".into()), false),
            (filter(|it| it.tenant = "acme".into()), true),
            (filter(|it| it.tenant = "acm".into()), false),
            (filter(|it| it.path = "/media.v1.Media/Get".into()), true),
            (filter(|it| it.path = "/media.v1.Media/Ge".into()), false),
            (filter(|it| it.path = "/media.v1.*".into()), true),
            (filter(|it| it.path = "/issues.v1.*".into()), false),
            (filter(|it| it.refused = true), false),
        ] {
            assert_eq!(filter.matches(&CALL), matches, "{filter:?}");
        }
        assert!(filter(|it| it.refused = true).matches(&Seen { refused: true, ..CALL }));
        assert!(!filter(|it| it.tenant = "acme".into()).matches(&Seen { tenant: "", ..CALL }));
    }

    #[test]
    fn of_a_call_that_both_sides_see_the_callees_is_told() {
        let outbound = Seen { inbound: false, ..CALL };
        assert!(!filter(|_| {}).matches(&outbound));
        assert!(filter(|_| {}).matches(&Seen { refused: true, ..outbound }), "nobody else has seen it");
        assert!(filter(|it| it.both_sides = true).matches(&outbound));
    }

    #[test]
    fn a_filter_that_makes_no_sense_is_refused_by_name() {
        let path = TapFilter { path: "media.v1.Media/Get".into(), ..TapFilter::default() };
        assert!(Filter::try_from(path).unwrap_err().starts_with("path is media.v1.Media/Get, expected"));
        let tenant = TapFilter { tenant: "t".repeat(2_000), ..TapFilter::default() };
        assert_eq!(Filter::try_from(tenant).unwrap_err(), "tenant has more than 1024 bytes");
    }

    #[test]
    fn no_credential_is_told_even_to_who_asks() {
        for name in [
            "authorization",
            "proxy-authorization",
            "cookie",
            "x-asap-token",
            "txn-token",
            "x-api-key",
            "x-tenant-context-bin",
            "x-amz-security-token",
            "x-session-id",
            "x-hub-signature-256",
            "password",
        ] {
            assert_eq!(telling(name), Telling::Never, "{name}");
        }
        assert_eq!(telling("user-agent"), Telling::Always);
        assert_eq!(telling("x-tenant-id"), Telling::WhenAsked);
        assert_eq!(telling("baggage"), Telling::WhenAsked);
    }
}
