use super::*;

fn domain() -> TrustDomain {
    "demo.example".try_into().unwrap()
}

/// A request that is good, as its parameters.
fn good() -> Vec<(&'static str, &'static str)> {
    vec![
        ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
        ("requested_token_type", "urn:ietf:params:oauth:token-type:txn_token"),
        ("audience", "demo.example"),
        ("scope", "media.read media.list"),
        ("subject_token_type", "urn:ietf:params:oauth:token-type:unsigned_json"),
        ("subject_token", r#"{"sub":"user-7","scope":"media.read media.list media.write"}"#),
        ("request_details", r#"{"tenant":"acme","action":"VIEW","item":{"id":7}}"#),
        ("request_context", r#"{"req_ip":"69.151.72.123","authn":"urn:ietf:rfc:6749"}"#),
    ]
}

fn parse(parameters: &[(&str, &str)]) -> Result<Exchange, OAuthError> {
    let form = form_urlencoded::Serializer::new(String::new()).extend_pairs(parameters).finish();
    Exchange::parse(form.as_bytes(), &domain())
}

/// The good request with one parameter changed, or removed where the value is empty.
fn changed(name: &'static str, value: &'static str) -> Result<Exchange, OAuthError> {
    let mut parameters = good();
    parameters.retain(|(other, _)| *other != name);
    if !value.is_empty() {
        parameters.push((name, value));
    }
    parse(&parameters)
}

#[test]
fn a_request_is_read_as_the_draft_writes_it() {
    let exchange = parse(&good()).unwrap();
    assert_eq!(exchange.scope.as_str(), "media.read media.list");
    assert_eq!(exchange.tenant.unwrap().as_str(), "acme");
    assert_eq!(Value::Object(exchange.details), serde_json::json!({"action": "VIEW", "item": {"id": 7}}));
    assert_eq!(exchange.context["req_ip"], "69.151.72.123");
    let SubjectToken::Unsigned(subject) = exchange.subject_token else { panic!("unsigned") };
    assert_eq!(subject["sub"], "user-7");

    for optional in ["request_details", "request_context"] {
        assert!(changed(optional, "").is_ok(), "{optional}");
    }
    assert_eq!(changed("request_details", "").unwrap().tenant, None);
    let signed = changed("subject_token_type", "urn:ietf:params:oauth:token-type:self_signed").unwrap();
    assert!(matches!(signed.subject_token, SubjectToken::SelfSigned(_)));
    // What nobody knows is ignored.
    assert!(changed("resource", "https://media.example").is_ok());
}

#[test]
fn a_request_that_is_not_complete_or_asks_for_something_else_is_refused_with_the_code_of_the_rfc() {
    let access_token = "urn:ietf:params:oauth:token-type:access_token";
    for (name, value, code) in [
        ("grant_type", "", "invalid_request"),
        ("grant_type", "client_credentials", "unsupported_grant_type"),
        ("requested_token_type", "", "invalid_request"),
        ("requested_token_type", access_token, "invalid_request"),
        ("audience", "", "invalid_request"),
        ("audience", "other.example", "invalid_target"),
        ("scope", "", "invalid_scope"),
        ("scope", " ", "invalid_scope"),
        ("scope", "two  spaces", "invalid_scope"),
        ("scope", "quote\"", "invalid_scope"),
        ("scope", "back\\slash", "invalid_scope"),
        ("scope", "sch\u{f6}n", "invalid_scope"),
        ("subject_token", "", "invalid_request"),
        ("subject_token", "no JSON", "invalid_request"),
        ("subject_token", "[]", "invalid_request"),
        ("subject_token_type", "", "invalid_request"),
        ("subject_token_type", access_token, "invalid_request"),
        ("subject_token_type", "urn:ietf:params:oauth:token-type:refresh_token", "invalid_request"),
        ("request_details", "7", "invalid_request"),
        ("request_details", r#"{"tenant":"ACME"}"#, "invalid_request"),
        ("request_details", r#"{"tenant":""}"#, "invalid_request"),
        ("request_details", r#"{"tenant":7}"#, "invalid_request"),
        ("request_context", "text", "invalid_request"),
        ("actor_token", "x", "invalid_request"),
    ] {
        let refused = changed(name, value).unwrap_err();
        assert_eq!(refused.code, code, "{name} = {value}: {}", refused.description);
        assert_eq!(refused.status, 400, "{name} = {value}");
    }
    let twice: Vec<_> = good().into_iter().chain([("scope", "media.write")]).collect();
    assert_eq!(parse(&twice).unwrap_err().code, "invalid_request");
    assert!(parse(&[]).is_err());
}

#[test]
fn whatever_bytes_come_there_is_an_answer() {
    let form = form_urlencoded::Serializer::new(String::new()).extend_pairs(good()).finish().into_bytes();
    assert!(Exchange::parse(&form, &domain()).is_ok());
    for at in 0..form.len() {
        for byte in [0, b'%', b'&', b'=', b'+', b'"', b'}', 0xff] {
            let mut changed = form.clone();
            changed[at] = byte;
            // Some of these are good requests still: a byte within a value.
            let _answer = Exchange::parse(&changed, &domain());
        }
        let _answer = Exchange::parse(&form[..at], &domain());
    }
    // Deeper than any parser follows.
    let deep = format!("{{\"tenant\":\"acme\",\"a\":{}{}}}", "[".repeat(5000), "]".repeat(5000));
    let mut parameters: Vec<(&str, &str)> = good();
    parameters.retain(|(name, _)| *name != "request_details");
    parameters.push(("request_details", &deep));
    assert_eq!(parse(&parameters).unwrap_err().code, "invalid_request");
}

#[test]
fn a_scope_is_within_another_by_whole_words() {
    let scope = |text| Scope::parse(text).unwrap();
    for (asked, allowed, within) in [
        ("a", "a", true),
        ("a b", "b c a", true),
        ("a b", "a", false),
        ("a", "ab", false),
        ("ab", "a b", false),
        ("a", "", false),
        ("a", "A", false),
    ] {
        assert_eq!(scope(asked).is_within(allowed), within, "{asked} in {allowed}");
    }
    assert!(Scope::parse(&"x".repeat(1024)).is_some());
    assert!(Scope::parse(&"x".repeat(1025)).is_none());
}

#[test]
fn a_subject_is_one_line() {
    for good in ["user-7", "ann@example.com", "Ann Müller", "x".repeat(256).as_str()] {
        assert!(Subject::parse(good).is_some(), "{good}");
    }
    for bad in ["", " ", "a\nb", "a\0", "x".repeat(257).as_str()] {
        assert!(Subject::parse(bad).is_none(), "{bad:?}");
    }
}
