//! `tenon policy test`: the PolicyTest documents of a folder, decided by the sidecars' own code.

mod coverage;
mod failed;

use std::{fs, time::Instant};

use mesh_config::{Expect, Mesh, PolicyTest, Records, TestCall, compile, names::RegionName};
use serde::Serialize;
use sidecar_core::{
    Reason,
    explain::{Call, Explanation, Mesh as Model, TransactionToken},
};

use self::coverage::Coverage;
use super::junit::{self, Case, CaseFailure, Suite};
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
    /// What refused it, in words.
    message: Option<String>,
    /// The rule that decided or, when none matches, came closest; in words.
    because: Option<String>,
    #[serde(skip)]
    seconds: f64,
}

/// A transaction token as the test has it.
#[derive(Debug, Serialize)]
struct Token {
    tenant: Option<String>,
}

/// Runs the command: exit code 1 when a call does not come out as expected, or too little is covered.
///
/// # Errors
/// Problems of the folder, or no test in it; a report that cannot be written.
pub fn run(args: cli::PolicyTest) -> Result<Answer, Failure> {
    let mesh = super::load(&args.folder)?;
    if mesh.tests().is_empty() {
        return Err(Failure::new(format!("there is no PolicyTest document in {}", args.folder.display()))
            .next("write one: kind: PolicyTest, spec: {calls: [{caller: wiki, service: media, path: /media.v1.Media/Get, expect: ALLOWED}]}"));
    }
    let outcomes = outcomes(&mesh)?;
    if let Some(file) = &args.junit {
        fs::write(file, report(&mesh, &outcomes)?).map_err(|error| {
            Failure::new(format!("cannot write {}: {error}", file.display())).next("name another file with --junit")
        })?;
    }
    let failed = outcomes.iter().filter(|outcome| !outcome.passed).count();
    let covered = (args.coverage || args.min_coverage.is_some()).then(|| Coverage::of(&mesh, &outcomes));
    let wanted = args.min_coverage.map_or(0, usize::from);
    let enough = covered.as_ref().is_none_or(|covered| covered.percent() >= wanted);
    let mut out = Output::stdout(args.output.output);
    if out.is_json() {
        let passed = failed == 0 && enough;
        let mut answer = serde_json::json!({"passed": passed, "failed": failed, "calls": outcomes});
        if let Some(covered) = &covered {
            answer["coverage"] = serde_json::json!(covered);
            answer["coverage"]["wanted"] = args.min_coverage.into();
        }
        out.json(&answer)?;
    } else {
        out.table(&["", "test", "call", "tenant", "expected", "came", "decided by", "source"], &rows(&outcomes))?;
        for outcome in outcomes.iter().filter(|outcome| !outcome.passed) {
            for line in failed::diff(outcome, |tone, word| out.toned(tone, word)) {
                out.line(&line)?;
            }
        }
        out.line(&format!("{} of {} calls came out as expected", outcomes.len() - failed, outcomes.len()))?;
        for line in covered.iter().flat_map(Coverage::lines) {
            out.line(&line)?;
        }
        if !enough {
            out.line(&format!(
                "not passed: coverage is below the {wanted} % that --min-coverage wants, of rules and of paths"
            ))?;
        }
    }
    out.flush()?;
    Ok((failed == 0 && enough).into())
}

/// Every call of every test, in the order of the files.
fn outcomes(mesh: &Mesh) -> Result<Vec<Outcome>, Failure> {
    let records = compile(mesh);
    let now = mesh_identity::clock::unix_seconds();
    let mut outcomes = Vec::new();
    for test in mesh.tests() {
        outcomes.extend(decide(test, &records, now)?);
    }
    Ok(outcomes)
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
            let began = Instant::now();
            let explanation = model.explain(&asked, now).map_err(unusable)?;
            Ok(outcome(test, call, &explanation, began.elapsed().as_secs_f64()))
        })
        .collect()
}

fn outcome(test: &PolicyTest, call: &TestCall, explanation: &Explanation, seconds: f64) -> Outcome {
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
        message: explanation.message.clone(),
        because: super::explain::because(explanation),
        seconds,
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

/// The run as JUnit XML.
fn report(mesh: &Mesh, outcomes: &[Outcome]) -> Result<String, Failure> {
    let suites: Vec<_> = mesh
        .tests()
        .iter()
        .map(|test| {
            let own = outcomes.iter().filter(|outcome| outcome.test == test.name.as_str());
            Suite { name: test.name.as_str(), cases: own.map(case).collect() }
        })
        .collect();
    junit::report(&suites).map_err(|error| Failure::new(format!("cannot write the JUnit report: {error}")))
}

fn case(outcome: &Outcome) -> Case {
    // `tests.yaml:12:7`, and a file may have a colon in its name.
    let mut parts = outcome.source.rsplitn(3, ':');
    let (_column, line, file) = (parts.next(), parts.next(), parts.next());
    Case {
        name: failed::call(outcome),
        file: file.unwrap_or_default().to_owned(),
        line: line.unwrap_or_default().to_owned(),
        seconds: outcome.seconds,
        failure: (!outcome.passed).then(|| CaseFailure {
            message: format!("expected {}, came {}", outcome.expected, outcome.came),
            kind: outcome.came.clone(),
            text: failed::diff(outcome, |_, word| word.to_owned()).join("\n"),
        }),
    }
}

#[cfg(test)]
mod tests;
