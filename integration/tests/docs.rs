//! What the documents say of refusals is what the code does, and every link leads somewhere.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use integration::mesh::repository;
use sidecar_core::{Code, Reason};

const LIFE_OF_A_CALL: &str = "docs/life-of-a-call.md";
/// Where reasons stand that no code makes yet.
const ENUM: &str = "sidecar/core/src/reason.rs";

fn read(path: &str) -> String {
    fs::read_to_string(repository().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The cells of the tables whose first column has this heading.
fn rows(text: &str, first_column: &str) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        let Some(line) = line.strip_prefix('|') else {
            inside = false;
            continue;
        };
        let cells: Vec<_> =
            line.trim_end().trim_end_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
        if inside && !cells.iter().all(|cell| cell.bytes().all(|byte| byte == b'-' || byte == b':')) {
            rows.push(cells);
        } else if cells.first().is_some_and(|cell| cell == first_column) {
            inside = true;
        }
    }
    rows
}

/// What stands between backticks.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

fn status_name(code: Code) -> &'static str {
    match code {
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::Unavailable => "UNAVAILABLE",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

fn assert_names_every_reason_once(named: &[Reason], document: &str) {
    let mut counts: BTreeMap<&str, usize> = Reason::ALL.iter().map(|reason| (reason.as_str(), 0)).collect();
    for reason in named {
        *counts.entry(reason.as_str()).or_default() += 1;
    }
    counts.retain(|_, count| *count != 1);
    assert!(counts.is_empty(), "{document} must name each of these once, and names them so often: {counts:?}");
}

#[test]
fn life_of_a_call_names_every_refusal_with_its_phase_status_and_file() {
    let mut named = Vec::new();
    let mut problems = Vec::new();
    for cells in rows(&read(LIFE_OF_A_CALL), "reason") {
        let [reason, phase, status, files, when, what_to_do] = cells.as_slice() else {
            panic!("expected six cells in {cells:?}");
        };
        let reason: Reason = quoted(reason).first().and_then(|name| name.parse().ok()).unwrap_or_else(|| {
            panic!("{reason} is no reason");
        });
        named.push(reason);
        let wanted = format!("{} {}", status_name(reason.code()), reason.code().as_i32());
        if quoted(phase) != [reason.phase()] {
            problems.push(format!("{reason}: phase {phase}, expected `{}`", reason.phase()));
        }
        if *status != wanted {
            problems.push(format!("{reason}: status {status}, expected {wanted}"));
        }
        if when.is_empty() || what_to_do.is_empty() {
            problems.push(format!("{reason}: when does it happen, and what is to be done?"));
        }
        problems.extend(problems_of_files(reason, files));
    }
    assert_names_every_reason_once(&named, LIFE_OF_A_CALL);
    assert!(problems.is_empty(), "{problems:#?}");
}

/// A reason is made in the files that the table names; one that nothing makes yet is marked as reserved.
fn problems_of_files(reason: Reason, cell: &str) -> Vec<String> {
    let files: BTreeSet<_> = quoted(cell).into_iter().map(str::to_owned).collect();
    let expected = makers(reason);
    let reserved = cell.starts_with("reserved:");
    let mut problems = Vec::new();
    if expected.is_empty() {
        if !reserved || files != BTreeSet::from([ENUM.to_owned()]) {
            problems.push(format!("{reason}: nothing makes it yet, expected \"reserved: `{ENUM}`\" instead of {cell}"));
        }
    } else if reserved {
        problems.push(format!("{reason}: is marked as reserved, but is made in {expected:?}"));
    } else if files.is_empty() || !files.is_subset(&expected) {
        problems.push(format!("{reason}: {files:?} must be among the files that make it, {expected:?}"));
    }
    problems
}

/// Every source file that names the variant, apart from tests, the enum itself, and what judges refusals of others.
fn makers(reason: Reason) -> BTreeSet<String> {
    let variant = format!("Reason::{reason:?}");
    let mut files = BTreeSet::new();
    for file in files_below(repository(), "rs") {
        let name = relative(&file);
        let judges = ["/explain.rs", "/explain/proposal.rs", "/rollout/cause.rs"];
        let is_about_it = name == ENUM || judges.iter().any(|file| name.ends_with(file));
        if is_about_it || name.ends_with("tests.rs") || !name.contains("/src/") {
            continue;
        }
        let text = fs::read_to_string(&file).expect("a source file");
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let named = |(at, _): (usize, &str)| {
            code[at + variant.len()..].bytes().next().is_none_or(|next| !next.is_ascii_alphanumeric() && next != b'_')
        };
        if code.match_indices(&variant).any(named) {
            files.insert(name);
        }
    }
    files
}

#[test]
fn life_of_a_call_has_a_heading_for_every_phase() {
    let text = read(LIFE_OF_A_CALL);
    let headings: BTreeSet<_> = text.lines().filter(|line| line.starts_with('#')).flat_map(quoted).collect();
    let phases: BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.phase()).collect();
    let missing: Vec<_> = phases.difference(&headings).collect();
    assert!(missing.is_empty(), "no heading names these phases: {missing:?}");
}

#[test]
fn the_readme_names_every_refusal_with_its_status() {
    let mut named = Vec::new();
    for cells in rows(&read("README.md"), "refused") {
        let [_, reasons, status, ..] = cells.as_slice() else { panic!("expected three cells or more in {cells:?}") };
        for name in quoted(reasons) {
            let reason: Reason = name.parse().unwrap_or_else(|_| panic!("{name} is no reason"));
            assert_eq!(status, status_name(reason.code()), "{reason}");
            named.push(reason);
        }
    }
    assert_names_every_reason_once(&named, "README.md");
}

#[test]
fn every_relative_link_of_every_document_resolves() {
    let mut broken = Vec::new();
    let documents = files_below(repository(), "md");
    assert!(documents.len() > 10, "the documents were found");
    for document in documents {
        let text = fs::read_to_string(&document).expect("a document");
        for link in links(&text) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            let (path, fragment) = link.split_once('#').unwrap_or((&link, ""));
            let folder = document.parent().expect("a file lies in a folder");
            let target = if path.is_empty() { document.clone() } else { folder.join(path) };
            let leads = target.exists() && (fragment.is_empty() || anchors(&target).contains(fragment));
            if !leads {
                broken.push(format!("{}: {link}", relative(&document)));
            }
        }
    }
    assert!(broken.is_empty(), "these lead nowhere: {broken:#?}");
}

#[test]
fn every_document_that_the_sources_name_exists() {
    let mut missing = BTreeSet::new();
    for file in files_below(repository(), "rs") {
        let text = fs::read_to_string(&file).expect("a source file");
        for (at, _) in text.match_indices("docs/") {
            let name: String =
                text[at..].chars().take_while(|c| c.is_ascii_alphanumeric() || "/-_.".contains(*c)).collect();
            let name = name.trim_end_matches('.');
            if (name.ends_with(".md") || name.ends_with(".svg")) && !repository().join(name).exists() {
                missing.insert(format!("{} names {name}", relative(&file)));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

/// Targets of `[text](target)` and of `src="target"`, outside of code.
fn links(text: &str) -> Vec<String> {
    let mut links = Vec::new();
    let mut code = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            code = !code;
        }
        if code {
            continue;
        }
        let prose: String = line.split('`').step_by(2).collect();
        for (start, end) in [("](", ')'), ("src=\"", '"'), ("srcset=\"", '"'), ("href=\"", '"')] {
            for (at, _) in prose.match_indices(start) {
                let rest = &prose[at + start.len()..];
                links.extend(rest.split_once(end).map(|(link, _)| link.to_owned()));
            }
        }
    }
    links
}

/// The anchors that GitHub makes of a document's headings.
fn anchors(document: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(document).unwrap_or_default();
    let headings = text.lines().filter_map(|line| line.strip_prefix('#'));
    headings
        .map(|heading| {
            let title = heading.trim_start_matches('#').trim().to_lowercase();
            let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}

/// Every file with this extension that belongs to the repository: build output, data folders and caches do not.
fn files_below(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder of the repository") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() {
            if !name.starts_with('.') && !matches!(name, "target" | "node_modules" | "__pycache__") {
                files.extend(files_below(&path, extension));
            }
        } else if path.extension().is_some_and(|found| found == extension) {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// The path from the top of the repository.
fn relative(path: &Path) -> String {
    path.strip_prefix(repository()).unwrap_or(path).display().to_string()
}
