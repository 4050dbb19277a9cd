//! What changes in how a service is called, in words.

use std::{collections::BTreeMap, fmt::Display};

use tenon_proto::policy::v1::{MethodRoute, Route, RouteSettings, Timeout};

use crate::units;

/// One line for each service whose Route says something else: `route media: timeout now default 5s max 30s`. None for one that
/// goes with its service, nor where it merely stands elsewhere.
pub fn route_changes(old: &BTreeMap<String, Route>, new: &BTreeMap<String, Route>) -> Vec<String> {
    let line = |(service, route): (&String, &Route)| {
        let old = old.get(service).and_then(|route| route.settings.as_ref());
        let what = match (old, &route.settings) {
            (None, None) => return None,
            (None, Some(_)) => " added".to_owned(),
            (Some(_), None) => " removed".to_owned(),
            (Some(old), Some(new)) => format!(": {}", changed(old, new)?),
        };
        Some(format!("route {service}{what}"))
    };
    new.iter().filter_map(line).collect()
}

/// `None` when both say the same, by whatever name and in whatever place.
fn changed(old: &RouteSettings, new: &RouteSettings) -> Option<String> {
    let mut what = Vec::new();
    if old.timeout != new.timeout {
        what.push(format!("timeout now {}", timeout(new.timeout.as_ref())));
    }
    if old.retry_budget != new.retry_budget {
        let budget = new.retry_budget.map(|budget| format!("{}% and {}/s", budget.percent, budget.min_per_second));
        what.push(now("retryBudget", budget));
    }
    let replay = |route: &RouteSettings| match (route.replay_off, route.replay_bytes) {
        (true, _) => Some("off".to_owned()),
        (false, 0) => None,
        (false, bytes) => Some(units::size(bytes)),
    };
    if replay(old) != replay(new) {
        what.push(now("replayBytes", replay(new)));
    }
    if old.outliers != new.outliers {
        what.push("outliers changed".to_owned());
    }
    if old.slow_start_ms != new.slow_start_ms {
        let slow_start = new.slow_start_ms.map(|ms| if ms == 0 { "off".to_owned() } else { units::time(ms.into()) });
        what.push(now("slowStart", slow_start));
    }
    if old.health_check != new.health_check {
        what.push(format!("healthCheck {}", verb(&old.health_check, &new.health_check)));
    }
    if old.limits != new.limits {
        what.push(format!("limits {}", verb(&old.limits, &new.limits)));
    }
    what.extend(methods(&old.methods, &new.methods));
    (!what.is_empty()).then(|| what.join("; "))
}

fn now(field: &str, value: Option<impl Display>) -> String {
    match value {
        Some(value) => format!("{field} now {value}"),
        None => format!("{field} now the default"),
    }
}

fn verb<T>(old: &Option<T>, new: &Option<T>) -> &'static str {
    match (old, new) {
        (None, _) => "added",
        (Some(_), None) => "removed",
        (Some(_), Some(_)) => "changed",
    }
}

fn timeout(timeout: Option<&Timeout>) -> String {
    let timeout = timeout.copied().unwrap_or_default();
    let part =
        |name: &str, ms: u64| if ms == 0 { format!("{name} off") } else { format!("{name} {}", units::time(ms)) };
    format!("{} {}", part("default", timeout.default_ms), part("max", timeout.max_ms))
}

/// Methods are known by their paths.
fn methods(old: &[MethodRoute], new: &[MethodRoute]) -> Option<String> {
    let find = |methods: &[MethodRoute], paths: &[String]| methods.iter().find(|one| one.paths == paths).cloned();
    let mut what = Vec::new();
    let mut note = |methods: Vec<&MethodRoute>, verb: &str| {
        if !methods.is_empty() {
            let paths: Vec<&str> = methods.iter().flat_map(|one| &one.paths).map(String::as_str).collect();
            what.push(format!("{} {verb}", paths.join(" ")));
        }
    };
    note(new.iter().filter(|one| find(old, &one.paths).is_some_and(|before| before != **one)).collect(), "changed");
    note(new.iter().filter(|one| find(old, &one.paths).is_none()).collect(), "added");
    note(old.iter().filter(|one| find(new, &one.paths).is_none()).collect(), "removed");
    let order = |methods: &[MethodRoute], other: &[MethodRoute]| -> Vec<Vec<String>> {
        methods.iter().filter(|one| find(other, &one.paths).is_some()).map(|one| one.paths.clone()).collect()
    };
    if order(old, new) != order(new, old) {
        what.push("in another order".to_owned());
    }
    (!what.is_empty()).then(|| format!("methods {}", what.join(", ")))
}

#[cfg(test)]
mod tests {
    use tenon_proto::policy::v1::{HealthCheck, Limits, Outliers, RetryBudget};

    use super::*;

    fn routes(settings: Option<RouteSettings>) -> BTreeMap<String, Route> {
        BTreeMap::from([("media".to_owned(), Route { settings, ..Route::default() })])
    }

    fn method(path: &str, max_ms: u64) -> MethodRoute {
        let timeout = Some(Timeout { default_ms: 0, max_ms });
        MethodRoute { paths: vec![path.to_owned()], timeout, ..MethodRoute::default() }
    }

    #[test]
    fn each_part_that_changes_is_told_by_its_name_in_files() {
        let old =
            RouteSettings { methods: vec![method("/a.B/Get", 1), method("/a.B/Old", 1)], ..RouteSettings::default() };
        let new = RouteSettings {
            timeout: Some(Timeout { default_ms: 5_000, max_ms: 0 }),
            retry_budget: Some(RetryBudget { percent: 5, min_per_second: 1 }),
            replay_off: true,
            outliers: Some(Outliers::default()),
            slow_start_ms: Some(1_500),
            health_check: Some(HealthCheck::default()),
            limits: Some(Limits::default()),
            methods: vec![method("/a.B/Get", 2), method("/a.B/*", 1)],
            ..RouteSettings::default()
        };
        assert_eq!(
            route_changes(&routes(Some(old.clone())), &routes(Some(new.clone()))),
            [
                "route media: timeout now default 5s max off; retryBudget now 5% and 1/s; replayBytes now off; outliers changed; \
              slowStart now 1500ms; healthCheck added; limits added; methods /a.B/Get changed, /a.B/* added, /a.B/Old removed"
            ]
        );
        assert_eq!(
            route_changes(&routes(Some(new)), &routes(Some(old))),
            [
                "route media: timeout now default off max off; retryBudget now the default; replayBytes now the default; \
              outliers changed; slowStart now the default; healthCheck removed; limits removed; methods /a.B/Get changed, \
              /a.B/Old added, /a.B/* removed"
            ]
        );
    }

    #[test]
    fn a_route_comes_and_goes() {
        let some = routes(Some(RouteSettings::default()));
        assert_eq!(route_changes(&routes(None), &some), ["route media added"]);
        assert_eq!(route_changes(&BTreeMap::new(), &some), ["route media added"]);
        assert_eq!(route_changes(&some, &routes(None)), ["route media removed"]);
        assert!(route_changes(&some, &BTreeMap::new()).is_empty(), "its service went");
    }

    #[test]
    fn where_and_by_which_name_it_stands_means_nothing() {
        let old =
            RouteSettings { methods: vec![method("/a.B/Get", 1), method("/a.B/List", 1)], ..RouteSettings::default() };
        let moved = RouteSettings { name: "other".to_owned(), source: "b.yaml:7".to_owned(), ..old.clone() };
        assert!(route_changes(&routes(Some(old.clone())), &routes(Some(moved))).is_empty());
        let turned = RouteSettings { methods: old.methods.iter().rev().cloned().collect(), ..RouteSettings::default() };
        let lines = route_changes(&routes(Some(old)), &routes(Some(turned)));
        assert_eq!(lines, ["route media: methods in another order"]);
    }
}
