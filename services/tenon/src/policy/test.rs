//! `tenon policy test`: the PolicyTest documents of a folder, decided by the sidecars' own code.

use mesh_config::{Expect, PolicyTest, Records, TestCall, compile, names::RegionName};
use serde::Serialize;
use sidecar_core::{
    Reason,
    explain::{Call, Explanation, Mesh as Model, TransactionToken},
};

use crate::{
    cli,
    failure::{Answer, Failure},
    output::Output,
};

/// One call with what came of it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Outcome {
    test: String,
    caller: String,
    service: String,
    path: String,
    tenant: Option<String>,
    region: Option<String>,
    /// The transaction token that the call carries.
    transaction: Option<Token>,
    /// `ALLOWED` or a reason.
    expected: String,
    came: String,
    passed: bool,
    /// The rule that decided, as `allowlist/rule`.
    rule: Option<String>,
    /// Where the call stands: `tests.yaml:12:7`.
    source: String,
}

/// A transaction token as the test has it.
#[derive(Debug, Serialize)]
struct Token {
    tenant: Option<String>,
}

/// Runs the command: exit code 1 when a call does not come out as expected.
///
/// # Errors
/// Problems of the folder, or no test in it.
pub fn run(args: cli::PolicyTest) -> Result<Answer, Failure> {
    let mesh = super::load(&args.folder)?;
    if mesh.tests().is_empty() {
        return Err(Failure::new(format!("there is no PolicyTest document in {}", args.folder.display()))
            .next("write one: kind: PolicyTest, spec: {calls: [{caller: wiki, service: media, path: /media.v1.Media/Get, expect: ALLOWED}]}"));
    }
    let records = compile(&mesh);
    let now = mesh_identity::clock::unix_seconds();
    let mut outcomes = Vec::new();
    for test in mesh.tests() {
        outcomes.extend(decide(test, &records, now)?);
    }
    let failed = outcomes.iter().filter(|outcome| !outcome.passed).count();
    let mut out = Output::stdout(args.output.output);
    if out.is_json() {
        out.json(&serde_json::json!({"passed": failed == 0, "failed": failed, "calls": outcomes}))?;
    } else {
        out.table(&["", "test", "call", "tenant", "expected", "came", "decided by", "source"], &rows(&outcomes))?;
        out.line(&format!("{} of {} calls came out as expected", outcomes.len() - failed, outcomes.len()))?;
    }
    out.flush()?;
    Ok((failed == 0).into())
}

fn decide(test: &PolicyTest, records: &Records, now: u64) -> Result<Vec<Outcome>, Failure> {
    let unusable =
        |problem: String| Failure::new(format!("test {}: {problem}", test.name)).next("correct the test and try again");
    let (services, routes) = (records.allowlists.values(), records.routes.values());
    let model =
        Model::new(services, routes, records.quarantines.values(), Some(test.tenants.clone())).map_err(unusable)?;
    test.calls
        .iter()
        .map(|call| {
            if let Expect::Refused(reason) = &call.expect
                && !Reason::ALL.iter().any(|known| known.as_str() == reason)
            {
                return Err(unusable(format!("{}: there is no reason {reason}", call.source)));
            }
            let asked = Call {
                caller: call.caller.as_str(),
                service: call.service.as_str(),
                path: &call.path,
                tenant: call.tenant.as_deref(),
                region: call.region.as_ref().map(RegionName::as_str),
                transaction: call
                    .transaction
                    .as_ref()
                    .map(|token| TransactionToken { tenant: token.tenant.as_deref() }),
            };
            Ok(outcome(test, call, &model.explain(&asked, now).map_err(unusable)?))
        })
        .collect()
}

fn outcome(test: &PolicyTest, call: &TestCall, explanation: &Explanation) -> Outcome {
    let expected = match &call.expect {
        Expect::Allowed => "ALLOWED",
        Expect::Refused(reason) => reason,
    };
    let came = explanation.reason.map_or("ALLOWED", |reason| reason.as_str());
    let rule = explanation.allowlist.as_ref().zip(explanation.rule.as_ref());
    Outcome {
        test: test.name.to_string(),
        caller: call.caller.to_string(),
        service: call.service.to_string(),
        path: call.path.clone(),
        tenant: call.tenant.clone(),
        region: call.region.as_ref().map(ToString::to_string),
        transaction: call.transaction.as_ref().map(|token| Token { tenant: token.tenant.clone() }),
        expected: expected.to_owned(),
        came: came.to_owned(),
        passed: expected == came,
        rule: rule.map(|(allowlist, rule)| format!("{allowlist}/{rule}")),
        source: call.source.clone(),
    }
}

fn rows(outcomes: &[Outcome]) -> Vec<Vec<String>> {
    let row = |outcome: &Outcome| {
        vec![
            if outcome.passed { "ok" } else { "FAILED" }.to_owned(),
            outcome.test.clone(),
            format!("{} -> {} {}{}", outcome.caller, outcome.service, outcome.path, with_token(outcome)),
            outcome.tenant.clone().unwrap_or_else(|| "-".into()),
            outcome.expected.clone(),
            outcome.came.clone(),
            outcome.rule.clone().unwrap_or_else(|| "-".into()),
            outcome.source.clone(),
        ]
    };
    outcomes.iter().map(row).collect()
}

fn with_token(outcome: &Outcome) -> String {
    match &outcome.transaction {
        None => String::new(),
        Some(Token { tenant: None }) => " (transaction of no tenant)".to_owned(),
        Some(Token { tenant: Some(tenant) }) => format!(" (transaction of {tenant})"),
    }
}

#[cfg(test)]
mod tests {
    use mesh_config::{SourceFile, parse};

    use super::*;

    /// The YAML blocks of a document, each with what stands before it in the place of lines, so that problems have the
    /// document's own lines.
    fn blocks(text: &str) -> Vec<SourceFile> {
        let mut blocks: Vec<String> = Vec::new();
        let mut inside = false;
        for (index, line) in text.lines().enumerate() {
            match line {
                "```yaml" => {
                    inside = true;
                    blocks.push("\n".repeat(index + 1));
                }
                "```" => inside = false,
                line if inside => blocks.last_mut().unwrap().extend([line, "\n"]),
                _ => {}
            }
        }
        let file = |(index, text)| SourceFile { path: format!("block-{index}.yaml"), text };
        blocks.into_iter().enumerate().map(file).collect()
    }

    #[test]
    fn the_page_of_policy_files_is_a_policy_whose_tests_pass() {
        let page = include_str!("../../../../docs/policy-files.md");
        let mesh = parse(&blocks(page)).unwrap_or_else(|problems| panic!("{problems}"));
        let records = compile(&mesh);
        assert_eq!((mesh.external_clients().len(), mesh.attestors().len(), mesh.quarantines().len()), (1, 1, 1));
        let outcomes: Vec<Outcome> =
            mesh.tests().iter().flat_map(|test| decide(test, &records, 1_800_000_000).unwrap()).collect();
        assert!(outcomes.len() >= 7);
        let failed: Vec<_> = outcomes.iter().filter(|outcome| !outcome.passed).collect();
        assert!(failed.is_empty(), "{failed:#?}");
        let calls: Vec<String> = rows(&outcomes).into_iter().map(|row| row[2].clone()).collect();
        assert_eq!(calls[0], "edge -> media /media.v1.Media/Erase (transaction of acme)");
        assert_eq!(calls[2], "edge -> media /media.v1.Media/Erase (transaction of no tenant)");
    }
}
