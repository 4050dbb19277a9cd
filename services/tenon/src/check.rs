//! `tenon check`: what is wrong with a running mesh, and what to do about it.

mod catalogue;
mod certificates;
mod key_repository;
mod machine;
mod policy;
mod replication;

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};

use crate::{
    cli,
    failure::{Answer, Failure},
    mesh_file::Sidecar,
    operator::{Mesh, Process, Role, is_another_mesh},
    output::Output,
    probe, sidecars,
};

use catalogue::Check;

/// Clocks may differ by this much, in seconds: what ASAP and certificates forgive.
const CLOCK_SKEW: i64 = 60;

/// How long an app may take to accept a connection.
const APP: Duration = Duration::from_secs(1);

/// Between two rounds at least, in seconds: a round asks every process.
const SHORTEST_ROUND: u64 = 1;

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    check: &'static Check,
    /// Whom: `TCS`, `media-us-east`.
    subject: String,
    ok: bool,
    /// What was found.
    detail: String,
    /// What to do about it; `None` when all is well.
    next: Option<String>,
}

impl Finding {
    fn ok(check: &'static Check, subject: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { check, subject: subject.into(), ok: true, detail: detail.into(), next: None }
    }

    fn bad(
        check: &'static Check,
        subject: impl Into<String>,
        detail: impl Into<String>,
        next: impl Into<String>,
    ) -> Self {
        let (subject, detail, next) = (subject.into(), detail.into(), Some(next.into()));
        Self { check, subject, ok: false, detail, next }
    }

    /// `number`: from 1, in the order of the list.
    fn json(&self, number: usize) -> Value {
        json!({
            "number": number, "id": self.check.id, "check": self.check.name, "subject": self.subject, "ok": self.ok,
            "detail": self.detail, "why": (!self.ok).then_some(self.check.why), "next": self.next,
            "docs": (!self.ok).then(|| self.check.anchor()),
        })
    }
}

/// Runs the command: exit code 1 when a check fails; with `--watch`, when one of the last round did.
///
/// # Errors
/// There is no mesh to check.
pub async fn run(args: cli::Check) -> Result<Answer, Failure> {
    let mut out = Output::stdout(args.output.output);
    if args.list {
        return list(out);
    }
    let Some(every) = args.watch else {
        let failed = tell(&mut out, &round(&Mesh::find(&args.mesh.data)?).await, false)?;
        return Ok((failed == 0).into());
    };
    let pause = Duration::from_secs(every.max(SHORTEST_ROUND));
    let mut failed = 0;
    loop {
        // Found anew each time: the operator's certificate is renewed meanwhile, and the mesh may be another.
        let findings = tokio::select! {
            findings = async { Ok::<_, Failure>(round(&Mesh::find(&args.mesh.data)?).await) } => findings?,
            _ = tokio::signal::ctrl_c() => return Ok((failed == 0).into()),
        };
        failed = tell(&mut out, &findings, true)?;
        if out.is_closed() {
            return Ok((failed == 0).into());
        }
        tokio::select! {
            () = sleep(pause) => {}
            _ = tokio::signal::ctrl_c() => return Ok((failed == 0).into()),
        }
    }
}

fn list(mut out: Output) -> Result<Answer, Failure> {
    if out.is_json() {
        let check =
            |it: &&Check| json!({"id": it.id, "check": it.name, "wrong": it.wrong, "why": it.why, "docs": it.anchor()});
        out.json(&catalogue::ALL.iter().map(check).collect::<Vec<_>>())?;
    } else {
        let row = |it: &&Check| vec![it.id.to_owned(), it.name.to_owned(), it.wrong.to_owned()];
        out.table(&["id", "check", "fails when"], &catalogue::ALL.iter().map(row).collect::<Vec<_>>())?;
    }
    out.flush()?;
    Ok(Answer::Yes)
}

/// Makes all checks once. Those that need a process which was not reached are left out: that it was not is told.
async fn round(mesh: &Mesh) -> Vec<Finding> {
    let all = &mesh.file().sidecars;
    let processes = mesh.processes();
    let mut findings = join_all(processes.iter().map(|process| reachable(mesh, process))).await;
    let reached: Vec<_> =
        processes.into_iter().zip(&findings).filter(|(_, f)| f.ok).map(|(process, _)| process).collect();
    findings.push(key_repository::check(mesh).await);
    let serving = join_all(all.iter().map(|sidecar| serves(mesh, sidecar))).await;
    let ready: Vec<&Sidecar> = all.iter().zip(&serving).filter(|(_, f)| f.ok).map(|(sidecar, _)| sidecar).collect();
    findings.extend(serving);
    findings.extend(join_all(all.iter().map(clock)).await.into_iter().flatten());
    findings.extend(certificates::check(mesh, &reached, &ready).await);
    findings.extend(replication::check(mesh, &reached).await);
    if reached.iter().any(|process| process.role == Role::Policy) {
        findings.extend(policy::check(mesh).await);
    }
    findings.push(machine::versions(mesh).await);
    findings.push(machine::disk(mesh.data().dir()));
    findings.extend(join_all(all.iter().map(|sidecar| app(mesh, sidecar))).await.into_iter().flatten());
    findings
}

/// Prints a round, and says how many checks failed. Of several rounds, a terminal shows the last alone, and of JSON each is a
/// line.
fn tell(out: &mut Output, findings: &[Finding], one_of_several: bool) -> Result<usize, Failure> {
    let failed = findings.iter().filter(|finding| !finding.ok).count();
    if out.is_json() {
        let numbered = findings.iter().enumerate().map(|(index, finding)| finding.json(index + 1));
        let report = json!({
            "at": jiff::Timestamp::now().to_string(), "ok": failed == 0, "failed": failed, "checks": numbered.collect::<Vec<_>>(),
        });
        if one_of_several { out.line(&report.to_string())? } else { out.json(&report)? }
    } else {
        if one_of_several {
            out.clear()?;
        }
        out.table(&["", "id", "check", "of", "result", "found"], &rows(findings))?;
        for (index, finding) in findings.iter().enumerate().filter(|(_, finding)| !finding.ok) {
            let Finding { check, subject, next, .. } = finding;
            out.line(&format!("{}. {} {} of {subject}: {}", index + 1, check.id, check.name, check.why))?;
            out.line(&format!("   {} ({})", next.as_deref().unwrap_or_default(), check.anchor()))?;
        }
        let at = if one_of_several { format!(" at {:.0}", jiff::Timestamp::now()) } else { String::new() };
        out.line(&match failed {
            0 => format!("all {} checks passed{at}", findings.len()),
            _ => format!("{failed} of {} checks failed{at}", findings.len()),
        })?;
    }
    out.flush()?;
    Ok(failed)
}

fn rows(findings: &[Finding]) -> Vec<Vec<String>> {
    let row = |(index, finding): (usize, &Finding)| {
        vec![
            (index + 1).to_string(),
            finding.check.id.to_owned(),
            finding.check.name.to_owned(),
            finding.subject.clone(),
            if finding.ok { "ok" } else { "FAILED" }.to_owned(),
            finding.detail.clone(),
        ]
    };
    findings.iter().enumerate().map(row).collect()
}

async fn reachable(mesh: &Mesh, process: &Process) -> Finding {
    let Process { name, title, address, .. } = process;
    match probe::health(mesh.channel_to(process)).await {
        Ok(()) => Finding::ok(catalogue::REACHABLE, title, format!("serves on {address}")),
        Err(problem) => Finding::bad(
            catalogue::REACHABLE,
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
        Ok(()) => Finding::ok(catalogue::READY, &sidecar.name, format!("{}/ready answers 200", sidecar.admin)),
        Err(problem) => Finding::bad(
            catalogue::READY,
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
        return Finding::ok(catalogue::CLOCK, name, format!("differs from this one by {} s", seconds.abs()));
    }
    let which = if seconds > 0 { "behind" } else { "ahead of" };
    Finding::bad(
        catalogue::CLOCK,
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
        Ok(Ok(_)) => return Some(Finding::ok(catalogue::APP, name, format!("something listens on {address}"))),
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
    Some(Finding::bad(catalogue::APP, name, format!("nothing listens on {address}: {why}"), next))
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
        let finding = Finding::bad(catalogue::READY, "media", "not ready", "read its log");
        assert_eq!(
            finding.json(3),
            json!({
                "number": 3, "id": "TC003", "check": "ready", "subject": "media", "ok": false, "detail": "not ready",
                "why": catalogue::READY.why, "next": "read its log", "docs": "docs/check.md#tc003-ready",
            })
        );
        assert_eq!(Finding::ok(catalogue::READY, "media", "ready").json(1)["why"], Value::Null);
    }
}
