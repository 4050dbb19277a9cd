//! One rule of an Allowlist, and what it wants.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use tenon_proto::policy::v1 as proto;

use super::{Conditions, record};

/// Which tenants an instance serves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Residency {
    /// All of them.
    #[default]
    Any,
    /// Those whose home region is its own.
    Home,
}

/// What a rule wants to know of the tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TenantRequirement {
    /// A servable tenant must be named.
    Required,
    /// A tenant that is named must be servable.
    Optional,
    /// Tenants are ignored and the app is handed none.
    None,
}

/// What a rule wants to be shown besides the caller's identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// Nothing.
    None,
    /// A transaction token.
    Transaction,
}

/// How often one tenant may use a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Calls in every `per`.
    pub count: u64,
    /// A second, a minute or an hour.
    pub per: Duration,
    /// Calls that may come at once.
    pub burst: u64,
}

/// One rule of an Allowlist: what decides, and where the rest stands. There may be many thousand: they are kept small.
#[derive(Clone)]
pub struct Rule {
    /// What it wants to know of the tenant.
    pub tenant: TenantRequirement,
    /// What it wants to be shown.
    pub proof: Proof,
    /// Its tenant conditions, proof and rate are logged and not enforced.
    pub audit: bool,
    /// Which tenants it is for; `None`: all that `tenant` admits. Never beside [`TenantRequirement::None`].
    pub conditions: Option<Box<Conditions>>,
    /// Apart, since few rules have one.
    rate: Option<Box<Rate>>,
    /// Where its field begins in the record. Most decisions do not look there.
    at: u32,
    places: record::Places,
    record: Arc<Bytes>,
}

impl Rule {
    /// The Allowlist it stands in.
    pub fn allowlist(&self) -> &str {
        self.places.name(self.message(), record::tag::ALLOWLIST)
    }

    /// Unique within the service.
    pub fn name(&self) -> &str {
        self.places.name(self.message(), record::tag::NAME)
    }

    /// Where it stands, for explanations: `media.yaml:12`. May be empty.
    pub fn source(&self) -> &str {
        self.places.source(self.message())
    }

    /// Its paths, as they were written.
    pub(super) fn paths(&self) -> impl Iterator<Item = &str> {
        self.places.paths(self.message())
    }

    fn message(&self) -> &[u8] {
        record::rule(&self.record, self.at).0
    }

    /// How often one tenant may use it; `None`: unlimited.
    pub fn rate(&self) -> Option<Rate> {
        self.rate.as_deref().copied()
    }

    /// From its message, without what the index makes of it; its field begins `at` in `all`. An error does not name the rule.
    pub(super) fn compile(record: &proto::Rule, all: &Arc<Bytes>, at: u32) -> Result<Self, String> {
        Ok(Rule {
            tenant: match proto::TenantRequirement::try_from(record.tenant) {
                Ok(proto::TenantRequirement::Required | proto::TenantRequirement::Unspecified) => {
                    TenantRequirement::Required
                }
                Ok(proto::TenantRequirement::Optional) => TenantRequirement::Optional,
                Ok(proto::TenantRequirement::None) => TenantRequirement::None,
                Err(_) => return Err(format!("unknown tenant requirement {}", record.tenant)),
            },
            proof: match proto::Proof::try_from(record.proof) {
                Ok(proto::Proof::None | proto::Proof::Unspecified) => Proof::None,
                Ok(proto::Proof::Transaction) => Proof::Transaction,
                Err(_) => return Err(format!("unknown proof {}", record.proof)),
            },
            audit: record.audit,
            conditions: conditions(record)?,
            rate: record.rate.as_ref().map(|rate| Box::new(Rate::from(rate))),
            at,
            places: record::Places::of(record::rule(all, at).0),
            record: Arc::clone(all),
        })
    }
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rule")
            .field("allowlist", &self.allowlist())
            .field("name", &self.name())
            .field("tenant", &self.tenant)
            .field("proof", &self.proof)
            .field("audit", &self.audit)
            .finish_non_exhaustive()
    }
}

/// The tenant conditions of a rule that looks at tenants.
fn conditions(record: &proto::Rule) -> Result<Option<Box<Conditions>>, String> {
    match &record.tenants {
        None => Ok(None),
        Some(_) if record.tenant() == proto::TenantRequirement::None => {
            Err("it ignores tenants and has conditions for them".to_owned())
        }
        Some(conditions) => Ok(Some(Box::new(Conditions::try_from(conditions)?))),
    }
}

impl From<&proto::Rate> for Rate {
    fn from(record: &proto::Rate) -> Self {
        Rate { count: record.count, per: Duration::from_secs(record.per_seconds.into()), burst: record.burst }
    }
}

impl Residency {
    /// From the number in a record; unspecified is `Any`.
    pub(crate) fn decode(number: i32) -> Result<Self, String> {
        match proto::Residency::try_from(number) {
            Ok(proto::Residency::Any | proto::Residency::Unspecified) => Ok(Residency::Any),
            Ok(proto::Residency::Home) => Ok(Residency::Home),
            Err(_) => Err(format!("unknown residency {number}")),
        }
    }
}
