//! What a policy means, as `semantics/table.md` describes it: policy files and calls, one line each, against the language
//! and the decision code together.

#[path = "semantics/page.rs"]
mod page;

use std::{collections::BTreeSet, sync::Arc};

use mesh_config::{Records, SourceFile, compile, parse, tenant::read_json_lines};
use page::{Page, Row, Section};
use prost::Message as _;
use sidecar_core::{
    Credentials, Named, Peer, Position, Quarantined, Reason, Refusal, Token, Transaction, inbound,
    outbound::{self, Destinations},
    policy::Policy,
    tenancy::{Held, Tenant},
};
use tenon_proto::policy::v1::Endpoint;

/// 2026-01-01T00:00:00Z.
const NOW: u64 = 1_767_225_600;
const REACHED: Position = Position { epoch: 5, revision: 10 };
const PARTNER: &str = include_str!("semantics/partner.yaml");

#[test]
fn every_line_of_the_table_is_what_comes() {
    let page = page::read(include_str!("semantics/table.md"));
    let (mut lines, mut wrong, mut outcomes) = (0, Vec::new(), BTreeSet::new());
    for section in &page.sections {
        let files = files(&page, section);
        let mesh = match (parse(&files), &section.refused) {
            (Ok(mesh), None) => mesh,
            (Err(problems), Some(expected)) if problems.to_string().contains(expected) => {
                lines += 1;
                continue;
            }
            (outcome, _) => {
                let problem = outcome.map_or_else(|problems| problems.to_string(), |_| "no problem".to_owned());
                wrong.push(format!("line {}: {}: {problem}", section.line, section.title));
                continue;
            }
        };
        let (records, tenants) = (compile(&mesh), tenants(&page, section));
        for row in &section.rows {
            let found = match row.cells.contains_key("path") {
                true => inbound(section, &records, &tenants, row),
                false => outbound(&records, &tenants, row),
            };
            let expected = row.outcome();
            if found != expected {
                wrong.push(format!("line {}: {}\n  expected {expected}\n  came     {found}", row.line, row.text));
            }
            outcomes.insert(row.cells["outcome"].clone());
            lines += 1;
        }
    }
    assert!(wrong.is_empty(), "{} of {lines} lines are wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(lines >= 200, "only {lines} lines");
    every_outcome_of_a_decision_occurs(&outcomes);
}

/// All reasons but those of other checks than policy's, and each condition's both enforced and audited.
fn every_outcome_of_a_decision_occurs(outcomes: &BTreeSet<String>) {
    let (elsewhere, both) = (
        ["ASAP", "POLICY_UNAVAILABLE", "TENANT_RATE_LIMITED", "OVERLOADED", "UPSTREAM_CONNECT", "DEADLINE"],
        ["TXN_", "TENANT_", "PRODUCT_", "PATH_"],
    );
    for reason in Reason::ALL.iter().map(|reason| reason.as_str()) {
        if elsewhere.iter().any(|prefix| reason.starts_with(prefix)) {
            continue;
        }
        assert!(outcomes.contains(reason), "no line is refused with {reason}");
        let conditional = both.iter().any(|prefix| reason.starts_with(prefix));
        // Of outbound, and of audit mode for callers at home in another region: residency is the service's.
        if conditional && !["TENANT_AMBIGUOUS", "TENANT_NOT_IN_FLIGHT", "TENANT_WRONG_REGION"].contains(&reason) {
            assert!(outcomes.contains(&format!("audited {reason}")), "no line is audited with {reason}");
        }
    }
}

fn files(page: &Page, section: &Section) -> Vec<SourceFile> {
    let mut files: Vec<SourceFile> = page.files.iter().chain(&section.files).cloned().collect();
    if section.with_partner {
        files.push(SourceFile { path: "partner.yaml".to_owned(), text: PARTNER.to_owned() });
    }
    // As a folder is read.
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files
}

fn tenants(page: &Page, section: &Section) -> Held {
    if section.without_tenants {
        return Held::nothing_yet();
    }
    let read = read_json_lines("table.md", &page.tenants).unwrap_or_else(|problems| panic!("{problems}"));
    Held::snapshot(REACHED, read.iter().map(|context| Tenant::decode(context.encode_to_vec()).expect("a tenant")))
}

/// `ALLOWED`, a reason or `audited` and a reason; the rule; what the app gets.
fn inbound(section: &Section, records: &Records, tenants: &Held, row: &Row) -> String {
    let policy = Arc::new(Policy::try_from(&records.allowlists[&section.called]).expect("a policy"));
    let region = match row.word("at") {
        None => Some("us-east"),
        Some("nowhere") => None,
        Some(region) => Some(region),
    };
    let state = inbound::State {
        me: section.called.parse().expect("a name"),
        region: region.map(|region| region.parse().expect("a name")),
        policy: Some(Arc::clone(&policy)),
        quarantined: records.quarantines.values().collect::<Quarantined>(),
        policy_position: None,
    };
    let caller = row.text_of("caller").expect("the cell is filled in");
    let peer = if section.with_partner && caller == "partner" { Peer::Outside(caller) } else { Peer::Service(caller) };
    let head = inbound::Head {
        path: row.text_of("path").expect("the cell is filled in"),
        token: Token::One(b"token"),
        tenant: named(row.text_of("tenant")),
        tenant_revision: row.word("seen"),
        txn_token: named(row.word("token")),
    };
    let waited = inbound::Waited::FOR_ALL;
    let (outcome, rule, tenant) = match inbound::decide(&state, tenants, &mut Tokens, peer, &head, NOW, waited) {
        Ok(verdict) => {
            let tenant = verdict.tenant.map(|tenant| tenant.id().to_owned());
            (verdict.audited.map_or("ALLOWED".to_owned(), |of| format!("audited {}", of.reason)), verdict.rule, tenant)
        }
        Err(inbound::Stop::Refused(refusal)) => (refusal.reason.to_string(), refusal.rule, None),
        Err(stop) => panic!("line {}: {stop:?}", row.line),
    };
    let rule = rule.map(|index| policy.rule(index).expect("a rule of the policy").name().to_owned());
    page::shown(&outcome, &rule.unwrap_or_default(), &tenant.unwrap_or_default())
}

fn outbound(records: &Records, tenants: &Held, row: &Row) -> String {
    let places = ["media", "archive", "platform", "wiki"].into_iter().flat_map(|service| {
        [("us-east", "10.0.0.1:15006"), ("eu-west", "10.0.0.2:15006")].map(|(region, address)| Endpoint {
            service: service.to_owned(),
            region: region.to_owned(),
            address: address.to_owned(),
            ..Default::default()
        })
    });
    let places: Vec<_> = places.collect();
    let caller = row.text_of("caller").expect("the cell is filled in");
    let (destinations, unusable) = Destinations::build(records.routes.values(), &places, (None, None), None);
    assert!(unusable.is_empty(), "{unusable:?}");
    let state = outbound::State {
        me: caller.parse().expect("a name"),
        region: None,
        zone: None,
        originates: Policy::try_from(&records.allowlists[caller]).expect("a policy").originates(),
        quarantined: records.quarantines.values().collect(),
        destinations: Some(destinations),
    };
    let head = outbound::Head {
        authority: row.text_of("authority").expect("the cell is filled in"),
        tenant_ids: named(row.text_of("tenant")),
        tenant_hosts: named(row.text_of("host")),
    };
    let serving = |tenant: &str| row.cells["serving"].split(' ').any(|served| served == tenant);
    let outcome = match outbound::decide(&state, tenants, &head, serving, true) {
        Ok(_) => "ALLOWED".to_owned(),
        Err(stop) => Refusal::from(stop).reason.to_string(),
    };
    page::shown(&outcome, "", "")
}

fn named(cell: Option<&str>) -> Named<'_> {
    match cell {
        None => Named::None,
        Some("twice") => Named::Many,
        Some("\"\"") => Named::One(""),
        Some(value) => Named::One(value),
    }
}

/// Every ASAP token is good. A transaction token is the tenant that it was issued for, `-` for none, or what is wrong with it.
struct Tokens;

impl Credentials for Tokens {
    fn verify(&mut self, _peer: Peer<'_>, _token: &[u8], _now: u64) -> Result<(), Refusal> {
        Ok(())
    }

    fn transaction(&mut self, token: &str, tenant: Named<'_>, _now: u64) -> Result<Transaction, Refusal> {
        match token {
            "bad" => Err(Refusal::new(Reason::TxnInvalid, "its signature is not good")),
            "old" => Err(Refusal::new(Reason::TxnExpired, "it is past its time")),
            of => Ok(Transaction::compare(Some(of).filter(|of| *of != "-"), tenant)),
        }
    }
}
