//! Routes: what in them never comes to anything, and what may do more than is meant.

use std::{collections::BTreeSet, time::Duration};

use mesh_config::{Caller, Proof, Retry, Route, RouteMethod, StatusCode, TenantCondition, path};

use super::{
    Finding, Subject,
    checks::{
        ATTEMPT_TOO_LATE, Check, HEALTH_CHECK_REFUSED, RETRY_IN_VAIN, RETRY_MAY_REPEAT, ROUTE_FOR_NOBODY,
        ROUTE_NEVER_DECIDES,
    },
    is_infrastructure,
    places::{Place, Step},
    some_of,
};

pub(super) fn check(subject: &Subject<'_>, found: &mut Vec<Finding>) {
    for (service, route) in subject.mesh.routes() {
        let route = Looked { subject, service: service.as_str(), route };
        let mut earlier: Vec<&str> = Vec::new();
        for (index, method) in route.route.methods.iter().enumerate() {
            route.paths(index, method, &earlier, found);
            route.codes(index, method, found);
            route.attempts(index, method, found);
            earlier.extend(method.paths.iter().map(String::as_str));
        }
        route.health_check(found);
    }
}

/// What comes of another attempt as it came of the first.
const IN_VAIN: &[StatusCode] = &[
    StatusCode::Cancelled,
    StatusCode::InvalidArgument,
    StatusCode::NotFound,
    StatusCode::AlreadyExists,
    StatusCode::PermissionDenied,
    StatusCode::FailedPrecondition,
    StatusCode::OutOfRange,
    StatusCode::Unimplemented,
    StatusCode::DataLoss,
    StatusCode::Unauthenticated,
];

/// What an app may answer with its work half done, or done.
const HALF_DONE: &[StatusCode] = &[StatusCode::Unknown, StatusCode::DeadlineExceeded, StatusCode::Internal];

const HEALTH: &str = "/grpc.health.v1.Health/Check";

/// A Route that is looked at.
#[derive(Clone, Copy)]
struct Looked<'s, 'a> {
    subject: &'s Subject<'a>,
    service: &'a str,
    route: &'a Route,
}

impl<'a> Looked<'_, 'a> {
    fn paths(self, index: usize, method: &RouteMethod, earlier: &[&str], found: &mut Vec<Finding>) {
        let own = method.paths.iter().map(String::as_str);
        for (at, path) in own.clone().enumerate() {
            let place = || self.place(index, &[Step::Key("paths"), Step::Item(at)]);
            let in_it = own.clone().filter(|other| *other != path);
            if let Some(taker) = earlier.iter().copied().chain(in_it).find(|taker| path::covers(taker, path)) {
                found.push(Finding {
                    check: &ROUTE_NEVER_DECIDES,
                    place: place(),
                    message: format!(
                        "{path} in the Route of {} decides nothing: {taker} takes all of its calls",
                        self.service
                    ),
                    help: format!("delete it, or move its method up before {taker} if it is to be called otherwise"),
                });
            } else if self.nobody_may(path) {
                found.push(Finding {
                    check: &ROUTE_FOR_NOBODY,
                    place: place(),
                    message: format!("{path} in the Route of {}: no rule lets anybody call it", self.service),
                    help: "correct the path, or add the rule that is missing, or delete it".to_owned(),
                });
            }
        }
    }

    /// Of a service without a rule more is told elsewhere.
    fn nobody_may(self, path: &str) -> bool {
        let rules = self.subject.rules.get(self.service).map(Vec::as_slice).unwrap_or_default();
        let mut named = rules.iter().flat_map(|placed| &placed.rule.paths);
        !rules.is_empty()
            && !is_infrastructure(path)
            && !self.subject.audits(self.service)
            && !named.any(|named| path::covers(named, path) || path::covers(path, named))
    }

    fn codes(self, index: usize, method: &RouteMethod, found: &mut Vec<Finding>) {
        let Some(retry) = &method.retry else { return };
        for (at, code) in retry.codes.iter().enumerate() {
            let place = || self.place(index, &[Step::Key("retry"), Step::Key("codes"), Step::Item(at)]);
            let name = code.as_str();
            if IN_VAIN.contains(code) {
                let message = format!("{} of {} is tried again after {name}: ", first(method), self.service);
                found.push(Finding {
                    check: &RETRY_IN_VAIN,
                    place: place(),
                    message: message + "the answer will be the same",
                    help: format!("delete {name}; if the app says so of what passes, let it answer UNAVAILABLE"),
                });
            } else if HALF_DONE.contains(code) && !method.idempotent {
                let message = format!("{} of {} is tried again after {name}: ", first(method), self.service);
                found.push(Finding {
                    check: &RETRY_MAY_REPEAT,
                    place: place(),
                    message: message + "what was asked for may be done already",
                    help: format!("delete {name}, or write idempotent: true if to do it twice is as good as once"),
                });
            }
        }
    }

    fn attempts(self, index: usize, method: &RouteMethod, found: &mut Vec<Finding>) {
        let Some(limit) = method.timeout.default.or(method.timeout.max) else { return };
        let mut note = |step: &str, field: &str, attempt: u32, after: Duration| {
            let check: &'static Check = &ATTEMPT_TOO_LATE;
            found.push(Finding {
                check,
                place: self.place(index, &[Step::Key(step), Step::Key(field)]),
                message: format!(
                    "attempt {attempt} at {} of {} comes after {} ms, and the call ends after {} ms",
                    first(method),
                    self.service,
                    after.as_millis(),
                    limit.as_millis()
                ),
                help: format!("shorten {field}, or give the call more time, or make fewer attempts"),
            });
        };
        if let Some((attempt, after)) = method.retry.as_ref().and_then(|retry| too_late(retry, limit)) {
            note("retry", "backoff", attempt, after);
        }
        if let Some(hedge) = method.hedge
            && let Some(after) = hedge.after
            && let Some(attempt) = (2..=hedge.attempts).find(|attempt| after * (attempt - 1) >= limit)
        {
            note("hedge", "after", attempt, after * (attempt - 1));
        }
    }

    /// Callers ask in their own name, without a tenant and without a transaction token.
    fn health_check(self, found: &mut Vec<Finding>) {
        if self.route.health_check.is_none() || self.subject.audits(self.service) {
            return;
        }
        let rules = self.subject.rules.get(self.service).map(Vec::as_slice).unwrap_or_default();
        let callers = rules.iter().filter(|placed| !placed.rule.paths.iter().all(|path| is_infrastructure(path)));
        let callers: BTreeSet<&str> = callers.flat_map(|placed| &placed.rule.callers).map(Caller::as_str).collect();
        let may_ask = |caller: &str| {
            let decides = rules.iter().map(|placed| placed.rule).find(|rule| {
                rule.paths.iter().any(|path| path::covers(path, HEALTH))
                    && rule.callers.iter().any(|named| matches!(named, Caller::Any) || named.as_str() == caller)
            });
            decides.is_some_and(|rule| rule.tenant != TenantCondition::Required && rule.proof == Proof::None)
        };
        // Clients outside of the mesh have no sidecar that asks.
        let inside = |caller: &str| caller == "*" || self.subject.mesh.services().contains_key(caller);
        let refused: Vec<&str> = callers.into_iter().filter(|caller| inside(caller) && !may_ask(caller)).collect();
        if refused.is_empty() {
            return;
        }
        let any = if refused.contains(&"*") { "any service".to_owned() } else { some_of(refused) };
        found.push(Finding {
            check: &HEALTH_CHECK_REFUSED,
            place: self.part(&[Step::Key("healthCheck")]),
            message: format!("the health check of {}: no rule lets {any} call {HEALTH} without a tenant", self.service),
            help: format!("add a rule to {} with callers: [\"*\"], paths: [{HEALTH}], tenant: none", self.service),
        });
    }

    fn place(self, index: usize, steps: &[Step<'_>]) -> Place {
        self.part(&[&[Step::Key("methods"), Step::Item(index)], steps].concat())
    }

    fn part(self, steps: &[Step<'_>]) -> Place {
        let Self { subject, route, .. } = self;
        subject.places.part("Route", route.name.as_str(), &[&[Step::Key("spec")], steps].concat())
    }
}

/// What a method is called in a message.
fn first(method: &RouteMethod) -> &str {
    method.paths.first().map(String::as_str).unwrap_or_default()
}

/// The first attempt whose pauses alone, by their means, take as long as the call may; and how long they take.
fn too_late(retry: &Retry, limit: Duration) -> Option<(u32, Duration)> {
    let (mut after, mut pause) = (Duration::ZERO, retry.backoff);
    for attempt in 2..=retry.attempts {
        after += pause;
        if after >= limit {
            return Some((attempt, after));
        }
        pause = (pause * 2).min(retry.max_backoff);
    }
    None
}
