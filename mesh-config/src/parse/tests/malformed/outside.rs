//! What is wrong with clients outside of the mesh, attestors and transaction tokens.

use super::{
    super::{ca, leaf, pem_of},
    CALL, DOC, allowlist, service, test,
};

fn attestor(spec: &str) -> String {
    format!("{DOC}kind: Attestor\nmetadata: {{name: a}}\nspec:\n  {spec}\n")
}

/// A good client with some of its lines changed, so that a case shows only what is wrong. Its CA stands in line 8.
fn client(from: &str, to: &str) -> String {
    let text = format!(
        "{DOC}kind: ExternalClient\nmetadata: {{name: partner}}\nspec:\n  issuer: partner/billing\n  certificateNames: \
         [dns:billing.partner.example]\n  keyRepositories: [https://keys.partner.example/]\n  ca: {}\n",
        pem_of(&ca("one"))
    );
    assert!(text.contains(from), "{from} stands in the document");
    text.replace(from, to)
}

#[expect(clippy::too_many_lines, reason = "a table")]
pub(super) fn cases() -> Vec<(&'static str, String, &'static str)> {
    let ca_of = |pem: &str| client(&pem_of(&ca("one")), &format!("{pem:?}"));
    let named = |name: &str| client("dns:billing.partner.example", name);
    let repository = |url: &str| client("https://keys.partner.example/", url);
    let issuer = |issuer: &str| client("partner/billing", issuer);
    let second = client("name: partner}", "name: other}").replace("partner/billing", "other");
    let attestor_with =
        |rules: &str| attestor(&format!("{{issuer: https://k8s.example, audience: tenon, rules: {rules}}}"));
    const RULE: &str = "{claims: {sub: a}, service: media}";
    vec![
        (
            "client without anything",
            format!("{DOC}kind: ExternalClient\nmetadata: {{name: partner}}\nspec: {{}}\n"),
            r#"m.yaml:4:7: missing field "ca" in the spec of an ExternalClient, expected one or more CA certificates as PEM text
m.yaml:4:7: missing field "certificateNames" in the spec of an ExternalClient, expected a list of dns:NAME or uri:URI
m.yaml:4:7: missing field "keyRepositories" in the spec of an ExternalClient, expected a list of URLs of key repositories"#,
        ),
        (
            "unknown field of a client",
            client("issuer", "isuer"),
            r#"m.yaml:5:3: unknown field "isuer" in the spec of an ExternalClient (did you mean "issuer"?), expected issuer, ca, certificateNames, keyRepositories, keyRepositoryCa or subjects"#,
        ),
        (
            "client named as a service",
            client("name: partner}", "name: wiki}"),
            r#"m.yaml:3:18: ExternalClient "wiki" has the name of the Service "wiki", expected one of its own: the first is at base.yaml:13:18"#,
        ),
        (
            "service named as a client",
            format!("{}---\n{}", client("", ""), service("{}").replace("name: s", "name: partner")),
            r#"m.yaml:5:11: issuer "partner/billing" begins with the name of service "partner", whose keys would count as its own, expected one that begins with no service's name
m.yaml:12:18: Service "partner" has the name of the ExternalClient "partner", expected one of its own: the first is at m.yaml:3:18"#,
        ),
        (
            "client twice",
            format!("{}---\n{}", client("", ""), client("partner/billing", "x").replace("dns:billing", "dns:b")),
            r#"m.yaml:12:18: a second ExternalClient named "partner", expected one: the first is at m.yaml:3:18"#,
        ),
        (
            "client with a name of the control plane",
            client("name: partner}", "name: tenon-x}"),
            r#"m.yaml:3:18: a name of the control plane, expected a service name that does not begin with "tenon-""#,
        ),
        (
            "client with a name that is none",
            client("name: partner}", "name: Partner}"),
            r#"m.yaml:3:18: "Partner" is not a service name, expected 1 to 63 of a-z, 0-9 and "-", with a letter or digit first and last"#,
        ),
        (
            "issuer",
            issuer("partner//billing"),
            r#"m.yaml:5:11: "partner//billing" is not a well-formed issuer, expected segments of A-Z, a-z, 0-9 and "_.-+" with "/" between them, none of them "." or "..", at most 254 bytes"#,
        ),
        (
            "issuer of a service",
            issuer("media"),
            r#"m.yaml:5:11: issuer "media" begins with the name of service "media", whose keys would count as its own, expected one that begins with no service's name"#,
        ),
        (
            "issuer below a service",
            issuer("media/x"),
            r#"m.yaml:5:11: issuer "media/x" begins with the name of service "media", whose keys would count as its own, expected one that begins with no service's name"#,
        ),
        (
            "issuer of the control plane",
            issuer("tenon-identity"),
            r#"m.yaml:5:11: issuer "tenon-identity" begins with a name of the control plane, expected one that does not begin with "tenon-""#,
        ),
        (
            "issuer of two clients",
            format!("{}---\n{}", client("", ""), second.replace("issuer: other", "issuer: partner/billing/x"))
                .replace("[dns:billing.partner.example]", "[dns:a.example]")
                .replacen("[dns:a.example]", "[dns:b.example]", 1),
            r#"m.yaml:14:11: issuer "partner/billing/x" and issuer "partner/billing" share keys, expected issuers of which none begins another: the first is at m.yaml:5:11"#,
        ),
        (
            "issuer that is another client's name",
            format!(
                "{}---\n{}",
                client("  issuer: partner/billing\n", ""),
                second.replace("issuer: other", "issuer: partner/x").replace("dns:billing", "dns:b")
            ),
            r#"m.yaml:13:11: issuer "partner/x" and issuer "partner" share keys, expected issuers of which none begins another: the first is at m.yaml:3:18"#,
        ),
        (
            "CA that is no PEM",
            ca_of("MIIB"),
            r#"m.yaml:8:7: text that is not PEM, expected one or more CA certificates as PEM text"#,
        ),
        (
            "CA without an end",
            ca_of("-----BEGIN CERTIFICATE-----\nMIIB\n"),
            r#"m.yaml:8:7: text that is not PEM, expected one or more CA certificates as PEM text"#,
        ),
        (
            "CA that is no base64",
            ca_of("-----BEGIN CERTIFICATE-----\n%%%%\n-----END CERTIFICATE-----\n"),
            r#"m.yaml:8:7: text that is not PEM, expected one or more CA certificates as PEM text"#,
        ),
        (
            "CA that is no certificate",
            ca_of("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"),
            r#"m.yaml:8:7: PEM block 1 is not an X.509 certificate, expected one or more CA certificates as PEM text"#,
        ),
        (
            "CA that is a private key",
            ca_of("-----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----\n"),
            r#"m.yaml:8:7: PEM block 1 is no certificate but a "PRIVATE KEY", expected one or more CA certificates as PEM text"#,
        ),
        (
            "CA that may sign nothing",
            ca_of(&leaf()),
            r#"m.yaml:8:7: PEM block 1 is the certificate of no CA, expected one or more CA certificates as PEM text"#,
        ),
        (
            "CA twice",
            ca_of(&format!("{0}{0}", ca("one"))),
            r#"m.yaml:8:7: PEM block 2 stands there before, expected one or more CA certificates as PEM text"#,
        ),
        (
            "CA as a list",
            client(&pem_of(&ca("one")), "[]"),
            r#"m.yaml:8:7: found a list, expected one or more CA certificates as PEM text"#,
        ),
        (
            "CA of the key repositories",
            client("  ca:", "  keyRepositoryCa: x\n  ca:"),
            r#"m.yaml:8:20: text that is not PEM, expected one or more CA certificates as PEM text"#,
        ),
        (
            "certificate name without a type",
            named("billing.partner.example"),
            r#"m.yaml:6:22: certificate name "billing.partner.example" is not well formed, expected dns:NAME with a lower-case DNS name, or uri:URI"#,
        ),
        (
            "certificate name with a wildcard",
            named("'dns:*.partner.example'"),
            r#"m.yaml:6:22: certificate name "dns:*.partner.example" is not well formed, expected dns:NAME with a lower-case DNS name, or uri:URI"#,
        ),
        (
            "certificate name that is no URI",
            named("'uri:partner billing'"),
            r#"m.yaml:6:22: certificate name "uri:partner billing" is not well formed, expected dns:NAME with a lower-case DNS name, or uri:URI"#,
        ),
        (
            "certificate name of this mesh",
            named("uri:spiffe://test.example/svc/media"),
            r#"m.yaml:6:22: certificate name "uri:spiffe://test.example/svc/media" is an identity of this mesh, expected one of another trust domain"#,
        ),
        (
            "certificate name twice",
            named("dns:a.example, dns:a.example"),
            r#"m.yaml:6:37: "dns:a.example" stands twice, expected it once"#,
        ),
        (
            "certificate name of two clients",
            format!("{}---\n{second}", client("", "")),
            r#"m.yaml:15:22: certificate name "dns:billing.partner.example" is another ExternalClient's under the same CA, expected one of its own: the first is at m.yaml:6:22"#,
        ),
        (
            "no certificate name",
            named(""),
            r#"m.yaml:6:21: an empty list, expected a list of certificate names with at least one of them"#,
        ),
        (
            "key repository without TLS",
            repository("http://keys.partner.example/"),
            r#"m.yaml:7:21: URL "http://keys.partner.example/" is not well formed, expected https://HOST/ or a folder below it, ending in "/""#,
        ),
        (
            "key repository without a slash",
            repository("https://keys.partner.example/keys"),
            r#"m.yaml:7:21: URL "https://keys.partner.example/keys" is not well formed, expected https://HOST/ or a folder below it, ending in "/""#,
        ),
        (
            "key repository with a query",
            repository("'https://keys.partner.example/?kid='"),
            r#"m.yaml:7:21: URL "https://keys.partner.example/?kid=" is not well formed, expected https://HOST/ or a folder below it, ending in "/""#,
        ),
        (
            "key repository with a password",
            repository("https://a:b@keys.partner.example/"),
            r#"m.yaml:7:21: URL "https://a:b@keys.partner.example/" is not well formed, expected https://HOST/ or a folder below it, ending in "/""#,
        ),
        (
            "subject",
            client("  ca:", "  subjects: ['', a, a]\n  ca:"),
            r#"m.yaml:8:14: "" is no subject, expected text
m.yaml:8:21: "a" stands twice, expected it once"#,
        ),
        (
            "client where a service is meant",
            format!(
                "{}---\n{}",
                client("", ""),
                allowlist("{name: r, callers: [partner], paths: [/a.B/C]}")
                    .replace("service: media", "service: partner")
            ),
            r#"m.yaml:14:12: "partner" is an ExternalClient, expected the name of a Service document"#,
        ),
        (
            "caller close to a client",
            format!("{}---\n{}", client("", ""), allowlist("{name: r, callers: [partnr], paths: [/a.B/C]}")),
            r#"m.yaml:16:27: no Service or ExternalClient "partnr" (did you mean "partner"?), expected the name of a Service or ExternalClient document"#,
        ),
        (
            "attestor without anything",
            attestor("{}"),
            r#"m.yaml:5:3: missing field "audience" in the spec of an Attestor, expected the aud that tokens for this mesh have
m.yaml:5:3: missing field "issuer" in the spec of an Attestor, expected the iss of the platform's tokens
m.yaml:5:3: missing field "rules" in the spec of an Attestor, expected a list of rules"#,
        ),
        (
            "attestor of an issuer without discovery",
            attestor(&format!("{{issuer: k8s, audience: tenon, rules: [{RULE}]}}")),
            r#"m.yaml:5:12: issuer "k8s" is no https URL below which its keys could be discovered, expected one, or jwksUri beside it"#,
        ),
        (
            "keys without TLS",
            attestor(&format!("{{issuer: k8s, audience: tenon, jwksUri: http://k8s/keys, rules: [{RULE}]}}")),
            r#"m.yaml:5:43: URL "http://k8s/keys" is not well formed, expected https://HOST/PATH"#,
        ),
        (
            "attestor with a CA that is none",
            attestor(&format!("{{issuer: https://k8s, audience: tenon, ca: x, rules: [{RULE}]}}")),
            r#"m.yaml:5:46: text that is not PEM, expected one or more CA certificates as PEM text"#,
        ),
        (
            "attestor twice",
            format!("{0}---\n{0}", attestor_with(&format!("[{RULE}]"))),
            r#"m.yaml:9:18: a second Attestor named "a", expected one: the first is at m.yaml:3:18
m.yaml:11:12: a second Attestor for the issuer and audience named "https://k8s.example tenon", expected one: the first is at m.yaml:5:12"#,
        ),
        (
            "audience that is nothing",
            attestor(&format!("{{issuer: https://k8s, audience: '', rules: [{RULE}]}}")),
            r#"m.yaml:5:35: found text "", expected the aud that tokens for this mesh have"#,
        ),
        (
            "attestor without rules",
            attestor_with("[]"),
            r#"m.yaml:5:57: an empty list, expected a list of rules with at least one of them"#,
        ),
        (
            "rule that every token matches",
            attestor_with("[{claims: {}, service: media}]"),
            r#"m.yaml:5:67: an empty map, expected a map of claims to their values, with at least one of them"#,
        ),
        (
            "rule of claims that are none",
            attestor_with("[{claims: {'': a, /: b, /a~2: c, sub: 1}, service: medai}]"),
            r#"m.yaml:5:68: "" names no claim, expected its name, or a JSON pointer as /kubernetes.io/namespace
m.yaml:5:75: "/" names no claim, expected its name, or a JSON pointer as /kubernetes.io/namespace
m.yaml:5:81: "/a~2" names no claim, expected its name, or a JSON pointer as /kubernetes.io/namespace
m.yaml:5:95: found the number 1, expected the exact value of the claim: put it in quotes to make it text
m.yaml:5:108: no Service "medai" (did you mean "media"?), expected the name of a Service document"#,
        ),
        (
            "rule that never decides",
            attestor_with("[{claims: {sub: a}, service: media}, {claims: {ns: b, sub: a}, service: wiki}]"),
            r#"m.yaml:5:94: this rule never decides, expected claims that the rules before it do not match: the first is at 5:58"#,
        ),
        (
            "transaction token of a test",
            test("[]", &CALL.replace("expect", "transaction: {tenants: a}, expect")),
            r#"m.yaml:6:70: unknown field "tenants" in a transaction token (did you mean "tenant"?), expected tenant"#,
        ),
        (
            "transaction token of a test that is no map",
            test("[]", &CALL.replace("expect", "transaction: acme, expect")),
            r#"m.yaml:6:69: found text "acme", expected a transaction token: a map with tenant"#,
        ),
        (
            "requester",
            service("{requestsTransactionTokens: yes}"),
            r#"m.yaml:4:35: found text "yes", expected true or false"#,
        ),
        (
            "manager of tenants",
            service("{managesTenants: 1}"),
            r#"m.yaml:4:24: found the number 1, expected true or false"#,
        ),
    ]
}
