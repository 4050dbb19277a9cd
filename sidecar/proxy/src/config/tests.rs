use super::*;

fn complete() -> Flags {
    Flags {
        service: Some("media".into()),
        trust_domain: Some("demo.example".into()),
        trust_bundle_sha256: Some("AB".repeat(32)),
        state_dir: Some("state".into()),
        ..Flags::default()
    }
}

#[test]
fn defaults_are_those_of_the_design() {
    let config = complete().into_config().expect("complete");
    assert_eq!(config.outbound.to_string(), "127.0.0.1:15001");
    assert_eq!(config.inbound.to_string(), "0.0.0.0:15006");
    assert_eq!(config.admin.to_string(), "127.0.0.1:15000");
    let SvidFrom::IdentityService { pin, .. } = config.svid_from else { panic!("of the identity service") };
    assert_eq!(pin, "ab".repeat(32));
}

#[test]
fn every_problem_is_reported_at_once() {
    let flags = Flags { outbound: Some("10.0.0.1:1".into()), inbound: Some("nonsense".into()), ..Flags::default() };
    let ConfigError(problems) = flags.into_config().expect_err("incomplete");
    for option in ["--service", "--trust-domain", "--outbound", "--inbound", "--trust-bundle-sha256", "--state-dir"] {
        assert!(problems.iter().any(|problem| problem.starts_with(option)), "{option} in {problems:?}");
    }
}

#[test]
fn spans_go_to_an_http_url_and_a_share_is_from_0_to_1() {
    let with =
        |otlp: &str, share| Flags { otlp: Some(otlp.into()), trace_share: Some(share), ..complete() }.into_config();
    let taken = with("http://127.0.0.1:4317", 0.25).expect("good").spans;
    assert_eq!(taken, Some(Spans { collector: "http://127.0.0.1:4317".into(), share: 0.25 }));
    for (otlp, share, option) in [
        ("https://collector:4317", 0.0, "--otlp"),
        ("127.0.0.1:4317", 0.0, "--otlp"),
        ("http://collector:4318/v1/traces", 0.0, "--otlp"),
        ("http://user:secret@collector:4317", 0.0, "--otlp"),
        ("http://collector:4317/", 1.5, "--trace-share"),
        ("http://collector:4317/", f64::NAN, "--trace-share"),
    ] {
        let ConfigError(problems) = with(otlp, share).expect_err("wrong");
        assert!(matches!(problems.as_slice(), [problem] if problem.starts_with(option)), "{problems:?}");
    }
    assert_eq!(complete().into_config().expect("complete").spans, None);
}

#[test]
fn tenants_stand_in_metrics_only_where_that_is_wanted_and_never_all_of_them() {
    let with = |tenant_metrics| Flags { tenant_metrics, ..complete() }.into_config();
    assert_eq!(with(None).expect("good").tenant_metrics, 0);
    assert_eq!(with(Some(100)).expect("good").tenant_metrics, 100);
    let ConfigError(problems) = with(Some(101)).expect_err("wrong");
    assert!(matches!(problems.as_slice(), [problem] if problem.starts_with("--tenant-metrics 101: ")), "{problems:?}");
}

#[test]
fn a_workload_api_stands_instead_of_pin_and_proofs_and_not_beside_them() {
    let alone =
        Flags { workload_api: Some("unix:///run/spire/agent.sock".into()), trust_bundle_sha256: None, ..complete() };
    assert!(matches!(alone.into_config().expect("complete").svid_from, SvidFrom::WorkloadApi(_)));
    let both = Flags {
        workload_api: Some("/run/spire/agent.sock".into()),
        join_token_file: Some("token".into()),
        ..complete()
    };
    let ConfigError(problems) = both.into_config().expect_err("contradictory");
    for option in ["--trust-bundle-sha256", "--join-token-file", "--workload-api"] {
        assert!(problems.iter().any(|problem| problem.starts_with(option)), "{option} in {problems:?}");
    }
}

#[test]
fn flags_win_over_the_file_and_unknown_keys_are_refused() {
    let file = "service: wiki\ntrustDomain: demo.example\nworkers: 2\naccessLog: true\noidcTokenFile: a/token\n";
    let file = yaml(file).expect("valid");
    let merged = complete().over(file);
    assert_eq!(merged.service.as_deref(), Some("media"));
    assert_eq!(merged.workers, Some(2));
    assert_eq!(merged.access_log.as_deref(), Some("true"));
    assert_eq!(merged.oidc_token_file.as_deref(), Some(Path::new("a/token")));
    assert!(yaml("servce: wiki\n").is_err());
    assert!(yaml("service: [a]\n").is_err());
    assert!(yaml("service: 'a\n").expect_err("syntax").contains(':'));
}

/// Bug: 0.0.0.0 was taken, and refused by the policy service alone.
#[test]
fn an_address_that_nobody_can_connect_to_is_not_advertised() {
    for (address, accepted) in
        [("0.0.0.0:1", false), ("10.0.0.1:0", false), ("[::]:15006", false), ("10.0.0.1:15006", true)]
    {
        let mut problems = Problems(Vec::new());
        assert_eq!(problems.advertise(Some(address)).is_some(), accepted, "{address}: {:?}", problems.0);
        assert_eq!(problems.0.is_empty(), accepted);
    }
}

/// Bug: "invalid socket address syntax" told nobody what to write, and an instance could settle for centuries.
#[test]
fn a_value_that_is_none_is_told_what_it_should_be() {
    let problem = |flags: Flags| flags.into_config().expect_err("wrong").to_string();
    let advertise = problem(Flags { advertise: Some("localhost:15006".into()), ..complete() });
    assert_eq!(advertise, "--advertise localhost:15006: expected IP:PORT or [IPv6]:PORT, and no name of a host");
    let admin = problem(Flags { admin: Some("15000".into()), ..complete() });
    assert!(admin.starts_with("--admin 15000: expected IP:PORT"), "{admin}");
    let settle = problem(Flags { settle: Some("99999999999m".into()), ..complete() });
    assert!(settle.contains("expected 10m at most"), "{settle}");
}
