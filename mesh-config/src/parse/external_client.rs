//! The kind `ExternalClient`, and what the clients must not share with one another and with the services.

use std::collections::HashMap;

use super::{
    Draft, EXTERNAL_CLIENT, Place, SERVICE,
    allowlist::each,
    certificates,
    document::{caller_name, or_default},
    forms::{CERTIFICATES, WORD},
    problem, url,
};
use crate::{
    Problem,
    mesh::ExternalClient,
    names::{HostName, Issuer, control_plane, short},
    problem::FIRST_AT,
    yaml::{
        Form, Map, Node, Reader,
        shape::{optional, required},
    },
};

pub(super) static EXTERNAL_CLIENT_SPEC: Map = Map {
    what: "the spec of an ExternalClient",
    fields: &[
        optional(
            "issuer",
            Form::Like("^[A-Za-z0-9_.+/-]{1,254}$"),
            "iss of its tokens, and what its key ids begin with. Default: the name of the document.",
        ),
        required("ca", CERTIFICATES, "The CA certificates, as PEM, that its client certificate chains to."),
        required(
            "certificateNames",
            Form::Set(&Form::Like("^(dns|uri):.")),
            "dns:NAME or uri:URI. Its certificate carries one of these among its subject alternative names.",
        ),
        required(
            "keyRepositories",
            Form::Set(&Form::Like("^https://[^#?]+/$")),
            "Base URLs, asked in this order for its public keys.",
        ),
        optional(
            "keyRepositoryCa",
            CERTIFICATES,
            "The CA certificates of the key repositories as PEM. Default: those that the system trusts.",
        ),
        optional("subjects", Form::Set(&WORD), "Other subjects that its tokens may name. Default: none."),
    ],
};

/// What the clients of all files must not share, each with its place.
#[derive(Default)]
pub(super) struct Claimed {
    issuers: Vec<(Issuer, Place)>,
    names: Vec<Named>,
}

/// A certificate name and the CA that it counts under.
struct Named {
    name: String,
    /// `None`: it could not be read.
    ca: Option<Vec<Vec<u8>>>,
    /// Whose it is, be it named badly.
    client: Place,
    place: Place,
}

pub(super) fn read(reader: &mut Reader<'_>, name_node: &Node, spec: Option<&Node>, draft: &mut Draft) {
    let name = caller_name(reader, name_node, EXTERNAL_CLIENT, draft);
    let fields = spec.and_then(|spec| reader.fields(spec, &EXTERNAL_CLIENT_SPEC));
    let Some(fields) = fields else { return };
    let place = |reader: &Reader<'_>, node: &Node| Place { file: reader.file().to_owned(), at: node.at };
    let issuer: Option<Issuer> = match (fields.optional("issuer"), &name) {
        (Some(node), _) => reader.parsed(node, "an issuer"),
        // Every service name is an issuer.
        (None, Some(name)) => name.as_str().parse().ok(),
        (None, None) => None,
    };
    if let Some(issuer) = &issuer {
        let place = place(reader, fields.optional("issuer").unwrap_or(name_node));
        draft.claimed.issuers.push((issuer.clone(), place));
    }
    let ca = fields.required(reader, "ca", certificates::CERTIFICATES);
    let ca = ca.and_then(|node| certificates::read(reader, node));
    let names = fields.required(reader, "certificateNames", "a list of dns:NAME or uri:URI").and_then(|node| {
        each(reader, node, "certificate names", |reader, node| {
            let name = certificate_name(reader, node)?;
            let (client, place) = (place(reader, name_node), place(reader, node));
            draft.claimed.names.push(Named { name: name.clone(), ca: ca.clone(), client, place });
            Some(name)
        })
    });
    let repositories = fields.required(reader, "keyRepositories", "a list of URLs of key repositories");
    let repositories = repositories.and_then(|node| each(reader, node, "URLs of key repositories", url::base));
    let repository_ca = or_default(reader, fields, "keyRepositoryCa", Vec::new(), certificates::read);
    let subjects = or_default(reader, fields, "subjects", Vec::new(), |reader, node| {
        each(reader, node, "subjects", |reader, node| match reader.text(node, "a subject")? {
            text if text.is_empty() || text.contains(char::is_control) => {
                reader.problem(node.at, format!("{:?} is no subject, expected text", short(text)));
                None
            }
            text => Some(text.to_owned()),
        })
    });
    let whole = (name, issuer, ca, names, repositories, repository_ca, subjects);
    if let (
        Some(name),
        Some(issuer),
        Some(ca),
        Some(certificate_names),
        Some(key_repositories),
        Some(key_repository_ca),
        Some(subjects),
    ) = whole
    {
        let client =
            ExternalClient { name, issuer, ca, certificate_names, key_repositories, key_repository_ca, subjects };
        draft.external_clients.insert(client.name.clone(), client);
    }
}

/// What a certificate must carry among its subject alternative names. No wildcard: who calls is one client.
fn certificate_name(reader: &mut Reader<'_>, node: &Node) -> Option<String> {
    let expected = "dns:NAME with a lower-case DNS name, or uri:URI";
    let text = reader.form(node, expected)?;
    let good = match text.split_once(':') {
        Some(("dns", name)) => HostName::try_from(name).is_ok(),
        Some(("uri", uri)) => {
            let scheme = uri.split_once(':').filter(|(_, rest)| !rest.is_empty()).map_or("", |(scheme, _)| scheme);
            scheme.starts_with(|first: char| first.is_ascii_alphabetic())
                && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
                && uri.bytes().all(|byte| byte.is_ascii_graphic())
        }
        Some(_) | None => false,
    };
    if !good {
        reader.problem(node.at, format!("certificate name {:?} is not well formed, expected {expected}", short(text)));
    }
    good.then(|| text.to_owned())
}

impl Draft {
    /// What is only seen when all files are read: issuers that share keys, certificates that could be two callers'.
    pub(super) fn check_claimed(&self, problems: &mut Vec<Problem>) {
        self.check_issuers(problems);
        self.check_certificate_names(problems);
    }

    /// No issuer is a path prefix of another (A5): the keys of `a/b` would pass as those of `a`.
    fn check_issuers(&self, problems: &mut Vec<Problem>) {
        let services = self.defined.get(SERVICE);
        let mut seen: Vec<(&Issuer, &Place)> = Vec::new();
        for (issuer, place) in &self.claimed.issuers {
            let first = issuer.as_str().split('/').next().unwrap_or_default();
            // A client named as a service is, is a problem of its own, and its name may be its issuer.
            let same_name = self.defined.get(EXTERNAL_CLIENT).is_some_and(|clients| clients.contains_key(first));
            let own = same_name && issuer.as_str() == first;
            if services.is_some_and(|services| services.contains_key(first)) && !own {
                let message = format!(
                    "issuer {:?} begins with the name of service {first:?}, whose keys would count as its own, expected \
                     one that begins with no service's name",
                    issuer.as_str()
                );
                problems.push(problem(&place.file, place.at, message));
            } else if first.starts_with(control_plane::PREFIX) && !own {
                let message = format!(
                    "issuer {:?} begins with a name of the control plane, expected one that does not begin with \
                     \"tenon-\"",
                    issuer.as_str()
                );
                problems.push(problem(&place.file, place.at, message));
            } else if let Some((other, there)) = seen.iter().find(|(other, _)| overlap(issuer.as_str(), other.as_str()))
            {
                let message = format!(
                    "issuer {:?} and issuer {:?} share keys, expected issuers of which none begins another{FIRST_AT}{there}",
                    issuer.as_str(),
                    other.as_str()
                );
                problems.push(problem(&place.file, place.at, message));
            }
            seen.push((issuer, place));
        }
    }

    /// A certificate is one caller's, and no outside client's is one of this mesh.
    fn check_certificate_names(&self, problems: &mut Vec<Problem>) {
        let own = self.mesh.as_ref().map(|mesh| format!("uri:spiffe://{}", mesh.trust_domain));
        let mut seen: HashMap<(&str, &[u8]), &Named> = HashMap::new();
        for named in &self.claimed.names {
            let of_the_mesh = own.as_ref().and_then(|own| named.name.strip_prefix(own.as_str()));
            if of_the_mesh.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')) {
                let message = format!(
                    "certificate name {:?} is an identity of this mesh, expected one of another trust domain",
                    short(&named.name)
                );
                problems.push(problem(&named.place.file, named.place.at, message));
            }
            let mut shared = None;
            for ca in named.ca.iter().flatten() {
                let first = *seen.entry((&named.name, ca)).or_insert(named);
                if first.client != named.client {
                    shared = Some(first);
                }
            }
            if let Some(first) = shared {
                let message = format!(
                    "certificate name {:?} is another ExternalClient's under the same CA, expected one of its \
                     own{FIRST_AT}{}",
                    short(&named.name),
                    first.place
                );
                problems.push(problem(&named.place.file, named.place.at, message));
            }
        }
    }
}

fn overlap(one: &str, other: &str) -> bool {
    let begins =
        |long: &str, short: &str| long.strip_prefix(short).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    begins(one, other) || begins(other, one)
}
