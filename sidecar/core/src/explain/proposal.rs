//! The smallest change that would allow a refused call. Each step is tried on the decision itself before it is proposed.

use std::fmt;

use mesh_config::path;
use tenon_proto::policy::v1 as proto;

use super::Call;
use crate::{
    Reason, Refusal,
    policy::{Condition, Missed, Policy},
    tenancy::Tenant,
};

/// Steps that are taken together; more than these are no small change.
const MOST_STEPS: usize = 8;

/// Rules that are looked at.
const LOOKED_AT: usize = 1_000;

/// What would allow a refused call, in the order in which to do it. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// All of them are needed.
    pub changes: Vec<Change>,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Add a value to a list of a rule.
    Add {
        /// The rule.
        rule: Place,
        /// The list: `callers`, `paths`, `tenants.ids`, `tenants.regions` or `tenants.products`, where it is an edition.
        field: &'static str,
        /// What to add.
        value: String,
    },
    /// Remove a value from a list of a rule: `tenants.features`.
    Remove {
        /// The rule.
        rule: Place,
        /// The list.
        field: &'static str,
        /// What to remove.
        value: String,
    },
    /// Write a rule that allows this call and no other.
    NewRule {
        /// The callee.
        service: String,
        /// The Allowlist to write it into; `None`: the service has none yet.
        allowlist: Option<String>,
        /// Free within the service.
        name: String,
        /// Its only caller.
        caller: String,
        /// Its only path.
        path: String,
        /// `required` or `none`.
        tenant: &'static str,
    },
    /// Define a service, or a client outside of the mesh, that does not exist.
    Define {
        /// Its name.
        name: String,
    },
    /// Take a service out of its quarantine.
    Release {
        /// The service.
        service: String,
    },
    /// Something that is not the policy's: in words.
    Elsewhere {
        /// What to do.
        what: String,
    },
}

/// Which rule is to be changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its Allowlist.
    pub allowlist: String,
    /// Its name.
    pub rule: String,
    /// Where it stands: `media.yaml:12`. May be empty.
    pub source: String,
}

impl Change {
    /// For machines: `add`, `remove`, `new_rule`, `define`, `release`, `elsewhere`.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Change::Add { .. } => "add",
            Change::Remove { .. } => "remove",
            Change::NewRule { .. } => "new_rule",
            Change::Define { .. } => "define",
            Change::Release { .. } => "release",
            Change::Elsewhere { .. } => "elsewhere",
        }
    }
}

/// `rule product-read of allowlist media (media.yaml:12)`.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rule {} of allowlist {}", self.rule, self.allowlist)?;
        if self.source.is_empty() { Ok(()) } else { write!(f, " ({})", self.source) }
    }
}

/// One line, without a full stop.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Add { rule, field, value } => {
                write!(f, "add {value} to `{field}` of {rule}")?;
                match *field {
                    "tenants.regions" => write!(f, ", which lets in every tenant of {value}"),
                    "tenants.products" => write!(f, ", which lets in every tenant with that edition"),
                    _ => Ok(()),
                }
            }
            Change::Remove { rule, field, value } => {
                write!(f, "remove {value} from `{field}` of {rule}, which lets in tenants without it")
            }
            Change::NewRule { service, allowlist, name, caller, path, tenant } => {
                match allowlist {
                    Some(allowlist) => write!(f, "add to allowlist {allowlist}: ")?,
                    None => write!(f, "write an Allowlist for service {service} with the rule ")?,
                }
                write!(f, "{{name: {name}, callers: [{caller}], paths: [{path}], tenant: {tenant}}}")
            }
            Change::Define { name } => {
                write!(f, "define {name}, a Service or an ExternalClient if it only calls, and ask again")
            }
            Change::Release { service } => write!(f, "take {service} out of its Quarantine"),
            Change::Elsewhere { what } => f.write_str(what),
        }
    }
}

/// Its changes, one after the other.
impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, change) in self.changes.iter().enumerate() {
            write!(f, "{}{change}", if index == 0 { "" } else { "; and " })?;
        }
        Ok(())
    }
}

/// A refused call, and all that a proposal is made from.
pub(super) struct Refused<'a> {
    pub(super) call: Call<'a>,
    /// As [`Policy`] was made from it; `None` for a service without record.
    pub(super) record: Option<&'a proto::ServicePolicy>,
    /// As the caller's and the callee's sidecars see it.
    pub(super) tenant: Option<&'a Tenant>,
    /// The caller is neither a service nor a client that the callee knows.
    pub(super) nobody: bool,
}

impl Refused<'_> {
    /// What would allow the call. `decide` decides it by another policy, `None` when it is allowed.
    pub(super) fn propose(&self, refusal: &Refusal, decide: impl Fn(Policy) -> Option<Refusal>) -> Option<Proposal> {
        let (mut changes, mut refusal) = (Vec::new(), refusal.clone());
        // What the call is decided by once a rule of it was changed: no other rule came before that one.
        let mut only: Option<proto::ServicePolicy> = None;
        while changes.len() < MOST_STEPS {
            let (change, policy) = match (refusal.reason, &only) {
                (Reason::PathNotAllowed, None) if self.nobody => {
                    return one(Change::Define { name: self.call.caller.to_owned() });
                }
                // A pattern would open more than this call, and nothing else can be written down.
                (Reason::PathNotAllowed, None) if !path::is_method(self.call.path) => return None,
                (Reason::PathNotAllowed, None) => self.let_in(&refusal, &decide),
                (Reason::TenantNotAllowed, None) => self.widen(&self.record_of(refusal.rule?)?)?,
                (Reason::TenantNotAllowed, Some(policy)) => self.widen(policy)?,
                (reason, _) => {
                    changes.push(self.elsewhere(reason)?);
                    return Some(Proposal { changes });
                }
            };
            changes.push(change);
            match decide(Policy::try_from(&policy).ok()?) {
                None => return Some(Proposal { changes }),
                Some(still) => (refusal, only) = (still, Some(policy)),
            }
        }
        None
    }

    /// A change that makes a rule match and opens nothing else: of the nearest one, of another that is the caller's alone for
    /// the same gRPC service, or a new one; where the rule itself then has nothing against the call.
    fn let_in(&self, refusal: &Refusal, decide: &impl Fn(Policy) -> Option<Refusal>) -> (Change, proto::ServicePolicy) {
        let nearest = refusal.nearest.as_deref();
        let near = nearest.and_then(|nearest| self.changed(nearest.index, nearest.missed));
        let own = self.own_rules().filter_map(|index| self.changed(index, Missed::Method));
        let of_rules = |policy: &proto::ServicePolicy| {
            let by_rule = decide(Policy::try_from(policy).ok()?).map(|refusal| refusal.reason);
            Some(matches!(
                by_rule,
                Some(
                    Reason::PathNotAllowed
                        | Reason::TenantRequired
                        | Reason::TenantNotAllowed
                        | Reason::TxnMissing
                        | Reason::TxnTenantMismatch
                )
            ))
        };
        near.into_iter()
            .chain(own)
            .find(|(_, policy)| of_rules(policy) == Some(false))
            .unwrap_or_else(|| self.new_rule(nearest.map(|nearest| nearest.allowlist.as_str())))
    }

    /// The enforced rules that have this caller alone, and nothing but exact paths of the gRPC service that is called.
    fn own_rules(&self) -> impl Iterator<Item = u32> {
        let rules = self.record.map(|record| record.rules.as_slice()).unwrap_or_default();
        let service = self.call.path.rsplit_once('/').map_or("", |(service, _)| service);
        let same =
            move |path: &String| path.rsplit_once('/').is_some_and(|(of, method)| of == service && method != "*");
        let own =
            move |rule: &proto::Rule| !rule.audit && rule.callers == [self.call.caller] && rule.paths.iter().all(same);
        (0..).zip(rules).take(LOOKED_AT).filter(move |(_, rule)| own(rule)).map(|(index, _)| index)
    }

    /// A rule with what it was missed by, where that is one value and of the same gRPC service, and lets nothing else in.
    fn changed(&self, index: u32, missed: Missed) -> Option<(Change, proto::ServicePolicy)> {
        let mut policy = self.record_of(index)?;
        let rule = policy.rules.first_mut()?;
        let (list, field, value, others) = match missed {
            Missed::Caller => (&mut rule.callers, "callers", self.call.caller, &rule.paths),
            Missed::Method => (&mut rule.paths, "paths", self.call.path, &rule.callers),
            Missed::CallerAndMethod | Missed::Service => return None,
        };
        let itself = if missed == Missed::Caller { self.call.path } else { self.call.caller };
        if others.iter().any(|other| other != itself) {
            return None;
        }
        list.push(value.to_owned());
        let change = Change::Add { rule: place(rule), field, value: value.to_owned() };
        Some((change, policy))
    }

    fn new_rule(&self, near: Option<&str>) -> (Change, proto::ServicePolicy) {
        let Call { caller, service, path, tenant, .. } = self.call;
        let rules = self.record.map(|record| record.rules.as_slice()).unwrap_or_default();
        let enforced = |name: &&str| !rules.iter().any(|rule| rule.allowlist == **name && rule.audit);
        let allowlists = || near.into_iter().chain(rules.iter().map(|rule| rule.allowlist.as_str()));
        let allowlist = allowlists().find(enforced).or_else(|| allowlists().next()).map(str::to_owned);
        let (tenant, requirement) = match tenant {
            Some(_) => ("required", proto::TenantRequirement::Required),
            None => ("none", proto::TenantRequirement::None),
        };
        let name = self.free_name(rules);
        let rule = proto::Rule {
            allowlist: allowlist.clone().unwrap_or_default(),
            name: name.clone(),
            callers: vec![caller.to_owned()],
            paths: vec![path.to_owned()],
            tenant: requirement.into(),
            proof: proto::Proof::None.into(),
            ..Default::default()
        };
        let (service, caller, path) = (service.to_owned(), caller.to_owned(), path.to_owned());
        (Change::NewRule { service, allowlist, name, caller, path, tenant }, self.with(rule))
    }

    /// `wiki-get`, or with a number where a rule is called that.
    fn free_name(&self, rules: &[proto::Rule]) -> String {
        let method = self.call.path.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
        let fits = |letter: &char| letter.is_ascii_lowercase() || letter.is_ascii_digit();
        let method: String = method.chars().filter(fits).take(30).collect();
        let caller: String = self.call.caller.chars().take(25).collect();
        let base = if method.is_empty() { caller } else { format!("{caller}-{method}") };
        let free = |name: &String| !rules.iter().any(|rule| rule.name == *name);
        // One more than there are rules: one of these is free.
        let numbered = (2..rules.len() + 3).map(|number| format!("{base}-{number}"));
        [base.clone()].into_iter().chain(numbered).find(free).unwrap_or(base)
    }

    /// The only rule of `policy` made to take the tenant in one more respect.
    fn widen(&self, policy: &proto::ServicePolicy) -> Option<(Change, proto::ServicePolicy)> {
        let (tenant, mut policy) = (self.tenant?, policy.clone());
        let product = Some(policy.product.as_str()).filter(|product| !product.is_empty());
        let missed = Policy::try_from(&policy).ok()?.rule(0)?.conditions.as_ref()?.missed(tenant, product)?;
        let held = product.and_then(|product| tenant.held(product));
        let rule = policy.rules.first_mut()?;
        let (at, tenants) = (place(rule), rule.tenants.as_mut()?);
        let add = |list: &mut Vec<String>, field, value: &str| {
            list.push(value.to_owned());
            Change::Add { rule: at.clone(), field, value: value.to_owned() }
        };
        let change = match missed {
            Condition::Id => add(&mut tenants.ids, "tenants.ids", tenant.id()),
            Condition::Region if tenant.region().is_empty() => return None,
            Condition::Region => add(&mut tenants.regions, "tenants.regions", tenant.region()),
            Condition::Edition => {
                let edition = held.map(|held| held.edition()).filter(|edition| !edition.is_empty())?;
                add(&mut tenants.editions, "tenants.products", edition)
            }
            Condition::Feature => {
                let has = |wanted: &String| held.is_some_and(|held| held.features().any(|has| has == wanted));
                let lacking = tenants.features.iter().find(|wanted| !has(wanted))?.clone();
                tenants.features.retain(|wanted| *wanted != lacking);
                Change::Remove { rule: at, field: "tenants.features", value: lacking }
            }
        };
        if *tenants == proto::TenantConditions::default() {
            rule.tenants = None;
        }
        Some((change, policy))
    }

    fn elsewhere(&self, reason: Reason) -> Option<Change> {
        let Call { caller, service, tenant, .. } = self.call;
        let tenant = tenant.unwrap_or_default();
        let product = self.record.map(|record| record.product.as_str()).unwrap_or_default();
        let what = match reason {
            Reason::ServiceUnknown => format!("define {service} as a Service, and ask again"),
            Reason::TenantRequired => "name a tenant in the call: x-tenant-id".to_owned(),
            Reason::TenantSuspended => format!("unsuspend it: tenon tenants unsuspend {tenant}"),
            Reason::TenantUnknown if mesh_config::names::TenantId::try_from(tenant).is_ok() => {
                format!("write tenant {tenant}: tenon tenants apply FILE")
            }
            Reason::ProductNotLicensed => format!("give tenant {tenant} an active licence of product {product}"),
            Reason::ProductSuspended => format!("make product {product} of tenant {tenant} active again"),
            Reason::TenantWrongRegion => {
                let home = self.tenant.map(Tenant::region).filter(|home| !home.is_empty())?;
                format!("call {service}.{home}, where the tenant is at home")
            }
            Reason::TxnMissing => "send the transaction token of the request that this call belongs to".to_owned(),
            Reason::TxnTenantMismatch => "name the tenant that the transaction token was issued for".to_owned(),
            Reason::TenantNotInFlight => format!("let {caller} call for any tenant: originates: true in its Service"),
            // Nothing that somebody could write down would help, or the policy says no and is asked above.
            Reason::TenantUnknown
            | Reason::Quarantined
            | Reason::PathNotAllowed
            | Reason::TenantNotAllowed
            | Reason::TenantAmbiguous
            | Reason::TxnInvalid
            | Reason::TxnExpired
            | Reason::AsapMissing
            | Reason::AsapMalformed
            | Reason::AsapAlgorithm
            | Reason::AsapKeyUnknown
            | Reason::AsapKeysUnavailable
            | Reason::AsapSignature
            | Reason::AsapExpired
            | Reason::AsapNotYetValid
            | Reason::AsapLifetime
            | Reason::AsapAudience
            | Reason::AsapIssuer
            | Reason::AsapSubject
            | Reason::PolicyUnavailable
            | Reason::TenantStale
            | Reason::TcsUnavailable
            | Reason::TenantRateLimited
            | Reason::Overloaded
            | Reason::NoEndpoint
            | Reason::UpstreamConnect
            | Reason::Deadline => return None,
        };
        Some(Change::Elsewhere { what })
    }

    /// The record with this rule alone: those before it did not match, and do not now.
    fn record_of(&self, index: u32) -> Option<proto::ServicePolicy> {
        Some(self.with(self.record?.rules.get(usize::try_from(index).ok()?)?.clone()))
    }

    fn with(&self, rule: proto::Rule) -> proto::ServicePolicy {
        let enforced = proto::Rule { audit: false, ..rule };
        let none = proto::ServicePolicy { service: self.call.service.to_owned(), ..Default::default() };
        let of_all = self.record.map_or(none, |record| proto::ServicePolicy {
            service: record.service.clone(),
            product: record.product.clone(),
            residency: record.residency,
            originates: record.originates,
            external_clients: record.external_clients.clone(),
            ..Default::default()
        });
        proto::ServicePolicy { rules: vec![enforced], ..of_all }
    }
}

fn one(change: Change) -> Option<Proposal> {
    Some(Proposal { changes: vec![change] })
}

fn place(rule: &proto::Rule) -> Place {
    Place { allowlist: rule.allowlist.clone(), rule: rule.name.clone(), source: rule.source.clone() }
}
