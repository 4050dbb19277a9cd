//! Every way to write a policy file wrong that we thought of, each with the exact problem that it gives.

use super::{BASE, file, with_base};
use crate::parse;

mod outside;

const DOC: &str = "apiVersion: tenon.dev/v1\n";

/// A good document around one rule, so that a case shows only what is wrong.
fn allowlist(rule: &str) -> String {
    format!("{DOC}kind: Allowlist\nmetadata: {{name: m}}\nspec:\n  service: media\n  rules:\n    - {rule}\n")
}

fn service(spec: &str) -> String {
    format!("{DOC}kind: Service\nmetadata: {{name: s}}\nspec: {spec}\n")
}

fn local(instances: &str) -> String {
    format!("{DOC}kind: LocalMesh\nmetadata: {{name: l}}\nspec:\n  instances: {instances}\n")
}

fn tcs(addresses: &str) -> String {
    format!("{}  controlPlane: {{tcs: {addresses}}}\n", local("[{service: wiki, region: us-east}]"))
}

fn test(tenants: &str, call: &str) -> String {
    format!("{DOC}kind: PolicyTest\nmetadata: {{name: t}}\nspec:\n  tenants: {tenants}\n  calls: [{call}]\n")
}

const CALL: &str = "{caller: wiki, service: media, path: /a.B/C, expect: ALLOWED}";

#[expect(clippy::too_many_lines, reason = "a table")]
fn cases() -> Vec<(&'static str, String, &'static str)> {
    let rule = |extra: &str| allowlist(&format!("{{name: r, callers: [wiki], paths: [/a.B/C]{extra}}}"));
    vec![
        (
            "syntax",
            "a: [1, 2\nb: c\n".into(),
            r#"m.yaml:2:2: not YAML: illegal placement of ':' indicator, expected well-formed YAML 1.2"#,
        ),
        (
            "tabs",
            "spec:\n\t- a\n".into(),
            r#"m.yaml:2:2: not YAML: tabs disallowed within this context (block indentation), expected well-formed YAML 1.2"#,
        ),
        (
            "control character",
            "a: b\n# \0 c: d\n".into(),
            r#"m.yaml:2:3: control character U+0000, expected printable text (in double quotes: \x..)"#,
        ),
        (
            "not a map",
            "- a\n".into(),
            r#"m.yaml:1:1: found a list, expected a document: a map with apiVersion, kind, metadata, spec"#,
        ),
        (
            "unknown field of a document",
            format!("{}metdata: 1\n", service("{}")),
            r#"m.yaml:5:1: unknown field "metdata" in a document (did you mean "metadata"?), expected apiVersion, kind, metadata or spec"#,
        ),
        (
            "api version",
            service("{}").replace("v1", "v2"),
            r#"m.yaml:1:13: found text "tenon.dev/v2" (did you mean "tenon.dev/v1"?), expected tenon.dev/v1"#,
        ),
        (
            "missing kind",
            format!("{DOC}metadata: {{name: s}}\nspec: {{}}\n"),
            r#"m.yaml:1:1: missing field "kind" in a document, expected the kind of the document"#,
        ),
        (
            "unknown kind",
            service("{}").replace("Service", "Servcie"),
            r#"m.yaml:2:7: found text "Servcie" (did you mean "Service"?), expected Mesh, Service, Allowlist, ExternalClient, Attestor, LocalMesh, Quarantine or PolicyTest"#,
        ),
        (
            "kind of later",
            service("{}").replace("Service", "Route"),
            r#"m.yaml:2:7: kind Route is not supported by this version, expected no such document"#,
        ),
        (
            "missing name",
            service("{}").replace("{name: s}", "{}"),
            r#"m.yaml:3:11: missing field "name" in metadata, expected the name of the document"#,
        ),
        (
            "missing spec",
            format!("{DOC}kind: Service\nmetadata: {{name: s}}\n"),
            r#"m.yaml:1:1: missing field "spec" in a document, expected a map with what the document says"#,
        ),
        (
            "empty spec",
            service(""),
            r#"m.yaml:4:5: found nothing, expected the spec of a Service: a map with product, residency, originates, requestsTransactionTokens, managesTenants"#,
        ),
        (
            "unknown metadata",
            service("{}").replace("name: s", "name: s, labels: {}"),
            r#"m.yaml:3:21: unknown field "labels" in metadata, expected name"#,
        ),
        (
            "key twice",
            service("{product: a, product: b}"),
            r#"m.yaml:4:20: key "product" stands twice, expected it once: the first is at 4:8"#,
        ),
        ("list as a key", service("{[a]: b}"), r#"m.yaml:4:8: a list as a key, expected the name of a field"#),
        ("tag", service("{product: !x a}"), r#"m.yaml:4:17: unknown tag !x, expected no tag"#),
        (
            "wrong value for a tag",
            service("{product: !!bool a}"),
            r#"m.yaml:4:17: found nothing, expected a product name
m.yaml:4:17: text "a" has the tag !!bool, expected a value of that type"#,
        ),
        (
            "unknown anchor",
            service("{product: *x}"),
            r#"m.yaml:4:17: not YAML: while parsing node, found unknown anchor, expected well-formed YAML 1.2"#,
        ),
        (
            "unknown field",
            service("{residancy: home}"),
            r#"m.yaml:4:8: unknown field "residancy" in the spec of a Service (did you mean "residency"?), expected product, residency, originates, requestsTransactionTokens or managesTenants"#,
        ),
        (
            "unknown field without a neighbour",
            service("{owner: me}"),
            r#"m.yaml:4:8: unknown field "owner" in the spec of a Service, expected product, residency, originates, requestsTransactionTokens or managesTenants"#,
        ),
        (
            "unknown choice",
            service("{residency: homee}"),
            r#"m.yaml:4:19: found text "homee" (did you mean "home"?), expected any or home"#,
        ),
        (
            "boolean as text",
            service("{originates: 'true'}"),
            r#"m.yaml:4:20: found text "true", expected true or false"#,
        ),
        (
            "boolean as a yaml 1.1 word",
            service("{originates: yes}"),
            r#"m.yaml:4:20: found text "yes", expected true or false"#,
        ),
        (
            "number for text",
            service("{product: 12}"),
            r#"m.yaml:4:17: found the number 12, expected a product name: put it in quotes to make it text"#,
        ),
        (
            "product name",
            service("{product: Media}"),
            r#"m.yaml:4:17: "Media" is not a product name, expected 1 to 63 of a-z, 0-9 and "-", with a letter or digit first and last"#,
        ),
        (
            "service name",
            service("{}").replace("name: s", "name: my_service"),
            r#"m.yaml:3:18: "my_service" is not a service name, expected 1 to 63 of a-z, 0-9 and "-", with a letter or digit first and last"#,
        ),
        (
            "control plane's name",
            service("{}").replace("name: s", "name: tenon-tcs"),
            r#"m.yaml:3:18: a name of the control plane, expected a service name that does not begin with "tenon-""#,
        ),
        (
            "service twice",
            service("{}").replace("name: s", "name: media"),
            r#"m.yaml:3:18: a second Service named "media", expected one: the first is at base.yaml:8:18"#,
        ),
        (
            "second mesh",
            BASE.replace("media", "a").replace("wiki", "b"),
            r#"m.yaml:2:7: a second Mesh, expected one: the first is at base.yaml:2:7"#,
        ),
        (
            "callee that nobody defines",
            rule("").replace("service: media", "service: medai"),
            r#"m.yaml:5:12: no Service "medai" (did you mean "media"?), expected the name of a Service document"#,
        ),
        (
            "caller that nobody defines",
            rule("").replace("[wiki]", "[wiki, wikki, nobody]"),
            r#"m.yaml:7:33: no Service or ExternalClient "wikki" (did you mean "wiki"?), expected the name of a Service or ExternalClient document
m.yaml:7:40: no Service or ExternalClient "nobody", expected the name of a Service or ExternalClient document"#,
        ),
        (
            "caller twice",
            rule("").replace("[wiki]", "[wiki, wiki]"),
            r#"m.yaml:7:33: "wiki" stands twice, expected it once"#,
        ),
        (
            "callers not a list",
            rule("").replace("[wiki]", "wiki"),
            r#"m.yaml:7:26: found text "wiki", expected a list of service names"#,
        ),
        (
            "no callers",
            rule("").replace("[wiki]", "[]"),
            r#"m.yaml:7:26: an empty list, expected a list of service names with at least one of them"#,
        ),
        (
            "missing callers",
            rule("").replace("callers: [wiki], ", ""),
            r#"m.yaml:7:7: missing field "callers" in a rule, expected a list of service names, or ["*"]"#,
        ),
        (
            "rules not a list",
            rule("").replace("    - {", "    {"),
            r#"m.yaml:7:5: found a map, expected a list of rules"#,
        ),
        (
            "empty rule",
            allowlist(""),
            r#"m.yaml:7:7: found nothing, expected a rule: a map with name, callers, paths, tenant, tenants, proof, rate"#,
        ),
        (
            "mode",
            rule("").replace("service: media", "service: media\n  mode: log"),
            r#"m.yaml:6:9: found text "log", expected enforce or audit"#,
        ),
        (
            "rule name twice",
            format!("{}    - {{name: r, callers: [wiki], paths: [/a.B/D]}}\n", rule("")),
            r#"m.yaml:8:14: a second rule of media named "r", expected one: the first is at m.yaml:7:14"#,
        ),
        (
            "rule name",
            rule("").replace("name: r", "name: 'a b'"),
            r#"m.yaml:7:14: "a b" is not a name, expected 1 to 63 of letters, digits, ".", "_" and "-", with a letter or digit first and last"#,
        ),
        (
            "path without method",
            rule("").replace("/a.B/C", "/a.B"),
            r#"m.yaml:7:42: path "/a.B" is not well formed, expected /package.Service/Method or /package.Service/*"#,
        ),
        (
            "path with a star in the service",
            rule("").replace("/a.B/C", "/a.*/C"),
            r#"m.yaml:7:42: path "/a.*/C" is not well formed, expected /package.Service/Method or /package.Service/*"#,
        ),
        (
            "path with a star behind a prefix",
            rule("").replace("/a.B/C", "/a.B/Get*"),
            r#"m.yaml:7:42: path "/a.B/Get*" is not well formed, expected /package.Service/Method or /package.Service/*"#,
        ),
        (
            "path of three parts",
            rule("").replace("/a.B/C", "/a.B/C/D"),
            r#"m.yaml:7:42: path "/a.B/C/D" is not well formed, expected /package.Service/Method or /package.Service/*"#,
        ),
        (
            "path without slash",
            rule("").replace("/a.B/C", "a.B/C"),
            r#"m.yaml:7:42: path "a.B/C" is not well formed, expected /package.Service/Method or /package.Service/*"#,
        ),
        (
            "path twice",
            rule("").replace("/a.B/C", "/a.B/C, /a.B/C"),
            r#"m.yaml:7:50: "/a.B/C" stands twice, expected it once"#,
        ),
        (
            "tenant",
            rule(", tenant: always"),
            r#"m.yaml:7:59: found text "always", expected required, optional or none"#,
        ),
        (
            "tenants of nothing",
            rule(", tenants: {}"),
            r#"m.yaml:7:60: an empty map, expected at least one of products, features, regions and ids"#,
        ),
        (
            "tenants not a map",
            rule(", tenants: [acme]"),
            r#"m.yaml:7:60: found a list, expected the tenants of a rule: a map with products, features, regions, ids"#,
        ),
        (
            "tenants with an unknown field",
            rule(", tenants: {editions: [a]}"),
            r#"m.yaml:7:61: unknown field "editions" in the tenants of a rule, expected products, features, regions or ids"#,
        ),
        (
            "tenants where none is known",
            rule(", tenant: none, tenants: {ids: [acme]}"),
            r#"m.yaml:7:74: tenants beside tenant: none, which ignores them, expected tenant: required or optional"#,
        ),
        (
            "tenants of no region",
            rule(", tenants: {regions: [us-west]}"),
            r#"m.yaml:7:71: no region "us-west" (did you mean "eu-west"?), expected one of the regions of the Mesh document"#,
        ),
        (
            "tenants of an empty list of regions",
            rule(", tenants: {regions: []}"),
            r#"m.yaml:7:70: an empty list, expected a list of region names with at least one of them"#,
        ),
        (
            "tenant id of tenants",
            rule(", tenants: {ids: [acme, Acme]}"),
            r#"m.yaml:7:73: "Acme" is not a tenant id, expected 1 to 63 of a-z, 0-9 and "-", with a letter or digit first and last"#,
        ),
        (
            "tenant id twice",
            rule(", tenants: {ids: [acme, acme]}"),
            r#"m.yaml:7:73: "acme" stands twice, expected it once"#,
        ),
        (
            "feature without a name",
            rule(", tenants: {features: ['']}"),
            r#"m.yaml:7:72: found text "", expected the name of a feature"#,
        ),
        (
            "feature that is a number",
            rule(", tenants: {features: [4711]}"),
            r#"m.yaml:7:72: found the number 4711, expected the name of a feature: put it in quotes to make it text"#,
        ),
        (
            "no products",
            rule(", tenants: {products: {}}"),
            r#"m.yaml:7:71: an empty map, expected a map of the service's product to its editions"#,
        ),
        (
            "products that are a list",
            rule(", tenants: {products: [media]}"),
            r#"m.yaml:7:71: found a list, expected a map of the service's product to its editions"#,
        ),
        (
            "product without editions",
            rule(", tenants: {products: {media: {}}}"),
            r#"m.yaml:7:79: missing field "editions" in the conditions on a product, expected a list of editions"#,
        ),
        (
            "product with no editions",
            rule(", tenants: {products: {media: {editions: []}}}"),
            r#"m.yaml:7:90: an empty list, expected a list of editions with at least one of them"#,
        ),
        (
            "edition twice",
            rule(", tenants: {products: {media: {editions: [a, b, a]}}}"),
            r#"m.yaml:7:97: "a" stands twice, expected it once"#,
        ),
        (
            "product that is not the service's",
            rule(", tenants: {products: {medai: {editions: [a]}}}"),
            r#"m.yaml:7:72: product "medai" is not that of service "media" (did you mean "media"?), expected "media": its sidecar sees no other product of a tenant"#,
        ),
        (
            "a second product",
            rule(", tenants: {products: {media: {editions: [a]}, issues: {editions: [a]}}}"),
            r#"m.yaml:7:96: product "issues" is not that of service "media", expected "media": its sidecar sees no other product of a tenant"#,
        ),
        (
            "product that is no name",
            rule(", tenants: {products: {Media: {editions: [a]}}}"),
            r#"m.yaml:7:72: "Media" is not a product name, expected 1 to 63 of a-z, 0-9 and "-", with a letter or digit first and last"#,
        ),
        (
            "product of a service without one",
            rule(", tenants: {products: {media: {editions: [a]}}, features: [b]}")
                .replace("service: media", "service: wiki"),
            r#"m.yaml:7:72: service "wiki" has no product, expected a condition on regions or ids of tenants
m.yaml:7:107: service "wiki" has no product, expected a condition on regions or ids of tenants"#,
        ),
        ("proof", rule(", proof: txn"), r#"m.yaml:7:58: found text "txn", expected none or transaction"#),
        (
            "rate without unit",
            rule(", rate: {perTenant: 100}"),
            r#"m.yaml:7:69: found the number 100, expected N/s, N/m or N/h with a whole number N of at least 1"#,
        ),
        (
            "rate with a wrong unit",
            rule(", rate: {perTenant: 100/d}"),
            r#"m.yaml:7:69: rate "100/d" is not well formed, expected N/s, N/m or N/h with a whole number N of at least 1"#,
        ),
        (
            "rate of nothing",
            rule(", rate: {perTenant: 0/s}"),
            r#"m.yaml:7:69: rate "0/s" is not well formed, expected N/s, N/m or N/h with a whole number N of at least 1"#,
        ),
        (
            "rate with a sign",
            rule(", rate: {perTenant: +1/s}"),
            r#"m.yaml:7:69: rate "+1/s" is not well formed, expected N/s, N/m or N/h with a whole number N of at least 1"#,
        ),
        (
            "rate that overflows",
            rule(", rate: {perTenant: 99999999999999999999/s}"),
            r#"m.yaml:7:69: rate "99999999999999999999/s" is not well formed, expected N/s, N/m or N/h with a whole number N of at least 1"#,
        ),
        (
            "rate alone",
            rule(", rate: {burst: 0}"),
            r#"m.yaml:7:57: missing field "perTenant" in a rate, expected N/s, N/m or N/h with a whole number N of at least 1
m.yaml:7:65: found the number 0, expected a whole number of at least 1"#,
        ),
        (
            "burst as text",
            rule(", rate: {perTenant: 1/s, burst: many}"),
            r#"m.yaml:7:81: found text "many", expected a whole number of at least 1"#,
        ),
        (
            "quarantine",
            format!("{DOC}kind: Quarantine\nmetadata: {{name: q}}\nspec: {{services: [ghost], because: x}}\n"),
            r#"m.yaml:4:19: no Service or ExternalClient "ghost", expected the name of a Service or ExternalClient document
m.yaml:4:27: unknown field "because" in the spec of a Quarantine, expected services or reason"#,
        ),
        (
            "region that nobody defines",
            local("[{service: wiki, region: us-west}]"),
            r#"m.yaml:5:39: no region "us-west" (did you mean "eu-west"?), expected one of the regions of the Mesh document"#,
        ),
        (
            "address",
            local("[{service: wiki, region: us-east, app: localhost:9000}]"),
            r#"m.yaml:5:53: address "localhost:9000" is not well formed, expected an IP address with a port, as 127.0.0.1:9002"#,
        ),
        (
            "port 0",
            local("[{service: wiki, region: us-east, inbound: 127.0.0.1:0}]"),
            r#"m.yaml:5:57: address "127.0.0.1:0" is not well formed, expected an IP address with a port, as 127.0.0.1:9002"#,
        ),
        (
            "outbound for everybody",
            local("[{service: wiki, region: us-east, outbound: 0.0.0.0:1}]"),
            r#"m.yaml:5:58: outbound "0.0.0.0:1" can be reached from other machines, expected a loopback address or unix:PATH"#,
        ),
        (
            "outbound without a path",
            local("[{service: wiki, region: us-east, outbound: 'unix:'}]"),
            r#"m.yaml:5:58: no path behind unix:, expected unix:PATH"#,
        ),
        (
            "listener taken",
            local("[{service: wiki, region: us-east}, {service: wiki, region: us-east, admin: 127.0.0.1:15020}]"),
            r#"m.yaml:5:49: address 127.0.0.1:15001 is taken by the outbound listener of the instance in line 5, expected one of its own
m.yaml:5:49: address 127.0.0.1:15006 is taken by the inbound listener of the instance in line 5, expected one of its own
m.yaml:5:89: address 127.0.0.1:15020 is taken by the default of the control plane's tcs, expected one of its own"#,
        ),
        (
            "app on a listener",
            local("[{service: wiki, region: us-east, app: 127.0.0.1:15006}]"),
            r#"m.yaml:5:53: address 127.0.0.1:15006 is taken by the inbound listener of the instance in line 5, expected one of its own"#,
        ),
        (
            "command",
            local("[{service: wiki, region: us-east, command: target/release/wiki}]"),
            r#"m.yaml:5:57: found text "target/release/wiki", expected a list of the program and its arguments"#,
        ),
        (
            "argument that is a number",
            local("[{service: wiki, region: us-east, command: [a, --port, 80]}]"),
            r#"m.yaml:5:69: found the number 80, expected a program or argument: put it in quotes to make it text"#,
        ),
        (
            "two local meshes",
            format!("{0}---\n{0}", local("[{service: wiki, region: us-east}]")),
            r#"m.yaml:8:7: a second LocalMesh, expected one: the first is at m.yaml:2:7"#,
        ),
        (
            "control plane",
            local("[{service: wiki, region: us-east}]\n  controlPlane: {tsc: 127.0.0.1:1}"),
            r#"m.yaml:6:18: unknown field "tsc" in the addresses of the control plane (did you mean "tcs"?), expected identity, keyRepository, tcs, policy or dashboard"#,
        ),
        (
            "tenants that are held in no known way",
            local("[{service: wiki, region: us-east, tenants: ondemand}]"),
            r#"m.yaml:5:57: found text "ondemand" (did you mean "on-demand"?), expected full or on-demand"#,
        ),
        (
            "one TCS twice",
            tcs("[127.0.0.1:1, {address: 127.0.0.1:1, zone: b}]"),
            r#"m.yaml:6:47: address 127.0.0.1:1 is taken by number 1 of the control plane's tcs, expected one of its own"#,
        ),
        (
            "a TCS on the port of another service",
            tcs("[127.0.0.1:1, 127.0.0.1:15030]"),
            r#"m.yaml:6:37: address 127.0.0.1:15030 is taken by the control plane's policy, expected one of its own"#,
        ),
        ("no TCS", tcs("[]"), r#"m.yaml:6:23: an empty list, expected a list of addresses with at least one of them"#),
        (
            "a TCS without an address",
            tcs("[{zone: b}]"),
            r#"m.yaml:6:24: missing field "address" in the address of a TCS, expected an IP address with a port, as 127.0.0.1:9002"#,
        ),
        (
            "a TCS with an unknown field",
            tcs("{adress: 127.0.0.1:1, address: 127.0.0.1:2}"),
            r#"m.yaml:6:24: unknown field "adress" in the address of a TCS (did you mean "address"?), expected address or zone"#,
        ),
        (
            "a TCS in a zone that is no name",
            tcs("[{address: 127.0.0.1:1, zone: B_}]"),
            r#"m.yaml:6:53: "B_" is not a zone name, expected 1 to 63 of a-z, 0-9 and "-", with a letter or digit first and last"#,
        ),
        (
            "tenant with an unknown field",
            test("[{tenantId: a, status: ACTIVE, stauts: ACTIVE}]", CALL),
            r#"m.yaml:5:43: not a TenantContext in proto3 JSON: unknown field "stauts" (did you mean "status"?), expected tenantId, revision, status, hosts, realm, region, products or settings"#,
        ),
        (
            "expectation that is no reason",
            test("[]", &CALL.replace("ALLOWED", "NOPE")),
            r#"m.yaml:6:64: found text "NOPE", expected ALLOWED or the reason of a refusal, as TENANT_UNKNOWN"#,
        ),
        (
            "expectation with a slip",
            test("[]", &CALL.replace("ALLOWED", "TENANT_SUSPENED")),
            r#"m.yaml:6:64: found text "TENANT_SUSPENED" (did you mean "TENANT_SUSPENDED"?), expected ALLOWED or the reason of a refusal, as TENANT_UNKNOWN"#,
        ),
        (
            "tenant with an unknown status",
            test("[{tenantId: a, status: ALIVE}]", CALL),
            r#"m.yaml:5:27: not a TenantContext in proto3 JSON: status is text "ALIVE", expected ACTIVE or SUSPENDED"#,
        ),
        (
            "tenant without a status",
            test("[{tenantId: A}]", CALL),
            r#"m.yaml:5:13: no status is given, expected ACTIVE or SUSPENDED
m.yaml:5:14: "A" is not a tenant id, expected 1 to 63 of a-z, 0-9 and "-", with a letter or digit first and last"#,
        ),
        (
            "tenant with a bad product",
            test("[{tenantId: a, status: ACTIVE, products: {media: {seats: many}}}]", CALL),
            r#"m.yaml:5:62: not a TenantContext in proto3 JSON: seats is text "many", expected a whole number 0 to 4294967295"#,
        ),
        (
            "tenant twice",
            test("[{tenantId: a, status: ACTIVE}, {tenantId: a, status: ACTIVE}]", CALL),
            r#"m.yaml:5:44: tenant "a" stands twice, expected it once: the first is at 5:13"#,
        ),
        (
            "expectation",
            test("[{tenantId: a, status: ACTIVE}]", &CALL.replace("ALLOWED", "allowed")),
            r#"m.yaml:6:64: found text "allowed", expected ALLOWED or the reason of a refusal, as TENANT_UNKNOWN"#,
        ),
        (
            "call without a path",
            test("[{tenantId: a, status: ACTIVE}]", &CALL.replace("path: /a.B/C, ", "")),
            r#"m.yaml:6:11: missing field "path" in a call, expected a gRPC path"#,
        ),
    ]
}

#[test]
fn each_mistake_gives_exactly_its_problem() {
    let mut wrong = String::new();
    for (title, text, expected) in cases().into_iter().chain(outside::cases()) {
        let problems = match with_base(&text) {
            Ok(_) => "no problem".to_owned(),
            Err(problems) => problems.to_string(),
        };
        if problems != expected {
            wrong += &format!("=== {title}\n{text}--- expected\n{expected}\n--- came\n{problems}\n");
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
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
    let text = format!("{}---\n{}---\na: [\n", service("{residency: x}"), service("{product: 1, orginates: true}"));
    let problems = with_base(&text).unwrap_err();
    let places: Vec<(u32, u32)> = problems.0.iter().map(|problem| (problem.line, problem.column)).collect();
    assert_eq!(places, [(4, 19), (8, 18), (9, 17), (9, 20), (12, 1)], "{problems}");
}
