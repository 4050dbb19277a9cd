//! Services that are cut off in both directions at once (DESIGN §6).

use ahash::AHashMap;
use tenon_proto::policy::v1 as proto;

use crate::{Reason, Refusal};

/// The services that are cut off at the moment, each with the operator's reason.
#[derive(Clone, Debug, Default)]
pub struct Quarantined(AHashMap<Box<str>, Box<str>>);

impl Quarantined {
    /// The operator's reason, for logs, or `None` when the service is not cut off.
    pub fn reason(&self, service: &str) -> Option<&str> {
        self.0.get(service).map(AsRef::as_ref)
    }

    /// Refuses a call when either side is cut off. The operator's words stay out of the refusal.
    pub fn check(&self, caller: &str, callee: &str) -> Result<(), Refusal> {
        if self.0.is_empty() {
            return Ok(());
        }
        match [caller, callee].into_iter().find(|service| self.0.contains_key(*service)) {
            Some(service) => Err(Refusal::new(Reason::Quarantined, format!("service {service} is quarantined"))),
            None => Ok(()),
        }
    }
}

impl<'r> FromIterator<&'r proto::Quarantine> for Quarantined {
    fn from_iter<I: IntoIterator<Item = &'r proto::Quarantine>>(records: I) -> Self {
        Self(records.into_iter().map(|q| (q.service.as_str().into(), q.reason.as_str().into())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarantine_cuts_both_directions_and_nobody_else() {
        let record = proto::Quarantine { service: "wiki".into(), reason: "leaked key".into() };
        let quarantined = Quarantined::from_iter([&record]);
        for (caller, callee, refused) in
            [("wiki", "media", true), ("media", "wiki", true), ("wiki", "wiki", true), ("issues", "media", false)]
        {
            let outcome = quarantined.check(caller, callee);
            assert_eq!(outcome.is_err(), refused, "{caller} to {callee}");
            if let Err(refusal) = outcome {
                assert_eq!(refusal.to_string(), "QUARANTINED: service wiki is quarantined");
            }
        }
        assert_eq!(quarantined.reason("wiki"), Some("leaked key"));
        assert_eq!(quarantined.reason("media"), None);
    }
}
