//! DESIGN §6 and the checks of §3, read out loud: slow, without an index, and sharing nothing with the code that it judges.
//! Where a sentence of the design stands behind a line, it stands above it.

use tenon_proto::{policy::v1 as proto, tcs::v1::TenantContext};

/// The last revision of tenants that is here.
pub const REACHED: u64 = 10;
/// Everything that can be called.
pub const SERVICES: [&str; 4] = ["a", "b", "me", "stranger"];

/// Everything that decides, but the call.
#[derive(Debug)]
pub struct World {
    pub policy: proto::ServicePolicy,
    pub quarantined: Vec<String>,
    pub tenants: Vec<TenantContext>,
    /// Where this instance runs.
    pub here: Option<&'static str>,
    pub now: u64,
}

/// One call to the service of the policy, and one that its app makes.
#[derive(Debug)]
pub struct Call {
    pub caller: &'static str,
    /// Its certificate is that of the client outside of the mesh which has this name, where there is one.
    pub as_outside: bool,
    pub path: &'static str,
    /// The values of `x-tenant-id`.
    pub tenants: Vec<&'static str>,
    /// The revision in `x-tenant-revision`.
    pub seen: Option<u64>,
    pub txn: Txn,
    /// Whom the app calls.
    pub to: &'static str,
    /// The tenants that the app is serving right now.
    pub serving: Vec<&'static str>,
}

/// The transaction token of a call.
#[derive(Clone, Copy, Debug)]
pub enum Txn {
    None,
    Many,
    Bad,
    Old,
    /// A good one, of this tenant or of none.
    Of(Option<&'static str>),
}

/// What comes of a call.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    /// `ALLOWED`, a reason, or `audited` and the reason.
    pub outcome: String,
    /// The rule that decided.
    pub rule: Option<usize>,
    /// The tenant that the app is handed.
    pub app_gets: Option<String>,
}

type Check = Result<(), &'static str>;

impl World {
    pub fn inbound(&self, call: &Call) -> Outcome {
        let refused = |reason: &str, rule| Outcome { outcome: reason.to_owned(), rule, app_gets: None };
        // "What overrides everything, audit too, is a Quarantine: it cuts a service off in both directions at once."
        if self.quarantined.iter().any(|name| *name == call.caller || *name == self.policy.service) {
            return refused("QUARANTINED", None);
        }
        // "Among all rules of the service, [...] the first that matches caller and path decides".
        let mut deciding = None;
        for (index, rule) in self.policy.rules.iter().enumerate() {
            if self.names_caller(rule, call) && names_path(rule, call.path) {
                deciding = Some((index, rule));
                break;
            }
        }
        let Some((index, rule)) = deciding else {
            // "When no rule matches, the call is refused, unless one of the service's Allowlists is in audit mode: then it
            // passes, is logged and counted, with its tenant attached if it is a servable one." Not for outside clients.
            if self.policy.audit_allowlist.is_empty() || self.is_outside(call) {
                return refused("PATH_NOT_ALLOWED", None);
            }
            let servable = call.tenants.len() == 1 && self.fresh(call).is_ok() && self.tenant_is_servable(call).is_ok();
            let app_gets = servable.then(|| call.tenants[0].to_owned());
            return Outcome { outcome: "audited PATH_NOT_ALLOWED".to_owned(), rule: None, app_gets };
        };

        let looks_at_tenants = rule.tenant() != proto::TenantRequirement::None;
        let looks_at_this = looks_at_tenants && !call.tenants.is_empty();
        let required = !matches!(rule.tenant(), proto::TenantRequirement::Optional | proto::TenantRequirement::None);
        // In the order of the table in §3.
        let token = if rule.proof() == proto::Proof::Transaction { token(call, looks_at_tenants) } else { Ok(()) };
        let fresh = if looks_at_this { self.fresh(call) } else { Ok(()) };
        let named = if required && call.tenants.is_empty() { Err("TENANT_REQUIRED") } else { Ok(()) };
        let servable = if looks_at_this { self.tenant_is_servable(call) } else { Ok(()) };
        let intended = if looks_at_this { self.rule_is_for(rule, call) } else { Ok(()) };

        // "If its Allowlist is in audit mode, those are logged and not enforced": the tenant is still handed over, if it
        // is one that may be served.
        let app_gets = (looks_at_this && fresh.is_ok() && servable.is_ok()).then(|| call.tenants[0].to_owned());
        let first_failure = token.and(fresh).and(named).and(servable).and(intended);
        match first_failure {
            Ok(()) => Outcome { outcome: "ALLOWED".to_owned(), rule: Some(index), app_gets },
            Err(reason) if rule.audit => Outcome { outcome: format!("audited {reason}"), rule: Some(index), app_gets },
            Err(reason) => refused(reason, Some(index)),
        }
    }

    /// The rule that came closest to a call which none matches, and what the call missed it by: the caller alone, else a
    /// method of the same gRPC service, else both, else all but the caller.
    pub fn nearest(&self, call: &Call) -> Option<(usize, &'static str)> {
        let first = |fits: &dyn Fn(&proto::Rule) -> bool| self.policy.rules.iter().position(fits);
        let beside = |rule: &proto::Rule| {
            let service = |path: &str| path.rsplit_once('/').map(|(service, _)| service.to_owned());
            is_path(call.path) && rule.paths.iter().any(|allowed| service(allowed) == service(call.path))
        };
        first(&|rule| names_path(rule, call.path))
            .map(|rule| (rule, "caller"))
            .or_else(|| Some((first(&|rule| beside(rule) && self.names_caller(rule, call))?, "method")))
            .or_else(|| Some((first(&beside)?, "caller_and_method")))
            .or_else(|| Some((first(&|rule| self.names_caller(rule, call))?, "service")))
    }

    /// What the sidecar says of a call of the service's own app.
    pub fn outbound(&self, call: &Call) -> String {
        let outcome = || -> Check {
            if self.quarantined.iter().any(|name| *name == self.policy.service || *name == call.to) {
                return Err("QUARANTINED");
            }
            let tenant = match call.tenants[..] {
                [] => return Ok(()),
                [tenant] => tenant,
                // "A tenant named twice [...] is TENANT_AMBIGUOUS."
                _ => return Err("TENANT_AMBIGUOUS"),
            };
            // "A tenant id that breaks the grammar [...]" is TENANT_UNKNOWN; "an unknown tenant id is passed on".
            if !is_tenant_id(tenant) {
                return Err("TENANT_UNKNOWN");
            }
            // "originates: false: only for tenants it is serving right now".
            if !self.policy.originates && !call.serving.contains(&tenant) {
                return Err("TENANT_NOT_IN_FLIGHT");
            }
            Ok(())
        };
        outcome().err().unwrap_or("ALLOWED").to_owned()
    }

    fn is_outside(&self, call: &Call) -> bool {
        call.as_outside && self.policy.external_clients.iter().any(|client| client.name == call.caller)
    }

    fn names_caller(&self, rule: &proto::Rule, call: &Call) -> bool {
        let mut names = false;
        for allowed in &rule.callers {
            if allowed == "*" {
                // "* is any authenticated service of the mesh".
                names |= !self.is_outside(call);
            } else {
                // Services and outside clients share names in rules, but nobody passes as one of the others.
                let means_outside = self.policy.external_clients.iter().any(|client| client.name == *allowed);
                names |= allowed == call.caller && means_outside == self.is_outside(call);
            }
        }
        names
    }

    /// "The replica has reached x-tenant-revision".
    fn fresh(&self, call: &Call) -> Check {
        match call.seen {
            Some(revision) if revision > REACHED => Err("TENANT_STALE"),
            _ => Ok(()),
        }
    }

    /// "Named, known, active, product active and licensed, home region served here".
    fn tenant_is_servable(&self, call: &Call) -> Check {
        let tenant = self.tenant(call).ok_or("TENANT_UNKNOWN")?;
        if tenant.status != 1 {
            return Err("TENANT_SUSPENDED");
        }
        if !self.policy.product.is_empty() {
            let product = tenant.products.get(&self.policy.product).ok_or("PRODUCT_NOT_LICENSED")?;
            let licence_ended = match &product.license_expires_at {
                Some(end) => (end.seconds as u64) < self.now,
                None => false,
            };
            match product.state {
                // "A product that is missing, INACTIVE or past license_expires_at is PRODUCT_NOT_LICENSED."
                1 if licence_ended => return Err("PRODUCT_NOT_LICENSED"),
                1 => {}
                3 => return Err("PRODUCT_SUSPENDED"),
                _ => return Err("PRODUCT_NOT_LICENSED"),
            }
        }
        // "home: serves only tenants whose home region is the instance's own".
        if self.policy.residency == 2 && self.here != Some(tenant.region.as_str()) {
            return Err("TENANT_WRONG_REGION");
        }
        Ok(())
    }

    /// "Every list that is given must be met."
    fn rule_is_for(&self, rule: &proto::Rule, call: &Call) -> Check {
        let (Some(tenant), Some(conditions)) = (self.tenant(call), &rule.tenants) else { return Ok(()) };
        let product = tenant.products.get(&self.policy.product).cloned().unwrap_or_default();
        let among = |list: &[String], value: &String| list.is_empty() || list.contains(value);
        let fits = among(&conditions.ids, &tenant.tenant_id)
            && among(&conditions.regions, &tenant.region)
            && among(&conditions.editions, &product.edition)
            && conditions.features.iter().all(|wanted| product.features.contains(wanted));
        if fits { Ok(()) } else { Err("TENANT_NOT_ALLOWED") }
    }

    fn tenant(&self, call: &Call) -> Option<&TenantContext> {
        match call.tenants[..] {
            [id] => self.tenants.iter().find(|tenant| tenant.tenant_id == id),
            _ => None,
        }
    }
}

/// "Paths are compared byte for byte, without query; /pkg.Service/* needs a non-empty method without /."
fn names_path(rule: &proto::Rule, path: &str) -> bool {
    rule.paths.iter().any(|allowed| match allowed.strip_suffix("/*") {
        Some(service) => match path.rsplit_once('/') {
            Some((before, method)) => before == service && !method.is_empty(),
            None => false,
        },
        None => allowed == path,
    })
}

/// `/package.Service/Method`
fn is_path(path: &str) -> bool {
    let parts: Vec<&str> = path.split('/').collect();
    parts.len() == 3 && parts[0].is_empty() && !parts[1].is_empty() && !parts[2].is_empty()
}

/// "Transaction token, where the rule wants one: valid, current, [...] same tenant"; a rule that ignores tenants ignores the
/// token's too.
fn token(call: &Call, looks_at_tenants: bool) -> Check {
    match call.txn {
        Txn::None => Err("TXN_MISSING"),
        Txn::Many | Txn::Bad => Err("TXN_INVALID"),
        Txn::Old => Err("TXN_EXPIRED"),
        Txn::Of(of_token) => {
            let same = match call.tenants[..] {
                [] => of_token.is_none(),
                [tenant] => of_token == Some(tenant),
                _ => false,
            };
            if same || !looks_at_tenants { Ok(()) } else { Err("TXN_TENANT_MISMATCH") }
        }
    }
}

/// `[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?`
fn is_tenant_id(text: &str) -> bool {
    let letters = text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    (1..=63).contains(&text.len()) && letters && !text.starts_with('-') && !text.ends_with('-')
}
