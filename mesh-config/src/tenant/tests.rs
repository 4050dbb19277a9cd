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
        r#" {"tenant_id":"", "settings":{"\"{":"[ü]"} , "hosts":["ok.example","Bad."],"status":"ACTIVE","realm":"R"}"#,
        r#"{"tenantId":"i","status":"ACTIVE","products":{"media":{"seats":-1,"licenseExpiresAt":"tomorrow","shard":{"schema":[]},"state":true}}}"#,
        r#"{"tenantId":5,"nope":1,"hosts":"h","products":{"media":7}}"#,
        r#"{"tenantId":"j","status":"ACTIVE","products":{"media":{"state":"ACTIVE","seats":"5","license_expires_at":"2027-01-31"}}}"#,
    ]
    .join("\n");
    let expected = [
        r#"t.jsonl:2:2: tenant "acme" stands twice, expected it once: the first is in line 1"#,
        r#"t.jsonl:2:47: host "acme.example" is also in line 1, expected each host once"#,
        r#"t.jsonl:3:57: not a TenantContext in proto3 JSON: unknown field "stauts" (did you mean "status"?), expected tenantId, revision, status, hosts, realm, region, products, settings or move"#,
        r#"t.jsonl:4:36: not JSON: EOF while parsing a value, expected one JSON object a line"#,
        r#"t.jsonl:5:1: "" is not a tenant id, expected 1 to 63 of a-z, 0-9 and "-", with a letter or digit first and last"#,
        r#"t.jsonl:6:1: no status is given, expected ACTIVE or SUSPENDED"#,
        r#"t.jsonl:7:47: product "media" has no state, expected ACTIVE, INACTIVE or SUSPENDED"#,
        r#"t.jsonl:8:44: "E.example" is not a host name, expected a lower-case DNS name: labels of a-z, 0-9 and "-" with dots between them, at most 253 bytes"#,
        r#"t.jsonl:8:68: host "f.example" stands twice, expected it once"#,
        r#"t.jsonl:9:103: not a TenantContext in proto3 JSON: key "media" stands twice, expected it once"#,
        r#"t.jsonl:10:17: not a TenantContext in proto3 JSON: status is the number 7, expected ACTIVE or SUSPENDED"#,
        r#"t.jsonl:11:82: schema "../up" of the shard of product "media" is not well formed, expected at most 253 bytes without "/", "\" and control characters, not beginning with ".""#,
        r#"t.jsonl:12:2: not a TenantContext in proto3 JSON: invalid type: sequence, expected struct tenon.tcs.v1.TenantContext"#,
        r#"t.jsonl:13:3: "" is not a tenant id, expected 1 to 63 of a-z, 0-9 and "-", with a letter or digit first and last"#,
        r#"t.jsonl:13:3: tenant "" stands twice, expected it once: the first is in line 5"#,
        r#"t.jsonl:13:68: "Bad." is not a host name, expected a lower-case DNS name: labels of a-z, 0-9 and "-" with dots between them, at most 253 bytes"#,
        r#"t.jsonl:13:94: realm "R" is not well formed, expected 1 to 63 of a-z, 0-9 and "-", with a letter or digit first and last"#,
        r#"t.jsonl:14:56: not a TenantContext in proto3 JSON: seats is the number -1, expected a whole number 0 to 4294967295"#,
        r#"t.jsonl:14:67: not a TenantContext in proto3 JSON: licenseExpiresAt is text "tomorrow", expected an RFC 3339 time such as 2027-01-31T00:00:00Z"#,
        r#"t.jsonl:14:106: not a TenantContext in proto3 JSON: schema is a list, expected text"#,
        r#"t.jsonl:14:119: not a TenantContext in proto3 JSON: state is the boolean true, expected ACTIVE, INACTIVE or SUSPENDED"#,
        r#"t.jsonl:15:2: not a TenantContext in proto3 JSON: tenantId is the number 5, expected a tenant id as text"#,
        r#"t.jsonl:15:15: not a TenantContext in proto3 JSON: unknown field "nope", expected tenantId, revision, status, hosts, realm, region, products, settings or move"#,
        r#"t.jsonl:15:24: not a TenantContext in proto3 JSON: hosts is text "h", expected a list of host names"#,
        r#"t.jsonl:15:48: not a TenantContext in proto3 JSON: media is the number 7, expected a product: an object"#,
        r#"t.jsonl:16:85: not a TenantContext in proto3 JSON: license_expires_at is text "2027-01-31", expected an RFC 3339 time such as 2027-01-31T00:00:00Z"#,
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

#[test]
fn a_byte_that_is_not_utf_8_has_a_place_and_hides_no_other_problem() {
    let bytes = [b"\xEF\xBB\xBF".as_slice(), ACME.as_bytes(), b"\n{\"tenantId\":\"\xC3\xA9\xE9\"}\n{\n"].concat();
    let problems = read_json_lines_bytes("t.jsonl", &bytes).unwrap_err().to_string();
    assert_eq!(
        problems,
        "t.jsonl:2:15: a byte that is not UTF-8, expected text in UTF-8\n\
         t.jsonl:3:1: not JSON: EOF while parsing an object, expected one JSON object a line"
    );
}

#[test]
fn a_byte_order_mark_before_the_file_is_passed_over() {
    assert_eq!(read_json_lines("t", &format!("\u{FEFF}{ACME}\n")).unwrap().len(), 1);
    assert_eq!(problems("\u{FEFF}x"), "t.jsonl:1:1: not JSON: expected value, expected one JSON object a line");
}

#[test]
fn a_file_of_nothing_but_mistakes_gives_as_many_problems_as_anybody_reads() {
    let text = problems(&"{\n".repeat(5000));
    assert_eq!(text.lines().count(), 101);
    assert!(text.ends_with("t.jsonl:100:1: and 4900 more problems from here on"), "{}", text.len());
}
