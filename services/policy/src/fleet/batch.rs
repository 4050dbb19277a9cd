//! What a sidecar may report: calls that its own service took, and calls that its own service was kept from making.

use mesh_config::names::ServiceName;
use tenon_proto::policy::v1::{Flow, flow::Decision};

/// Flows of one batch; further ones are dropped.
const FLOWS: usize = 2000;
/// Bytes of a path; a longer one is told as one of many.
const PATH: usize = 512;
/// Bytes of a reason.
const REASON: usize = 64;

/// What of a batch counts.
#[derive(Debug, PartialEq)]
pub(super) struct Accepted {
    pub flows: Vec<Flow>,
    /// How many do not count: of other services, or too many.
    pub dropped: usize,
}

/// The flows that a sidecar of `service` may report.
///
/// The others are dropped, and the batch counts without them: a batch that was refused would be sent again without end,
/// and nothing that the sidecar counts after it would ever be known.
pub(super) fn accept(service: &str, flows: Vec<Flow>) -> Accepted {
    let all = flows.len();
    let flows: Vec<_> = flows.into_iter().take(FLOWS).filter(|flow| is_own(service, flow)).map(tidy).collect();
    Accepted { dropped: all - flows.len(), flows }
}

/// The callee reports every call; its caller only what it refused itself.
fn is_own(service: &str, flow: &Flow) -> bool {
    let inbound = flow.service == service;
    let outbound = flow.caller == service && flow.decision() == Decision::Refused;
    (inbound || outbound) && flow.decision() != Decision::Unspecified && flow.count > 0
}

/// Names and paths are what somebody sent: such as are none are told as nobody, or as one of many, and
/// leave nothing behind: a text that is only cleared keeps its room.
fn tidy(mut flow: Flow) -> Flow {
    for name in [&mut flow.caller, &mut flow.service] {
        if ServiceName::try_from(name.as_str()).is_err() {
            *name = String::new();
        }
    }
    let is_path =
        |path: &str| path.len() <= PATH && path.starts_with('/') && path.bytes().all(|it| it.is_ascii_graphic());
    if !is_path(&flow.path) {
        flow.path = String::new();
    }
    let letter = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
    if flow.reason.len() > REASON || !flow.reason.bytes().all(letter) {
        flow.reason = String::new();
    }
    flow
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(caller: &str, service: &str, decision: Decision) -> Flow {
        Flow {
            caller: caller.to_owned(),
            service: service.to_owned(),
            path: "/a.B/C".to_owned(),
            decision: decision.into(),
            reason: "PATH_NOT_ALLOWED".to_owned(),
            count: 1,
        }
    }

    #[test]
    fn a_sidecar_reports_what_its_service_took_and_what_it_kept_its_service_from() {
        use Decision::{Allowed, Audited, Refused, Unspecified};
        for (caller, service, decision, counts) in [
            ("wiki", "media", Allowed, true),
            ("wiki", "media", Refused, true),
            ("wiki", "media", Audited, true),
            ("", "media", Refused, true),
            ("media", "media", Allowed, true),
            ("media", "wiki", Refused, true),
            ("media", "", Refused, true),
            ("media", "wiki", Allowed, false),
            ("media", "wiki", Audited, false),
            ("wiki", "issues", Allowed, false),
            ("wiki", "issues", Refused, false),
            ("wiki", "media", Unspecified, false),
        ] {
            let flow = flow(caller, service, decision);
            let expected =
                Accepted { dropped: usize::from(!counts), flows: Vec::from_iter(counts.then(|| flow.clone())) };
            assert_eq!(accept("media", vec![flow]), expected, "{caller} to {service}, {decision:?}");
        }
        assert_eq!(accept("media", vec![Flow { count: 0, ..flow("wiki", "media", Allowed) }]).dropped, 1);
        let many = accept("media", vec![flow("wiki", "media", Allowed); 2500]);
        assert_eq!((many.flows.len(), many.dropped), (2000, 500));
    }

    #[test]
    fn what_is_no_name_and_no_path_is_not_kept() {
        let long = format!("/{}", "x".repeat(512));
        let bad = flow("wi ki\n", "media", Decision::Refused);
        for path in ["", "a/b", "/a b", "/a\nb", "/é", long.as_str()] {
            let bad = Flow { path: path.to_owned(), reason: "because\n".to_owned(), ..bad.clone() };
            let accepted = accept("media", vec![bad]);
            let [flow] = &accepted.flows[..] else { panic!("one flow") };
            assert_eq!((flow.caller.as_str(), flow.path.as_str(), flow.reason.as_str()), ("", "", ""), "{path:?}");
            assert_eq!((flow.service.as_str(), flow.count), ("media", 1));
            // Room that is kept is room that is not counted.
            assert_eq!(flow.caller.capacity() + flow.path.capacity() + flow.reason.capacity(), 0, "{path:?}");
        }
        let longest = Flow { path: long[..512].to_owned(), ..flow("wiki", "media", Decision::Refused) };
        assert_eq!(accept("media", vec![longest.clone()]).flows, [longest]);
    }
}
