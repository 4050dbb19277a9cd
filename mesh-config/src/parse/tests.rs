//! What is taken, and what becomes of it. What is refused, with the exact words, stands in `tests/malformed`.

use std::{path::Path, sync::Mutex};

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};

use super::*;
use crate::{Residency, TestTransaction, compile, load};

mod hostile;
mod route;
mod route_any;

/// A mesh that the documents below stand in.
const BASE: &str = "\
apiVersion: tenon.dev/v1
kind: Mesh
metadata: {name: test}
spec: {trustDomain: test.example, regions: [us-east, eu-west]}
---
apiVersion: tenon.dev/v1
kind: Service
metadata: {name: media}
spec: {product: media, residency: home, originates: false}
---
apiVersion: tenon.dev/v1
kind: Service
metadata: {name: wiki}
spec: {}
";

fn file(path: &str, text: &str) -> SourceFile {
    SourceFile { path: path.to_owned(), text: text.to_owned() }
}

fn with_base(text: &str) -> Result<Mesh, Problems> {
    parse(&[file("base.yaml", BASE), file("m.yaml", text)])
}

fn allowlist(name: &str, rule: &str) -> String {
    format!(
        "apiVersion: tenon.dev/v1\nkind: Allowlist\nmetadata: {{name: {name}}}\nspec:\n  service: media\n  rules:\n    - \
         name: {rule}\n      callers: [wiki]\n      paths: [/media.v1.Media/Get]\n"
    )
}

/// A CA certificate as PEM, always the same for one name.
fn ca(name: &'static str) -> String {
    static MADE: Mutex<BTreeMap<&'static str, String>> = Mutex::new(BTreeMap::new());
    MADE.lock().unwrap().entry(name).or_insert_with(|| certificate(name)).clone()
}

fn certificate(name: &str) -> String {
    let mut parameters = CertificateParams::new([name.to_owned()]).unwrap();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
}

/// PEM as it stands on one line of YAML.
fn pem_of(pem: &str) -> String {
    format!("{pem:?}")
}

#[test]
fn a_client_outside_of_the_mesh_becomes_part_of_the_records_of_those_who_name_it() {
    let text = format!(
        "\
apiVersion: tenon.dev/v1
kind: ExternalClient
metadata: {{name: partner}}
spec:
  issuer: micros/partner
  ca: {one}
  certificateNames: [dns:billing.partner.example, 'uri:spiffe://partner.example/billing']
  keyRepositories: ['https://keys.partner.example/', 'https://keys-2.partner.example:8443/a/']
  keyRepositoryCa: {both}
  subjects: [batch]
---
apiVersion: tenon.dev/v1
kind: ExternalClient
metadata: {{name: stranger}}
spec: {{ca: {one}, certificateNames: [dns:stranger.example], keyRepositories: ['https://keys.example/']}}
---
apiVersion: tenon.dev/v1
kind: Quarantine
metadata: {{name: q}}
spec: {{services: [stranger]}}
---
{allowlist}",
        one = pem_of(&ca("one")),
        both = pem_of(&format!("a comment\n{}\nanother\n{}", ca("one"), ca("two"))),
        allowlist = allowlist("m", "r").replace("[wiki]", "[wiki, partner]"),
    );
    let mesh = with_base(&text).unwrap();
    let stranger = &mesh.external_clients()["stranger"];
    assert_eq!((stranger.issuer.as_str(), stranger.key_repository_ca.len()), ("stranger", 0));
    let records = compile(&mesh);
    assert_eq!(records.quarantines.keys().collect::<Vec<_>>(), ["stranger"]);
    assert!(records.allowlists["wiki"].external_clients.is_empty());
    let [partner] = &records.allowlists["media"].external_clients[..] else { panic!("media names one client") };
    let der = |name| pem::parse(ca(name)).unwrap().into_contents();
    assert_eq!((partner.name.as_str(), partner.issuer.as_str()), ("partner", "micros/partner"));
    assert_eq!(partner.ca, [der("one")]);
    assert_eq!(partner.key_repository_ca, [der("one"), der("two")]);
    assert_eq!(partner.certificate_names, ["dns:billing.partner.example", "uri:spiffe://partner.example/billing"]);
    assert_eq!(partner.key_repositories, ["https://keys.partner.example/", "https://keys-2.partner.example:8443/a/"]);
    assert_eq!(partner.subjects, ["batch"]);
}

#[test]
fn a_block_of_pem_keeps_its_lines_in_a_file() {
    let pem: String = ca("one").lines().map(|line| format!("    {line}\n")).collect();
    let text = format!(
        "apiVersion: tenon.dev/v1\nkind: ExternalClient\nmetadata: {{name: partner}}\nspec:\n  ca: |\n{pem}  \
         certificateNames: [dns:a.example]\n  keyRepositories: ['https://keys.example/']\n"
    );
    assert_eq!(with_base(&text).unwrap().external_clients()["partner"].ca.len(), 1);
}

/// A mesh with one client outside of it for each of these issuers.
fn with_issuers(issuers: &[&str]) -> Result<Mesh, Problems> {
    let client = |(number, issuer): (usize, &&str)| {
        format!(
            "apiVersion: tenon.dev/v1\nkind: ExternalClient\nmetadata: {{name: client-{number}}}\nspec:\n  issuer: {issuer}\n  \
             ca: {ca}\n  certificateNames: [dns:c{number}.example]\n  keyRepositories: ['https://keys.example/']\n",
            ca = pem_of(&ca("one"))
        )
    };
    with_base(&issuers.iter().enumerate().map(client).collect::<Vec<_>>().join("---\n"))
}

#[test]
fn a05_issuers_of_which_none_is_a_path_prefix_of_another_pass() {
    let mesh =
        with_issuers(&["partner", "partner-2", "partne", "micros/a", "micros/b", "micros/ab", "mediateka"]).unwrap();
    assert_eq!(mesh.external_clients().len(), 7);
}

#[test]
fn a05_an_issuer_that_is_a_path_prefix_of_another_one_is_refused() {
    // `media` is a service.
    for issuers in [&["partner", "partner/x"][..], &["a/b/c", "x", "a/b"], &["a", "a"], &["media/x"], &["media"]] {
        assert!(with_issuers(issuers).is_err(), "{issuers:?}");
    }
}

#[test]
fn an_attestor_becomes_its_record() {
    let text = format!(
        "\
apiVersion: tenon.dev/v1
kind: Attestor
metadata: {{name: kubernetes}}
spec:
  issuer: https://kubernetes.default.svc
  audience: tenon
  ca: {}
  rules:
    - claims: {{/kubernetes.io/namespace: prod, /kubernetes.io/serviceaccount/name: media}}
      service: media
    - claims: {{sub: 'system:serviceaccount:prod:wiki'}}
      service: wiki
---
apiVersion: tenon.dev/v1
kind: Attestor
metadata: {{name: cloud}}
spec: {{issuer: cloud, audience: tenon, jwksUri: 'https://cloud.example/keys?v=1', rules: [{{claims: {{sub: a}}, service: wiki}}]}}
",
        pem_of(&ca("one"))
    );
    let records = compile(&with_base(&text).unwrap());
    assert_eq!(records.attestors.keys().collect::<Vec<_>>(), ["cloud", "kubernetes"]);
    assert_eq!(records.attestors["cloud"].jwks_uri, "https://cloud.example/keys?v=1");
    let kubernetes = &records.attestors["kubernetes"];
    assert_eq!((kubernetes.issuer.as_str(), kubernetes.jwks_uri.as_str()), ("https://kubernetes.default.svc", ""));
    assert_eq!(kubernetes.ca.len(), 1);
    let rules: Vec<_> = kubernetes.rules.iter().map(|rule| (rule.service.as_str(), rule.claims.len())).collect();
    assert_eq!(rules, [("media", 2), ("wiki", 1)]);
    assert_eq!(kubernetes.rules[0].claims["/kubernetes.io/namespace"], "prod");
}

#[test]
fn a_service_says_that_it_asks_for_transaction_tokens() {
    let text =
        "apiVersion: tenon.dev/v1\nkind: Service\nmetadata: {name: edge}\nspec: {requestsTransactionTokens: true}\n";
    let records = compile(&with_base(text).unwrap());
    let asks: Vec<_> = records.routes.values().map(|route| route.requests_transaction_tokens).collect();
    assert_eq!(asks, [true, false, false], "edge, media, wiki");
}

#[test]
fn a_service_says_that_it_manages_tenants() {
    let text =
        "apiVersion: tenon.dev/v1\nkind: Service\nmetadata: {name: provisioning}\nspec: {managesTenants: true}\n";
    let records = compile(&with_base(text).unwrap());
    let manages: Vec<_> = records.routes.values().map(|route| route.manages_tenants).collect();
    assert_eq!(manages, [false, true, false], "media, provisioning, wiki");
}

#[test]
fn a_call_of_a_test_may_carry_a_transaction_token() {
    let text = "\
apiVersion: tenon.dev/v1
kind: PolicyTest
metadata: {name: t}
spec:
  calls:
    - {caller: wiki, service: media, path: /a.B/C, expect: TXN_MISSING}
    - {caller: wiki, service: media, path: /a.B/C, transaction: {}, expect: TXN_TENANT_MISMATCH}
    - {caller: wiki, service: media, path: /a.B/C, transaction: {tenant: acme}, expect: ALLOWED}
";
    let mesh = with_base(text).unwrap();
    let tokens: Vec<_> = mesh.tests()[0].calls.iter().map(|call| call.transaction.clone()).collect();
    let of = |tenant: Option<&str>| Some(TestTransaction { tenant: tenant.map(str::to_owned) });
    assert_eq!(tokens, [None, of(None), of(Some("acme"))]);
}

#[test]
fn the_sample_mesh_has_no_problem() {
    let mesh = load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("demo")).unwrap();
    assert_eq!(mesh.trust_domain().as_str(), "demo.example");
    assert_eq!(mesh.regions(), ["us-east", "eu-west"]);
    let local = mesh.local().unwrap();
    let instances: Vec<String> = local.instances.iter().map(|i| format!("{}/{}", i.service, i.region)).collect();
    assert_eq!(instances, ["issues/us-east", "media/us-east", "media/eu-west", "wiki/us-east"]);
    assert!(mesh.tests().iter().map(|test| test.calls.len()).sum::<usize>() >= 15);
    let records = compile(&mesh);
    assert_eq!(records.endpoints.keys().next().unwrap(), "issues/us-east/127.0.0.1:15106");
    assert_eq!(records.routes["media"].residency(), tenon_proto::policy::v1::Residency::Home);
    assert!(records.allowlists["wiki"].rules.is_empty(), "every service has an allowlist record");
}

#[test]
fn a_whole_allowlist_becomes_the_record_of_its_service() {
    let text = "\
apiVersion: tenon.dev/v1
kind: Allowlist
metadata: {name: media}
spec:
  service: media
  mode: audit
  rules:
    - name: read
      callers: [wiki, '*']
      paths: [/media.v1.Media/Get, /media.v1.Thumbnails/*]
      tenant: optional
      proof: transaction
      rate: {perTenant: 100/m}
    - name: write
      callers: [wiki]
      paths: [/media.v1.Media/Upload]
      rate: {perTenant: 2/h, burst: 7}
";
    let records = compile(&with_base(text).unwrap());
    let media = &records.allowlists["media"];
    assert_eq!((media.product.as_str(), media.originates, media.audit_allowlist.as_str()), ("media", false, "media"));
    let [read, write] = media.rules.as_slice() else { panic!("two rules") };
    assert_eq!(read.callers, ["wiki", "*"]);
    assert_eq!(read.paths, ["/media.v1.Media/Get", "/media.v1.Thumbnails/*"]);
    assert_eq!(read.tenant(), tenon_proto::policy::v1::TenantRequirement::Optional);
    assert_eq!(read.proof(), tenon_proto::policy::v1::Proof::Transaction);
    assert_eq!(read.rate.map(|rate| (rate.count, rate.per_seconds, rate.burst)), Some((100, 60, 100)));
    assert_eq!(write.rate.map(|rate| (rate.count, rate.per_seconds, rate.burst)), Some((2, 3600, 7)));
    assert_eq!(write.tenant(), tenon_proto::policy::v1::TenantRequirement::Required);
    assert_eq!((write.source.as_str(), write.audit, write.allowlist.as_str()), ("m.yaml:14", true, "media"));
}

#[test]
fn a_rule_says_which_tenants_it_is_for_also_of_a_service_that_is_defined_later() {
    let of = |name: &str, service: &str, tenants: &str| {
        allowlist(name, "r").replace("service: media", &format!("service: {service}")) + &format!("      {tenants}\n")
    };
    let all = "tenants: {products: {media: {editions: [enterprise, premium]}}, features: [beta], regions: [eu-west], ids: \
               [acme, 018f4e6a-9c1d-7b3a-8f21-5d2c7e9a0b11]}";
    let files = [
        file("a.yaml", &of("m", "media", all)),
        file("b.yaml", &of("w", "wiki", "tenant: optional\n      tenants: {regions: [us-east], ids: [acme]}")),
        file("z.yaml", BASE),
    ];
    let records = compile(&parse(&files).unwrap());
    let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
    let media = records.allowlists["media"].rules[0].tenants.clone().unwrap();
    assert_eq!(media.editions, words(&["enterprise", "premium"]));
    assert_eq!(media.features, words(&["beta"]));
    assert_eq!(media.regions, words(&["eu-west"]));
    assert_eq!(media.ids, words(&["acme", "018f4e6a-9c1d-7b3a-8f21-5d2c7e9a0b11"]));
    let wiki = records.allowlists["wiki"].rules[0].tenants.clone().unwrap();
    assert_eq!((wiki.editions.len(), wiki.features.len()), (0, 0));
    assert_eq!((wiki.regions, wiki.ids), (words(&["us-east"]), words(&["acme"])));
    assert_eq!(compile(&with_base(&allowlist("m", "r")).unwrap()).allowlists["media"].rules[0].tenants, None);
}

#[test]
fn what_a_service_does_not_say_is_residency_any_and_originates() {
    let mesh = with_base("").unwrap();
    let wiki = &mesh.services()["wiki"];
    assert_eq!((wiki.residency, wiki.originates, &wiki.product), (Residency::Any, true, &None));
}

#[test]
fn rules_stand_in_the_byte_order_of_their_files_and_then_of_position() {
    let two = format!("{}---\n{}", allowlist("m1", "first"), allowlist("m2", "second"));
    // '-' sorts before '/', and that before '.': byte order, not the order of folders.
    let files = [
        file("b.yaml", BASE),
        file("a/z.yaml", &allowlist("m3", "third")),
        file("a-b.yaml", &two),
        file("Z.yaml", &allowlist("m0", "zeroth")),
    ];
    let rules: Vec<String> =
        compile(&parse(&files).unwrap()).allowlists["media"].rules.iter().map(|rule| rule.name.clone()).collect();
    assert_eq!(rules, ["zeroth", "first", "second", "third"]);
}

#[test]
fn a_quarantine_of_two_documents_keeps_both_reasons() {
    let text = "\
apiVersion: tenon.dev/v1
kind: Quarantine
metadata: {name: a}
spec: {services: [wiki, media], reason: leaked key}
---
apiVersion: tenon.dev/v1
kind: Quarantine
metadata: {name: b}
spec: {services: [wiki], reason: and more}
";
    let records = compile(&with_base(text).unwrap());
    assert_eq!(records.quarantines["wiki"].reason, "leaked key; and more");
    assert_eq!(records.quarantines["media"].reason, "leaked key");
}

#[test]
fn a_listener_on_all_addresses_is_reached_over_loopback() {
    let text = "\
apiVersion: tenon.dev/v1
kind: LocalMesh
metadata: {name: local}
spec:
  instances: [{service: wiki, region: us-east, zone: a, inbound: '0.0.0.0:7006', outbound: 'unix:/tmp/w', admin: '[::1]:7000'}]
  controlPlane: {tcs: 127.0.0.1:7020}
";
    let mesh = with_base(text).unwrap();
    assert_eq!(compile(&mesh).endpoints["wiki/us-east/127.0.0.1:7006"].zone, "a");
    let local = mesh.local().unwrap();
    let tcs: Vec<_> = local.control_plane.tcs.iter().map(|tcs| (tcs.address.port(), tcs.zone.as_ref())).collect();
    assert_eq!(tcs, [(7020, None)]);
    assert_eq!(local.control_plane.policy[0].address.port(), 15030);
    assert_eq!(local.instances[0].outbound.to_string(), "unix:/tmp/w");
}

#[test]
fn there_may_be_several_tcs_each_with_a_zone() {
    let text = "\
apiVersion: tenon.dev/v1
kind: LocalMesh
metadata: {name: local}
spec:
  instances: [{service: wiki, region: us-east}]
  controlPlane:
    tcs:
      - 127.0.0.1:7020
      - {address: 127.0.0.1:7021, zone: b}
";
    let mesh = with_base(text).unwrap();
    let tcs = &mesh.local().unwrap().control_plane.tcs;
    let shown: Vec<_> =
        tcs.iter().map(|tcs| (tcs.address.port(), tcs.zone.as_ref().map(ToString::to_string))).collect();
    assert_eq!(shown, [(7020, None), (7021, Some("b".to_owned()))]);
}

#[test]
fn anchors_and_aliases_stand_for_what_they_name() {
    let text = allowlist("m", "a").replace("[wiki]", "&who [wiki]")
        + "    - {name: b, callers: *who, paths: [/media.v1.Media/List]}\n";
    let records = compile(&with_base(&text).unwrap());
    assert_eq!(records.allowlists["media"].rules[1].callers, ["wiki"]);
}

#[test]
fn files_that_make_no_mesh_say_so() {
    let of = |files: &[(&str, &str)]| {
        let files: Vec<_> = files.iter().map(|(path, text)| file(path, text)).collect();
        parse(&files).unwrap_err().to_string()
    };
    assert_eq!(of(&[]), ":1:1: no *.yaml file, expected policy files with one document of kind Mesh");
    assert_eq!(of(&[("a.yaml", "# nothing\n")]), "a.yaml:1:1: no document of kind Mesh, expected one in these files");
    assert_eq!(of(&[("a.yaml", BASE), ("a.yaml", BASE)]), "a.yaml:1:1: this file is given twice, expected it once");
}

#[test]
fn everything_that_is_wrong_is_told_at_once() {
    let service =
        |spec: &str| format!("apiVersion: tenon.dev/v1\nkind: Service\nmetadata: {{name: s}}\nspec: {spec}\n");
    let text = format!("{}---\n{}---\na: [\n", service("{residency: x}"), service("{product: 1, orginates: true}"));
    let problems = with_base(&text).unwrap_err();
    let places: Vec<(u32, u32)> = problems.0.iter().map(|problem| (problem.line, problem.column)).collect();
    assert_eq!(places, [(4, 19), (8, 18), (9, 17), (9, 20), (12, 1)], "{problems}");
}

#[test]
fn order_of_files_and_documents_does_not_matter_to_references() {
    let files = [file("a.yaml", &allowlist("m", "r")), file("z.yaml", BASE)];
    assert!(parse(&files).is_ok());
}
