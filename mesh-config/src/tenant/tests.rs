use proptest::prelude::*;

use super::*;

const ACME: &str = r#"{"tenantId":"acme","status":"ACTIVE","region":"us-east","hosts":["acme.example"],"products":{"media":{"state":"ACTIVE","licenseExpiresAt":"2030-01-01T00:00:00Z","shard":{"cluster":"c1","database":"d","schema":"s"}}}}"#;

fn problems(text: &str) -> String {
    read_json_lines("t.jsonl", text).unwrap_err().to_string()
}

#[test]
fn a_whole_record_is_read_with_proto3_json_names() {
    let tenants = read_json_lines("t.jsonl", &format!("\n{ACME}\r\n  \n")).unwrap();
    let [acme] = tenants.as_slice() else { panic!("one tenant") };
    assert_eq!((acme.tenant_id.as_str(), acme.status(), acme.region.as_str()), ("acme", Status::Active, "us-east"));
    let media = &acme.products["media"];
    assert_eq!(media.license_expires_at.as_ref().map(|time| time.seconds), Some(1_893_456_000));
    assert_eq!(media.shard.as_ref().map(|shard| shard.cluster.as_str()), Some("c1"));
}

#[test]
fn a_tenant_needs_no_region_no_host_and_no_product() {
    assert!(
        read_json_lines("t", r#"{"tenantId":"018f4e6a-9c1d-7b3a-8f21-5d2c7e9a0b11","status":"SUSPENDED"}"#).is_ok()
    );
}

#[test]
fn every_wrong_line_is_told_with_its_number() {
    let text = [
        ACME,
        r#"{"tenantId":"acme","status":"ACTIVE","hosts":["acme.example"]}"#,
        r#"{"tenantId":"b","status":"ACTIVE","hosts":["B.example"],"stauts":1}"#,
        r#"{"tenantId":"Ünï","status":"ACTIVE","#,
        r#"{"status":"ACTIVE"}"#,
        r#"{"tenantId":"c"}"#,
        r#"{"tenantId":"d","status":"ACTIVE","products":{"media":{}}}"#,
        r#"{"tenantId":"e","status":"ACTIVE","hosts":["E.example","f.example","f.example"]}"#,
        r#"{"tenantId":"f","status":"ACTIVE","products":{"media":{"state":"ACTIVE"},"media":{"state":"SUSPENDED"}}}"#,
        r#"{"tenantId":"g","status":7,"region":"US"}"#,
        r#"{"tenantId":"h","status":"ACTIVE","products":{"media":{"state":"ACTIVE","shard":{"schema":"../up"}}}}"#,
        r#"[]"#,
    ]
    .join("\n");
    let expected = [
        r#"t.jsonl:2:1: tenant "acme" stands twice, expected it once: the first is in line 1"#,
        r#"t.jsonl:2:1: host "acme.example" is also in line 1, expected each host once"#,
        r#"t.jsonl:3:64: not a TenantContext in proto3 JSON: unknown field `stauts`, expected one of `tenant_id`, `tenantId`, `revision`, `status`, `hosts`, `realm`, `region`, `products`, `settings`"#,
        r#"t.jsonl:4:36: not JSON: EOF while parsing a value, expected one JSON object a line"#,
        r#"t.jsonl:5:1: "" is not a tenant id, expected 1 to 63 of a-z, 0-9 and "-", with a letter or digit first and last"#,
        r#"t.jsonl:6:1: no status is given, expected ACTIVE or SUSPENDED"#,
        r#"t.jsonl:7:1: product "media" has no state, expected ACTIVE, INACTIVE or SUSPENDED"#,
        r#"t.jsonl:8:1: "E.example" is not a host name, expected a lower-case DNS name: labels of a-z, 0-9 and "-" with dots between them, at most 253 bytes"#,
        r#"t.jsonl:8:1: host "f.example" stands twice, expected it once"#,
        r#"t.jsonl:9:103: not a TenantContext in proto3 JSON: key "media" stands twice, expected it once"#,
        r#"t.jsonl:10:26: not a TenantContext in proto3 JSON: invalid value: integer `7`, expected expected one of: ["STATUS_UNSPECIFIED", "ACTIVE", "SUSPENDED"]"#,
        r#"t.jsonl:11:1: schema "../up" of the shard of product "media" is not well formed, expected at most 253 bytes without "/", "\" and control characters, not beginning with ".""#,
        r#"t.jsonl:12:2: not a TenantContext in proto3 JSON: invalid type: sequence, expected struct tenon.tcs.v1.TenantContext"#,
    ];
    assert_eq!(problems(&text).lines().collect::<Vec<_>>(), expected);
}

#[test]
fn a_wrong_tenant_id_is_cut_short_in_the_message() {
    let text = format!(r#"{{"tenantId":"{}","status":"ACTIVE"}}"#, "x".repeat(5000));
    assert!(problems(&text).len() < 300);
}

#[test]
fn a_record_that_is_too_large_to_travel_with_a_request_is_refused() {
    let text = format!(r#"{{"tenantId":"a","status":"ACTIVE","settings":{{"k":"{}"}}}}"#, "x".repeat(MAX_RECORD_BYTES));
    assert!(problems(&text).contains("expected at most 65536"), "{}", problems(&text));
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in any::<String>(), at in 0..ACME.len(), with in any::<char>()) {
        let mut changed = ACME.to_owned();
        changed.replace_range(at..=at, &with.to_string());
        for text in [text, changed] {
            if let Err(Problems(problems)) = read_json_lines("t", &text) {
                prop_assert!(!problems.is_empty());
                prop_assert!(problems.iter().all(|problem| problem.line >= 1 && problem.column >= 1));
            }
        }
    }
}
