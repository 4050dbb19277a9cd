//! From policy files to a checked mesh.
//!
//! Every document is read on its own and notes what it defines and what it names; then the names are compared. So all
//! that is wrong is found in one go.

mod allowlist;
mod attestor;
mod certificates;
mod document;
mod external_client;
mod forms;
mod local;
mod policy_test;
mod route;
pub(crate) mod schema;
mod tenants;
mod url;

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    str::FromStr,
};

use crate::{
    Mesh, Problem, Problems, SourceFile,
    mesh::{Allowlist, Attestor, ExternalClient, LocalMesh, PolicyTest, Quarantine, Route, Service},
    names::{DocumentName, NameError, RegionName, ServiceName, TrustDomain},
    problem::FIRST_AT,
    yaml::{self, At, Node, Reader, suggestion},
};

/// Checks policy files as a whole mesh. Their order does not matter.
///
/// # Errors
/// Everything that is wrong, in the order of file, line and column. The files are named as given.
pub fn parse(files: &[SourceFile]) -> Result<Mesh, Problems> {
    let mut problems = Vec::new();
    let draft = read(files, Draft::default(), &mut problems);
    match draft.mesh {
        Some(header) if problems.is_empty() => Ok(Mesh {
            name: header.name,
            trust_domain: header.trust_domain,
            trust_domain_at: header.trust_domain_at,
            regions: header.regions,
            services: draft.services,
            external_clients: draft.external_clients,
            attestors: draft.attestors,
            allowlists: draft.allowlists,
            routes: draft.routes,
            quarantines: draft.quarantines,
            local: draft.local,
            tests: draft.tests,
        }),
        _ => Err(Problems::sorted(problems)),
    }
}

/// Everything that is wrong in files beside which there are others that cannot be read, and what is wrong with those.
pub(crate) fn check_beside(files: &[SourceFile], mut problems: Vec<Problem>) -> Problems {
    read(files, Draft { unseen: true, ..Draft::default() }, &mut problems);
    Problems::sorted(problems)
}

/// No further file is read when so much is wrong: nobody reads it, and it takes memory.
const ENOUGH_PROBLEMS: usize = 10_000;

fn read(files: &[SourceFile], mut draft: Draft, problems: &mut Vec<Problem>) -> Draft {
    let mut files: Vec<&SourceFile> = files.iter().collect();
    files.sort_by(|a, b| a.path.as_bytes().cmp(b.path.as_bytes()));
    let mut previous: Option<&SourceFile> = None;
    for file in files.iter().copied() {
        if previous.is_some_and(|previous| previous.path == file.path) {
            problems.push(problem(&file.path, At { line: 1, column: 1 }, "this file is given twice, expected it once"));
            continue;
        }
        previous = Some(file);
        let (documents, complete) = yaml::read(&file.path, &file.text, problems);
        draft.unseen |= !complete;
        let mut reader = Reader::new(&file.path, problems);
        for node in &documents {
            document::read(&mut reader, node, &mut draft);
        }
        if problems.len() > ENOUGH_PROBLEMS {
            draft.unseen = true;
            break;
        }
    }
    draft.check_references(problems);
    draft.check_claimed(problems);
    draft.check_narrowed(problems);
    if !draft.unseen && !draft.defined.contains_key(MESH) {
        let first = files.first().map(|file| file.path.as_str()).unwrap_or_default();
        let message = match files.is_empty() {
            true => "no *.yaml file, expected policy files with one document of kind Mesh",
            false => "no document of kind Mesh, expected one in these files",
        };
        problems.push(problem(first, At { line: 1, column: 1 }, message));
    }
    draft
}

/// What has been read so far.
#[derive(Default)]
struct Draft {
    mesh: Option<Header>,
    services: BTreeMap<ServiceName, Service>,
    external_clients: BTreeMap<ServiceName, ExternalClient>,
    attestors: Vec<Attestor>,
    /// What no two outside clients may share.
    claimed: external_client::Claimed,
    allowlists: Vec<Allowlist>,
    routes: BTreeMap<ServiceName, Route>,
    quarantines: Vec<Quarantine>,
    local: Option<LocalMesh>,
    tests: Vec<PolicyTest>,
    /// Where each name was defined first, by what it names ("Service", "rule of media").
    defined: HashMap<String, BTreeMap<String, Place>>,
    /// Names that must be defined somewhere.
    references: Vec<Reference>,
    /// What rules say of their service's product.
    narrowed: Vec<tenants::Narrowed>,
    /// Something could not be read that may define any name: a name that nobody defines is then no problem of its own.
    unseen: bool,
}

/// The document of kind `Mesh`.
struct Header {
    name: DocumentName,
    trust_domain: TrustDomain,
    trust_domain_at: (String, At),
    regions: Vec<RegionName>,
}

/// A place in one of the files.
#[derive(Clone, PartialEq, Eq)]
struct Place {
    file: String,
    at: At,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.at.line, self.at.column)
    }
}

/// A name that must be defined somewhere.
struct Reference {
    /// [`SERVICE`], [`CALLER`] or [`REGION`].
    what: &'static str,
    name: String,
    /// It is not even the name that it should be.
    malformed: Option<NameError>,
    place: Place,
}

impl Draft {
    /// Notes that a name is defined here; a second time is a problem. No name: there is only one of the kind.
    /// Returns whether it was the first.
    fn define(&mut self, reader: &mut Reader<'_>, what: &str, name: &str, at: At) -> bool {
        let names = self.defined.entry(what.to_owned()).or_default();
        match names.get(name) {
            Some(first) => {
                let named = if name.is_empty() { String::new() } else { format!(" named {name:?}") };
                reader.problem(at, format!("a second {what}{named}, expected one{FIRST_AT}{first}"));
                false
            }
            None => {
                names.insert(name.to_owned(), Place { file: reader.file().to_owned(), at });
                true
            }
        }
    }

    /// Notes that a name must be defined somewhere.
    fn refer(&mut self, reader: &Reader<'_>, what: &'static str, name: &str, at: At) {
        self.mention(reader, what, name, at, None);
    }

    /// Reads a name that must be defined somewhere. What is wrong with it is told later, when all names are known.
    fn referred<T>(&mut self, reader: &mut Reader<'_>, what: &'static str, node: &Node) -> Option<T>
    where
        T: FromStr<Err = NameError>,
    {
        let text = reader.text(node, if what == REGION { "a region name" } else { "a service name" })?;
        let name = text.parse();
        self.mention(reader, what, text, node.at, name.as_ref().err().cloned());
        name.ok()
    }

    fn mention(&mut self, reader: &Reader<'_>, what: &'static str, name: &str, at: At, malformed: Option<NameError>) {
        let place = Place { file: reader.file().to_owned(), at };
        self.references.push(Reference { what, name: name.to_owned(), malformed, place });
    }

    fn check_references(&self, problems: &mut Vec<Problem>) {
        let nothing = BTreeMap::new();
        let defined = |what: &str| self.defined.get(what).unwrap_or(&nothing);
        let (services, clients) = (defined(SERVICE), defined(EXTERNAL_CLIENT));
        for Reference { what, name, malformed, place } in &self.references {
            let (names, more, expected) = match *what {
                REGION => (defined(REGION), &nothing, "one of the regions of the Mesh document"),
                CALLER => (services, clients, "the name of a Service or ExternalClient document"),
                _ => (services, &nothing, "the name of a Service document"),
            };
            let hint = || suggestion(name, names.keys().chain(more.keys()).map(String::as_str));
            if let Some(error) = malformed {
                problems.push(problem(&place.file, place.at, error.with_hint(&hint())));
                continue;
            }
            let known = names.contains_key(name) || more.contains_key(name);
            if known || self.unseen || (*what == REGION && names.is_empty()) {
                continue;
            }
            let message = if *what == SERVICE && clients.contains_key(name) {
                format!("{name:?} is an ExternalClient, expected {expected}")
            } else {
                format!("no {what} {name:?}{}, expected {expected}", hint())
            };
            problems.push(problem(&place.file, place.at, message));
        }
    }
}

/// What the document of kind `Mesh` defines.
const MESH: &str = "Mesh";
/// What a document of kind `Service` defines.
const SERVICE: &str = "Service";
/// What a document of kind `ExternalClient` defines.
const EXTERNAL_CLIENT: &str = "ExternalClient";
/// What rules and quarantines name: one or the other of both.
const CALLER: &str = "Service or ExternalClient";
/// What the list of regions defines.
const REGION: &str = "region";

fn problem(file: &str, at: At, message: impl Into<String>) -> Problem {
    Problem { file: file.to_owned(), line: at.line, column: at.column, message: message.into() }
}

#[cfg(test)]
mod tests;
