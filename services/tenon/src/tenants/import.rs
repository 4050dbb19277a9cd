//! `tenants import` and `tenants apply`: a file of tenants into the TCS, all of it or nothing.

use std::{
    fs,
    io::{self, Read as _},
    path::Path,
    time::Duration,
};

use futures_util::stream;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use mesh_config::tenant::{read_json_lines, read_json_lines_bytes};
use prost::Message as _;
use tenon_proto::tcs::v1::{ImportRequest, TenantContext};
use tonic::Status;

use crate::{
    cli::Import,
    failure::{Answer, Failure},
    operator::{Mesh, Role},
    output::Output,
};

/// Most bytes of tenants in one message; well below the 4 MiB that gRPC servers take.
const CHUNK: usize = 1024 * 1024;

/// How often the sign of life moves while the TCS writes.
const TICK: Duration = Duration::from_millis(200);

/// What to do when it is not known what became of the file.
const EITHER: &str = "either the whole file was applied or nothing of it: import it again, which changes nothing twice";

/// Runs the command.
///
/// # Errors
/// Problems of the file, all of them; or what the TCS refused, with the line it stands on.
pub async fn run(args: Import) -> Result<Answer, Failure> {
    let name = if args.file == Path::new("-") { "standard input".to_owned() } else { args.file.display().to_string() };
    let text = read(&args.file, &name)?;
    let tenants = read_json_lines(&name, &text).map_err(|problems| {
        Failure::new(problems.to_string()).next("nothing was applied: correct the file and try again")
    })?;
    let mesh = Mesh::find(&args.mesh.data)?;
    let answer = send(&mesh, tenants).await.map_err(|status| match problems(&name, &text, status.message()) {
        Some(problems) => Failure::new(problems).next("nothing was applied: correct the file and try again"),
        None => mesh.write_failure(Role::Tcs, "nothing was applied", EITHER, &status),
    })?;
    let mut out = Output::stdout(args.output.output);
    if out.is_json() {
        out.json(&serde_json::json!({
            "tenants": answer.tenants, "epoch": answer.epoch, "revision": answer.revision,
        }))?;
    } else {
        out.line(&format!("{} tenants applied, revision {}.{}", answer.tenants, answer.epoch, answer.revision))?;
    }
    out.flush()?;
    Ok(Answer::Yes)
}

fn read(file: &Path, name: &str) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    let read = match file == Path::new("-") {
        true => io::stdin().read_to_end(&mut bytes).map(|_| ()),
        false => fs::read(file).map(|read| bytes = read),
    };
    read.map_err(|error| {
        Failure::new(format!("cannot read {name}: {error}")).next("name a file of tenants, one JSON object a line")
    })?;
    String::from_utf8(bytes).map_err(|error| {
        let problems = read_json_lines_bytes(name, error.as_bytes()).err().unwrap_or_default();
        Failure::new(problems.to_string()).next("nothing was applied: correct the file and try again")
    })
}

async fn send(mesh: &Mesh, tenants: Vec<TenantContext>) -> Result<tenon_proto::tcs::v1::ImportResponse, Status> {
    let bar = bar(tenants.len());
    let shown = bar.clone();
    let chunks = stream::unfold(tenants.into_iter(), move |mut rest| {
        let chunk = take_chunk(&mut rest);
        shown.inc(chunk.len() as u64);
        if chunk.is_empty() {
            shown.set_style(writing());
            shown.enable_steady_tick(TICK);
        }
        async move { (!chunk.is_empty()).then_some((ImportRequest { tenants: chunk }, rest)) }
    });
    let answer = super::client(mesh).import(chunks).await;
    bar.finish_and_clear();
    answer.map(tonic::Response::into_inner)
}

/// Drawn on standard error, and only when that is a terminal.
fn bar(tenants: usize) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(tenants as u64), ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {human_pos} of {human_len} tenants, {eta} left") {
        bar.set_style(style);
    }
    bar
}

/// Everything is sent; the TCS looks it through and writes it, all at once.
fn writing() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {len} tenants are being written, {elapsed}")
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
}

/// As many tenants as fit into one message, at least one.
fn take_chunk(rest: &mut std::vec::IntoIter<TenantContext>) -> Vec<TenantContext> {
    let mut chunk = Vec::new();
    let mut bytes = 0;
    while let Some(next) = rest.as_slice().first() {
        // A tag and a length of at most five bytes each.
        bytes += next.encoded_len() + 10;
        if !chunk.is_empty() && bytes > CHUNK {
            break;
        }
        chunk.extend(rest.next());
    }
    chunk
}

/// What the TCS says of single records (`record 2: ...`, counted from 1, one a line) as problems of the file. The file
/// has one record on each line that is not empty.
fn problems(name: &str, text: &str, message: &str) -> Option<String> {
    let lines: Vec<usize> =
        text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).map(|(index, _)| index + 1).collect();
    let place = |said: &str| {
        let (record, what) = said.strip_prefix("record ")?.split_once(": ")?;
        let line = lines.get(record.parse::<usize>().ok()?.checked_sub(1)?)?;
        Some(format!("{name}:{line}:1: {what}"))
    };
    let mut found = false;
    let said = message.lines().map(|said| place(said).inspect(|_| found = true).unwrap_or_else(|| said.to_owned()));
    let problems = said.collect::<Vec<_>>().join("\n");
    found.then_some(problems)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(id: &str, padding: usize) -> TenantContext {
        TenantContext { tenant_id: id.into(), realm: "x".repeat(padding), ..TenantContext::default() }
    }

    #[test]
    fn chunks_stay_below_the_limit_and_lose_nothing() {
        let tenants: Vec<_> = (0..5).map(|n| tenant(&format!("t{n}"), CHUNK / 2 - 100)).collect();
        let mut rest = tenants.into_iter();
        let sizes: Vec<usize> = std::iter::from_fn(|| Some(take_chunk(&mut rest).len()).filter(|&n| n > 0)).collect();
        assert_eq!(sizes, [2, 2, 1]);
    }

    #[test]
    fn a_tenant_that_is_larger_than_a_chunk_goes_alone() {
        let mut rest = vec![tenant("a", CHUNK * 2), tenant("b", 1)].into_iter();
        assert_eq!(take_chunk(&mut rest).len(), 1);
        assert_eq!(take_chunk(&mut rest).len(), 1);
        assert_eq!(take_chunk(&mut rest).len(), 0);
    }

    #[test]
    fn a_file_that_is_not_utf_8_is_told_with_its_place_beside_all_else() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("t.jsonl");
        fs::write(&file, b"{\"tenantId\":\"\xE9\"}\n{}\n").unwrap();
        let failure = format!("{:?}", read(&file, "t.jsonl").unwrap_err());
        assert!(failure.contains("t.jsonl:1:14: a byte that is not UTF-8"), "{failure}");
        assert!(failure.contains("t.jsonl:2:1: no status is given"), "{failure}");
    }

    #[test]
    fn what_the_tcs_says_of_records_is_said_of_lines_past_empty_ones() {
        let text = "{}\n\n{}\n";
        let message =
            "record 2: tenant c: host acme.example is that of tenant acme\nrecord 1: tenant b: too large\nand 3 more";
        assert_eq!(
            problems("t.jsonl", text, message).unwrap(),
            "t.jsonl:3:1: tenant c: host acme.example is that of tenant acme\nt.jsonl:1:1: tenant b: too large\nand 3 more"
        );
        assert_eq!(problems("t.jsonl", text, "the disk is full"), None);
        assert_eq!(problems("t.jsonl", text, "record 9: none such"), None);
    }
}
