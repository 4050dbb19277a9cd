//! `tenon check`: what is wrong with a running mesh, and what to do about it.

mod certificates;
mod key_repository;
mod replication;

use std::time::Duration;

use futures_util::future::join_all;
use serde::Serialize;
use tokio::{net::TcpStream, time::timeout};

use crate::{
    cli,
    failure::{Answer, Failure},
    mesh_file::Sidecar,
    operator::{Mesh, Process, Role, is_another_mesh},
    output::Output,
    policy, probe, sidecars,
};

/// Clocks may differ by this much, in seconds: what ASAP and certificates forgive.
const CLOCK_SKEW: i64 = 60;

/// How long an app may take to accept a connection.
const APP: Duration = Duration::from_secs(1);

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// From 1, in the order of the list.
    number: usize,
    /// What is checked: `ready`, `clock`.
    check: &'static str,
    /// Whom: `TCS`, `media-us-east`.
    subject: String,
    ok: bool,
    /// What was found.
    detail: String,
    /// What to do about it; `None` when all is well.
    next: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, subject: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { number: 0, check, subject: subject.into(), ok: true, detail: detail.into(), next: None }
    }

    fn bad(
        check: &'static str,
        subject: impl Into<String>,
        detail: impl Into<String>,
        next: impl Into<String>,
    ) -> Self {
        let (subject, detail, next) = (subject.into(), detail.into(), Some(next.into()));
        Self { number: 0, check, subject, ok: false, detail, next }
    }
}

/// Runs the command: exit code 1 when a check fails.
///
/// # Errors
/// There is no mesh to check.
pub async fn run(args: cli::Check) -> Result<Answer, Failure> {
    let mesh = Mesh::find(&args.mesh.data)?;
    let all = &mesh.file().sidecars;
    let processes = mesh.processes();
    let mut findings = join_all(processes.iter().map(|process| reachable(&mesh, process))).await;
    let reached: Vec<_> =
        processes.into_iter().zip(&findings).filter(|(_, f)| f.ok).map(|(process, _)| process).collect();
    findings.push(key_repository::check(&mesh).await);
    let serving = join_all(all.iter().map(|sidecar| serves(&mesh, sidecar))).await;
    let ready: Vec<&Sidecar> = all.iter().zip(&serving).filter(|(_, f)| f.ok).map(|(sidecar, _)| sidecar).collect();
    findings.extend(serving);
    findings.extend(join_all(all.iter().map(clock)).await.into_iter().flatten());
    findings.extend(certificates::check(&mesh, &reached, &ready).await);
    findings.extend(replication::check(&mesh, &reached).await);
    if reached.iter().any(|process| process.role == Role::Policy) {
        findings.push(policy_problems(&mesh).await);
    }
    findings.extend(join_all(all.iter().map(|sidecar| app(&mesh, sidecar))).await.into_iter().flatten());
    for (index, finding) in findings.iter_mut().enumerate() {
        finding.number = index + 1;
    }
    let failed = findings.iter().filter(|finding| !finding.ok).count();
    let mut out = Output::stdout(args.output.output);
    if out.is_json() {
        out.json(&serde_json::json!({"ok": failed == 0, "failed": failed, "checks": findings}))?;
    } else {
        out.table(&["", "check", "of", "result", "found"], &rows(&findings))?;
        for finding in findings.iter().filter(|finding| !finding.ok) {
            let next = finding.next.as_deref().unwrap_or_default();
            out.line(&format!("{}. {} of {}: {next}", finding.number, finding.check, finding.subject))?;
        }
        out.line(&match failed {
            0 => format!("all {} checks passed", findings.len()),
            _ => format!("{failed} of {} checks failed", findings.len()),
        })?;
    }
    out.flush()?;
    Ok((failed == 0).into())
}

fn rows(findings: &[Finding]) -> Vec<Vec<String>> {
    let row = |finding: &Finding| {
        vec![
            finding.number.to_string(),
            finding.check.to_owned(),
            finding.subject.clone(),
            if finding.ok { "ok" } else { "FAILED" }.to_owned(),
            finding.detail.clone(),
        ]
    };
    findings.iter().map(row).collect()
}

async fn reachable(mesh: &Mesh, process: &Process) -> Finding {
    let Process { name, title, address, .. } = process;
    match probe::health(mesh.channel_to(process)).await {
        Ok(()) => Finding::ok("reachable", title, format!("serves on {address}")),
        Err(problem) => Finding::bad(
            "reachable",
            title,
            format!("{address}: {problem}"),
            if is_another_mesh(&problem) {
                mesh.another_mesh()
            } else {
                let log = mesh.data().log(name);
                format!("`tenon up` starts it again by itself: see that it runs, and read {}", log.display())
            },
        ),
    }
}

async fn serves(mesh: &Mesh, sidecar: &Sidecar) -> Finding {
    match sidecars::ready(sidecar).await {
        Ok(()) => Finding::ok("ready", &sidecar.name, format!("{}/ready answers 200", sidecar.admin)),
        Err(problem) => Finding::bad(
            "ready",
            &sidecar.name,
            format!("{}/ready: {problem}", sidecar.admin),
            format!("read {}; `tenon up` starts a sidecar that died again", mesh.data().log(&sidecar.name).display()),
        ),
    }
}

/// Compares this machine's clock with that of the sidecar's; nothing when it does not answer, which `ready` reports.
async fn clock(sidecar: &Sidecar) -> Option<Finding> {
    let date = probe::get(sidecar.admin, "/live").await.ok()?.date?;
    let there = jiff::fmt::rfc2822::parse(&date).ok()?.timestamp();
    Some(skew(&sidecar.name, jiff::Timestamp::now().as_second() - there.as_second()))
}

fn skew(name: &str, seconds: i64) -> Finding {
    if seconds.abs() <= CLOCK_SKEW {
        return Finding::ok("clock", name, format!("differs from this one by {} s", seconds.abs()));
    }
    let which = if seconds > 0 { "behind" } else { "ahead of" };
    Finding::bad(
        "clock",
        name,
        format!("is {} s {which} this one", seconds.abs()),
        "let both machines keep their clocks by NTP (`timedatectl set-ntp true`): tokens and certificates need them",
    )
}

/// Whether something listens where the sidecar's app should; nothing when it has none. A sidecar serves without its app,
/// and then answers every call for it with a refusal.
async fn app(mesh: &Mesh, sidecar: &Sidecar) -> Option<Finding> {
    let (name, address) = (&sidecar.name, sidecar.app?);
    let why = match timeout(APP, TcpStream::connect(address)).await {
        Ok(Ok(_)) => return Some(Finding::ok("app", name, format!("something listens on {address}"))),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {} s", APP.as_secs()),
    };
    let service = &sidecar.service;
    // Only an app that `tenon up` runs has one.
    let log = mesh.data().log(&format!("{name}-app"));
    let next = if log.exists() {
        format!("see why {service} does not listen there: read {}", log.display())
    } else {
        format!("start {service} on {address}, or correct `app` of the instance in the LocalMesh document")
    };
    Some(Finding::bad("app", name, format!("nothing listens on {address}: {why}"), next))
}

async fn policy_problems(mesh: &Mesh) -> Finding {
    match policy::describe_policy(mesh).await {
        Err(failure) => Finding::bad(
            "policy",
            Role::Policy.title(),
            failure.to_string().lines().next().unwrap_or_default(),
            "make the policy service reachable first",
        ),
        Ok(described) => match described.problems.as_slice() {
            [] => Finding::ok(
                "policy",
                Role::Policy.title(),
                format!("revision {}.{} from {}", described.epoch, described.revision, described.source),
            ),
            [first, rest @ ..] => Finding::bad(
                "policy",
                Role::Policy.title(),
                match rest.len() {
                    0 => policy::describe(std::path::Path::new(""), first),
                    more => format!("{}, and {more} more", policy::describe(std::path::Path::new(""), first)),
                },
                "the last good policy is enforced meanwhile: correct the files; `tenon policy status` names all problems",
            ),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_that_differ_say_which_is_wrong_and_what_to_do() {
        assert!(skew("media", -60).ok);
        let behind = skew("media", 61);
        assert_eq!((behind.ok, behind.detail.as_str()), (false, "is 61 s behind this one"));
        assert!(behind.next.unwrap().contains("NTP"));
        assert_eq!(skew("media", -3600).detail, "is 3600 s ahead of this one");
    }

    #[test]
    fn a_finding_as_json_has_its_number_and_what_to_do() {
        let finding = Finding { number: 3, ..Finding::bad("ready", "media", "not ready", "read its log") };
        assert_eq!(
            serde_json::to_value(finding).unwrap(),
            serde_json::json!({
                "number": 3, "check": "ready", "subject": "media", "ok": false, "detail": "not ready", "next": "read its log",
            })
        );
    }
}
