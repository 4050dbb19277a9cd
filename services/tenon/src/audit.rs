//! `tenon audit`: the audit records of the control plane, one chain of each process (docs/audit.md).

mod line;

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    io::{self, BufRead as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use journal::audit::chain::{Hash, Head, Verifier};
use serde_json::json;
use tenon_proto::audit::v1::{HeadRequest, HeadResponse, ListRequest, Record, audit_client::AuditClient};

use self::line::{from_json, hex, to_json, unhex};
use crate::{
    cli::{Audit, AuditExport, AuditList, AuditVerify},
    failure::{Answer, Failure},
    operator::{Mesh, Process},
    output::Output,
};

/// A page of records is some hundred of them.
const LARGEST_PAGE: usize = 16 << 20;

/// Runs the command.
///
/// # Errors
/// No mesh, no answer, or a file that cannot be read or written.
pub async fn run(command: Audit) -> Result<Answer, Failure> {
    match command {
        Audit::List(args) => list(args).await,
        Audit::Verify(args) => verify(args).await,
        Audit::Export(args) => export(args).await,
    }
}

async fn list(args: AuditList) -> Result<Answer, Failure> {
    let mesh = Mesh::find(&args.mesh.data)?;
    let now = mesh_identity::clock::unix_seconds();
    let since = args.since.map_or(0, |since| now.saturating_sub(since.as_secs()) * 1000);
    let wanted = ListRequest { since_unix_ms: since, by: args.by, action: args.action };
    let mut found: Vec<(String, Record)> = Vec::new();
    for process in mesh.processes() {
        if args.service.as_ref().is_none_or(|service| service == process.role.name()) {
            ask(&mesh, &process, &wanted, |record| {
                found.push((process.name.clone(), record));
                Ok(())
            })
            .await?;
        }
    }
    // Processes that share a store tell the same chain.
    let mut told = HashSet::new();
    found.retain(|(_, record)| told.insert((record.service.clone(), record.hash.clone())));
    found.sort_by_key(|(_, record)| record.at_unix_ms);
    let mut out = Output::stdout(args.output.output);
    if out.is_json() {
        out.json(&found.iter().map(|(process, record)| to_json(process, record)).collect::<Vec<_>>())?;
    } else {
        let rows: Vec<_> = found.iter().map(|(process, record)| row(process, record)).collect();
        out.table(&["at", "by", "did", "what", "outcome", "of", "number"], &rows)?;
    }
    out.flush()?;
    Ok(Answer::Yes)
}

fn row(process: &str, record: &Record) -> Vec<String> {
    let at = jiff::Timestamp::from_millisecond(i64::try_from(record.at_unix_ms).unwrap_or(0));
    let by = record.by.rsplit_once('/').map_or(record.by.as_str(), |(_, name)| name);
    let why = record.details.get("why").map(|why| format!(": {why}")).unwrap_or_default();
    vec![
        at.map(|at| format!("{at:.3}")).unwrap_or_default(),
        by.to_owned(),
        record.action.clone(),
        if record.what.is_empty() { "-".to_owned() } else { record.what.clone() },
        format!("{}{why}", record.outcome),
        process.to_owned(),
        match record.of {
            0 => record.sequence.to_string(),
            of => format!("{} (of {of})", record.sequence),
        },
    ]
}

async fn ask(
    mesh: &Mesh,
    process: &Process,
    wanted: &ListRequest,
    mut each: impl FnMut(Record) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let failed = |status: tonic::Status| {
        mesh.failure(process.role, &format!("cannot read the audit record of the {}", process.title), &status)
    };
    let mut client = AuditClient::new(mesh.channel_to(process)).max_decoding_message_size(LARGEST_PAGE);
    let mut pages = client.list(wanted.clone()).await.map_err(failed)?.into_inner();
    while let Some(page) = pages.message().await.map_err(failed)? {
        page.records.into_iter().try_for_each(&mut each)?;
    }
    Ok(())
}

/// Of one process: what was found.
struct Chain {
    verifier: Verifier,
    service: String,
    records: u64,
}

/// All chains, by process.
struct Chains {
    all: BTreeMap<String, Chain>,
    expected: BTreeMap<String, Vec<Head>>,
    /// Processes of which nothing can be told, and why.
    silent: BTreeMap<String, String>,
}

impl Chains {
    fn new(expected: &[String]) -> Result<Self, Failure> {
        let mut heads: BTreeMap<String, Vec<Head>> = BTreeMap::new();
        for text in expected {
            let (process, head) = head(text).ok_or_else(|| {
                Failure::usage(format!("--expect {text}: expected PROCESS:SEQUENCE:HASH"))
                    .next("give a head as `tenon audit verify` prints it: tcs:1042:9f2c…, with all 64 digits")
            })?;
            heads.entry(process).or_default().push(head);
        }
        Ok(Self { all: BTreeMap::new(), expected: heads, silent: BTreeMap::new() })
    }

    fn begin(&mut self, process: &str, service: &str) -> &mut Chain {
        let known = self.expected.get(process).cloned().unwrap_or_default();
        self.all.entry(process.to_owned()).or_insert_with(|| Chain {
            verifier: Verifier::new(service, known),
            service: service.to_owned(),
            records: 0,
        })
    }

    fn push(&mut self, process: &str, service: &str, record: &Record) {
        let chain = self.begin(process, service);
        chain.records += 1;
        chain.verifier.push(record);
    }

    fn tell(mut self, output: &crate::cli::OutputArgs) -> Result<Answer, Failure> {
        // A head of a process of which there is nothing: all of it was removed.
        let expected: Vec<_> = self.expected.keys().filter(|it| !self.silent.contains_key(*it)).cloned().collect();
        for process in expected {
            self.begin(&process, &service_of(&process));
        }
        let mut out = Output::stdout(output.output);
        let (mut rows, mut told, mut well) = (Vec::new(), Vec::new(), true);
        for (process, problem) in &self.silent {
            self.all.remove(process);
            told.push(json!({"process": process, "service": service_of(process), "records": null, "ok": null, "fault": problem, "head": null}));
            rows.push(vec![process.clone(), "-".to_owned(), "NOT CHECKED".to_owned(), problem.clone()]);
        }
        for (process, chain) in self.all {
            let Chain { verifier, service, records } = chain;
            let outcome = verifier.finish();
            well &= outcome.is_ok();
            let (head, fault) = match &outcome {
                Ok(head) => (Some(format!("{process}:{}:{}", head.sequence, hex(&head.hash))), None),
                Err(fault) => (None, Some(fault.to_string())),
            };
            told.push(json!({"process": process, "service": service, "records": records, "ok": fault.is_none(), "fault": fault, "head": head}));
            let found = fault.or(head).unwrap_or_default();
            rows.push(vec![
                process,
                records.to_string(),
                if outcome.is_ok() { "ok" } else { "TAMPERED" }.to_owned(),
                found,
            ]);
        }
        let all = self.silent.is_empty();
        if out.is_json() {
            out.json(&json!({"ok": well && all, "chains": told}))?;
        } else {
            out.table(&["process", "records", "result", "head, or what is wrong"], &rows)?;
            if !well {
                out.line("somebody wrote to the store itself: keep it and the logs as they are, and compare with an export or a head that was kept elsewhere (docs/audit.md)")?;
            }
        }
        out.flush()?;
        Ok((well && all).into())
    }
}

fn head(text: &str) -> Option<(String, Head)> {
    let mut parts = text.split(':');
    let (process, sequence, hash) = (parts.next()?, parts.next()?.parse().ok()?, unhex(parts.next()?)?);
    let hash: Hash = hash.try_into().ok()?;
    parts.next().is_none().then(|| (process.to_owned(), Head { sequence, hash }))
}

async fn verify(args: AuditVerify) -> Result<Answer, Failure> {
    let mut chains = Chains::new(&args.expect)?;
    if let Some(file) = &args.file {
        read(file, |process, record| chains.push(&process, &service_of(&process), &record))?;
        if chains.all.is_empty() {
            return Err(Failure::new(format!("{} has no records", file.display()))
                .next("name a file that `tenon audit export` wrote, as it was written"));
        }
        return chains.tell(&args.output);
    }
    let mesh = Mesh::find(&args.mesh.data)?;
    for process in mesh.processes() {
        let service = process.role.name();
        let asked = async {
            // Asked before the records: what is recorded meanwhile comes after it.
            let head = stands(&mesh, &process).await?;
            chains.expected.entry(process.name.clone()).or_default().push(head);
            chains.begin(&process.name, service);
            ask(&mesh, &process, &ListRequest::default(), |record| {
                chains.push(&process.name, service, &record);
                Ok(())
            })
            .await
        };
        // What the others have is told all the same.
        if let Err(failure) = asked.await {
            let problem = failure.to_string().lines().next().unwrap_or_default().to_owned();
            chains.silent.insert(process.name.clone(), problem);
        }
    }
    chains.tell(&args.output)
}

/// Where the store says that the chain of a process ends.
async fn stands(mesh: &Mesh, process: &Process) -> Result<Head, Failure> {
    let mut client = AuditClient::new(mesh.channel_to(process));
    let answer = client.head(HeadRequest {}).await.map_err(|status| {
        mesh.failure(process.role, &format!("cannot read the audit record of the {}", process.title), &status)
    })?;
    let HeadResponse { sequence, hash, .. } = answer.into_inner();
    // What is no hash is that of no record.
    Ok(Head { sequence, hash: hash[..].try_into().unwrap_or_default() })
}

/// `tcs` of `tcs-2`.
fn service_of(process: &str) -> String {
    process.split('-').next().unwrap_or_default().to_owned()
}

async fn export(args: AuditExport) -> Result<Answer, Failure> {
    let mesh = Mesh::find(&args.mesh.data)?;
    let shown = args.out.display().to_string();
    let failed = |error: io::Error| {
        Failure::new(format!("cannot write {shown}: {error}"))
            .next("name a file that does not exist, in a folder that you may write to and with room on its disk")
    };
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&args.out).map_err(failed)?;
    let mut file = io::BufWriter::new(file);
    let mut count = 0_u64;
    for process in mesh.processes() {
        ask(&mesh, &process, &ListRequest::default(), |record| {
            count += 1;
            writeln!(file, "{}", to_json(&process.name, &record)).map_err(failed)
        })
        .await?;
    }
    file.into_inner().map_err(io::IntoInnerError::into_error).and_then(|file| file.sync_all()).map_err(failed)?;
    let mut out = Output::stdout(crate::cli::Format::Table);
    out.line(&format!("{count} records in {shown}: `tenon audit verify --file {shown}` checks them"))?;
    out.flush()?;
    Ok(Answer::Yes)
}

fn read(file: &Path, mut each: impl FnMut(String, Record)) -> Result<(), Failure> {
    let shown = file.display();
    let next = "name a file that `tenon audit export` wrote";
    let opened =
        fs::File::open(file).map_err(|error| Failure::new(format!("cannot read {shown}: {error}")).next(next))?;
    for (index, line) in io::BufReader::new(opened).lines().enumerate() {
        let line = line.map_err(|error| Failure::new(format!("cannot read {shown}: {error}")).next(next))?;
        let (process, record) =
            from_json(&line).map_err(|problem| Failure::new(format!("{shown}:{}: {problem}", index + 1)).next(next))?;
        each(process, record);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_as_it_is_printed_and_nothing_else_is() {
        let hash = "ab".repeat(32);
        let (process, read) = head(&format!("tcs-2:1042:{hash}")).unwrap();
        assert_eq!((process.as_str(), read.sequence, hex(&read.hash)), ("tcs-2", 1042, hash.clone()));
        for wrong in [
            "",
            "tcs",
            "tcs:1",
            "tcs:1:ab",
            &format!("tcs:x:{hash}"),
            &format!("tcs:1:{hash}:more"),
            &format!("tcs:1:{}", "xy".repeat(32)),
        ] {
            assert!(head(wrong).is_none(), "{wrong}");
        }
    }
}
