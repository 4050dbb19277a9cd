//! `tenon policy check`: what is wrong with a folder, and what in it is most likely not meant. No mesh is needed.

mod reflect;

use std::{
    collections::BTreeSet,
    io::{self, Write as _},
    path::Path,
};

use mesh_config::{Mesh, Problem, SourceFile, yaml::suggestion};
use serde::Serialize;

use self::reflect::Server;
use super::{
    Shown, explain,
    flows::Record,
    lint::{self, CHECKS, Check, Finding, Knowledge, Severity, Subject},
    problems_of,
};
use crate::{
    cli::PolicyCheck,
    failure::{Answer, Failure},
    output::{Output, Tone},
};

/// Stands for every check.
const ALL: &str = "all";

/// Runs the command: exit code 1 for problems, and for findings of checks that are denied.
///
/// # Errors
/// All problems of the folder, unless they are wanted as JSON: then they are the answer. Wrong usage. A file of flows,
/// descriptors or tenants that cannot be used.
pub async fn run(args: PolicyCheck) -> Result<Answer, Failure> {
    let mut out = Output::stdout(args.output.output);
    let levels = Levels::new(&args.deny, &args.allow)?;
    let Some(folder) = &args.folder else { return list(&mut out) };
    let (files, mesh) = match read(folder) {
        Ok(read) => read,
        Err(problems) if out.is_json() => {
            let problems: Vec<_> = problems.0.iter().map(shown).collect();
            let nothing: [(); 0] = [];
            let answer = serde_json::json!({
                "valid": false, "problems": problems, "warnings": nothing, "findings": nothing,
            });
            out.json(&answer)?;
            out.flush()?;
            return Ok(Answer::No);
        }
        Err(problems) => return Err(problems_of(folder, &problems)),
    };
    let knowledge = knowledge(&args, &mesh).await?;
    let subject = Subject::new(&mesh, folder, &files);
    let found: Vec<Leveled> =
        lint::findings(&subject, &knowledge).into_iter().filter_map(|one| levels.of(one)).collect();
    if out.is_json() {
        let answer = serde_json::json!({
            "valid": true, "problems": Vec::<Shown<'_>>::new(), "warnings": warnings(&found), "findings": found,
        });
        out.json(&answer)?;
    } else {
        for one in &found {
            let Leveled { id, name, severity, file, line, column, message, .. } = one;
            let tone = if *severity == Severity::Error { Tone::Bad } else { Tone::Doubtful };
            let severity = out.toned(tone, severity.as_str());
            out.line(&format!("{file}:{line}:{column}: {severity} {id} {name}: {message}"))?;
            out.line(&format!("  help: {}", one.help))?;
        }
        out.line(&summary(folder, &mesh, &found))?;
    }
    out.flush()?;
    Ok(found.iter().all(|one| one.severity != Severity::Error).into())
}

fn read(folder: &Path) -> Result<(Vec<SourceFile>, Mesh), mesh_config::Problems> {
    let files = mesh_config::read_folder(folder)?;
    let mesh = mesh_config::parse(&files).map_err(|problems| problems.below(folder))?;
    Ok((files, mesh))
}

fn shown(problem: &Problem) -> Shown<'_> {
    let Problem { file, line, column, message } = problem;
    Shown { file, line: *line, column: *column, message }
}

/// `--list`: every check.
fn list(out: &mut Output) -> Result<Answer, Failure> {
    if out.is_json() {
        out.json(&CHECKS)?;
    } else {
        let row =
            |check: &Check| [check.id, check.name, check.severity.as_str(), check.finds].map(str::to_owned).to_vec();
        out.table(&["id", "name", "severity", "finds"], &CHECKS.iter().map(row).collect::<Vec<_>>())?;
    }
    out.flush()?;
    Ok(Answer::Yes)
}

/// Reads what is known beside the policy, and asks the servers.
async fn knowledge(args: &PolicyCheck, mesh: &Mesh) -> Result<Knowledge, Failure> {
    let flows = args.flows.as_deref().map(Record::read).transpose()?;
    if flows.as_ref().is_some_and(|record| record.flows.is_empty()) {
        // A closed pipe is not an error.
        let _ = writeln!(io::stderr(), "warning: the record of flows is empty: it says nothing of what is needed");
    }
    let mut knowledge = Knowledge { flows, ..Knowledge::default() };
    knowledge.tenants = args.tenants.as_deref().map(explain::read_tenants).transpose()?;
    for file in &args.descriptors {
        knowledge.methods.describe(file).map_err(|what| {
            Failure::new(what)
                .next("write one with `protoc --include_imports --descriptor_set_out=FILE` or `buf build -o FILE`")
        })?;
    }
    reflect::ask(servers(&args.reflect, mesh)?, &mut knowledge.methods).await;
    Ok(knowledge)
}

/// What `--reflect` is without a value.
const LOCAL: &str = "";

/// The servers that `--reflect` names: an address of one service, or the apps of the LocalMesh.
fn servers(reflect: &[String], mesh: &Mesh) -> Result<Vec<Server>, Failure> {
    let mut servers = Vec::new();
    for one in reflect {
        if one == LOCAL {
            let instances = mesh.local().map(|local| local.instances.as_slice()).unwrap_or_default();
            let apps = instances.iter().filter_map(|instance| Some((instance.service.to_string(), instance.app?)));
            let before = servers.len();
            servers.extend(apps.map(|(service, app)| Server { service, address: app.to_string() }));
            if servers.len() == before {
                return Err(Failure::new("--reflect finds no app: no instance of a LocalMesh document has one")
                    .next("name the servers: --reflect SERVICE=HOST:PORT"));
            }
            continue;
        }
        let Some((service, address)) = one.split_once('=').filter(|(_, address)| address.contains(':')) else {
            return Err(Failure::usage(format!("--reflect {one}: expected SERVICE=HOST:PORT"))
                .next("as --reflect media=127.0.0.1:9002"));
        };
        let names = mesh.services().keys().map(|name| name.as_str());
        if !names.clone().any(|name| name == service) {
            let hint = suggestion(service, names);
            return Err(Failure::usage(format!("--reflect {one}: nobody defines service {service}{hint}"))
                .next("name a service of the folder"));
        }
        servers.push(Server { service: service.to_owned(), address: address.to_owned() });
    }
    Ok(servers)
}

/// Which checks end in exit code 1, and which are not made.
struct Levels {
    deny_all: bool,
    deny: BTreeSet<&'static str>,
    allow_all: bool,
    allow: BTreeSet<&'static str>,
}

impl Levels {
    fn new(deny: &[String], allow: &[String]) -> Result<Self, Failure> {
        let (deny_all, deny) = named("--deny", deny)?;
        let (allow_all, allow) = named("--allow", allow)?;
        if deny_all && allow_all {
            return Err(Failure::usage("--deny all and --allow all at once").next("choose one of them"));
        }
        if let Some(id) = deny.intersection(&allow).next() {
            return Err(Failure::usage(format!("{id} is denied and allowed at once")).next("choose one of them"));
        }
        Ok(Self { deny_all, deny, allow_all, allow })
    }

    /// `None` when it is allowed. What names one check goes before what names all.
    fn of(&self, finding: Finding) -> Option<Leveled> {
        let Finding { check, place, message, help } = finding;
        let denied = self.deny.contains(check.id);
        if self.allow.contains(check.id) || (self.allow_all && !denied) {
            return None;
        }
        let severity = if denied || self.deny_all { Severity::Error } else { check.severity };
        let lint::Place { file, line, column } = place;
        Some(Leveled { id: check.id, name: check.name, severity, file, line, column, message, help })
    }
}

/// The checks of a flag by their ids, and whether it named all.
fn named(flag: &str, names: &[String]) -> Result<(bool, BTreeSet<&'static str>), Failure> {
    let (mut all, mut ids) = (false, BTreeSet::new());
    for name in names {
        match Check::find(name) {
            _ if name == ALL => all = true,
            Some(check) => _ = ids.insert(check.id),
            None => {
                let known = CHECKS.iter().flat_map(|check| [check.id, check.name]).chain([ALL]);
                let hint = suggestion(name, known);
                return Err(Failure::usage(format!("{flag} {name}: there is no such check{hint}"))
                    .next("`tenon policy check --list` prints all of them"));
            }
        }
    }
    Ok((all, ids))
}

/// A finding as it is printed.
#[derive(Debug, Serialize)]
struct Leveled {
    id: &'static str,
    name: &'static str,
    severity: Severity,
    file: String,
    line: u32,
    column: u32,
    message: String,
    help: String,
}

/// Findings in short, for who reads no more; notes are left out.
fn warnings(found: &[Leveled]) -> Vec<&str> {
    found.iter().filter(|one| one.severity != Severity::Note).map(|one| one.message.as_str()).collect()
}

fn summary(folder: &Path, mesh: &Mesh, found: &[Leveled]) -> String {
    let rules: usize = mesh.allowlists().iter().map(|allowlist| allowlist.rules.len()).sum();
    let count = |severity: Severity| found.iter().filter(|one| one.severity == severity).count();
    let counts = [(Severity::Error, "denied"), (Severity::Warning, "warnings"), (Severity::Note, "notes")];
    let counts = counts.map(|(severity, word)| (count(severity), word)).into_iter().filter(|(count, _)| *count > 0);
    let counts: String = counts.map(|(count, word)| format!(", {count} {word}")).collect();
    format!(
        "{}: mesh {}, {} services, {rules} rules, {} tests: no problem{counts}",
        folder.display(),
        mesh.name(),
        mesh.services().len(),
        mesh.tests().len()
    )
}
