//! Files that are made to hurt: none makes the parser panic, run without end or take memory without end.

use proptest::prelude::*;

use super::{BASE, file, with_base};
use crate::{Problems, compile, parse, problem::MAX_PROBLEMS};

#[test]
fn a_bomb_of_aliases_is_refused_before_it_grows() {
    let mut text = "a: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
    for level in 1..12 {
        let previous = format!("*a{}", level - 1);
        text += &format!("b{level}: &a{level} [{}]\n", [previous.as_str(); 10].join(", "));
    }
    // One long text many times; a large list inside of many anchors: bytes and copies count too.
    let long = format!("a: &a {}\nb: [{}]\n", "x".repeat(1 << 20), ["*a"; 50_000].join(","));
    let anchors: String = (0..50).map(|level| format!("&a{level} [")).collect();
    let copies = format!("a: {anchors}{}{}\n", "x,".repeat(50_000), "]".repeat(50));
    for text in [text, long, copies] {
        let problems = with_base(&text).unwrap_err();
        assert!(problems.0.iter().any(|p| p.message.contains("aliases make this file too large")), "{problems}");
    }
}

#[test]
fn nesting_without_end_is_refused() {
    for text in ["[".repeat(100_000), "- ".repeat(100_000), "{a: ".repeat(100_000)] {
        assert!(with_base(&text).is_err());
    }
}

#[test]
fn a_file_of_nothing_but_mistakes_gives_as_many_problems_as_fit_a_message() {
    let problems = with_base(&"a: b\n".repeat(100_000)).unwrap_err();
    assert_eq!(problems.0.len(), MAX_PROBLEMS + 1);
    assert!(problems.0[MAX_PROBLEMS].message.starts_with("and 99"), "{}", problems.0[MAX_PROBLEMS]);
}

/// Text that comes close to a policy file.
#[expect(clippy::too_many_lines, reason = "a list")]
fn nearly_yaml() -> impl Strategy<Value = String> {
    let words = prop::sample::select(vec![
        "apiVersion: tenon.dev/v1\n",
        "kind: ",
        "Mesh",
        "Service",
        "Allowlist",
        "LocalMesh",
        "PolicyTest",
        "Quarantine",
        "ExternalClient",
        "Attestor",
        "certificateNames: [dns:",
        "uri:spiffe://x/",
        "ca: |\n",
        "-----BEGIN CERTIFICATE-----",
        "-----END CERTIFICATE-----",
        "keyRepositories: ['https://",
        "issuer: ",
        "audience: a\n",
        "claims: {",
        "service: media\n",
        "\n",
        "metadata: {name: a}\n",
        "spec:\n",
        "  ",
        "- ",
        ": ",
        "rules:",
        "callers: [",
        "]",
        "{",
        "}",
        "'",
        "\"",
        "&a ",
        "*a",
        "---\n",
        "rate: {perTenant: ",
        "1/s",
        "0",
        "-1",
        "!!int ",
        "!x ",
        "|\n",
        "? ",
        "%YAML 1.2\n",
        "~",
        "\u{FEFF}",
        "é",
        "\t",
        "\0",
        "#",
        "<<: ",
        "instances:",
        "tenants:",
        "calls:",
        "1e999",
        "0x",
        "...\n",
        "\r",
        "\u{2028}",
        "regions: [us-east]\n",
        "trustDomain: x\n",
    ]);
    prop::collection::vec(words, 0..60).prop_map(|words| words.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_text_makes_it_panic_and_every_problem_has_a_place(text in prop_oneof![nearly_yaml(), any::<String>(), "\\PC{0,200}"]) {
        for base in ["", BASE] {
            let files = [file("base.yaml", base), file("m.yaml", &text)];
            match parse(&files) {
                Ok(mesh) => drop(compile(&mesh)),
                Err(Problems(problems)) => {
                    prop_assert!(!problems.is_empty());
                    let lines = text.split(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}']).count().max(BASE.lines().count()) as u32;
                    for problem in problems {
                        prop_assert!(problem.line >= 1 && problem.column >= 1, "{problem}");
                        prop_assert!(problem.line <= lines + 1, "{problem}");
                        prop_assert!(!problem.message.contains('\n'), "{problem}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_policy_file_with_one_character_changed_never_makes_it_panic(at in 0..BASE.len(), with in any::<char>()) {
        let mut text = BASE.to_owned();
        text.replace_range(at..=at, &with.to_string());
        let _ = parse(&[file("m.yaml", &text)]);
    }
}
