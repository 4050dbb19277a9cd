//! An import while it arrives: checked record by record, kept encoded.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use mesh_config::names::TenantId;
use prost::{Message as _, encoding};
use tenon_proto::tcs::v1::TenantContext;
use xxhash_rust::xxh3::xxh3_128;

/// So many problems are reported at once: they travel in a header.
const MOST_PROBLEMS: usize = 20;

/// `TenantContext.tenant_id` and `.revision`: the numbers of their fields.
const ID_FIELD: u32 = 1;
const REVISION_FIELD: u32 = 2;
/// What a revision takes at most, with its tag.
const REVISION_BYTES: usize = 11;

/// One record that may be written.
#[derive(Debug)]
pub(crate) struct StagedTenant {
    pub id: Arc<str>,
    pub hosts: Box<[Arc<str>]>,
    /// Encoded without revision.
    value: Vec<u8>,
    /// Where the revision belongs, so that the whole is as a fresh encoding of it would be: after the id.
    revision_at: usize,
    pub fingerprint: Fingerprint,
}

/// What a record says, without its revision: equal for equal records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fingerprint(u128);

impl StagedTenant {
    /// `tenant` must have passed the check.
    pub(crate) fn new(mut tenant: TenantContext) -> Self {
        tenant.revision = 0;
        let value = tenant.encode_to_vec();
        let fingerprint = Fingerprint(xxh3_128(&value));
        let hosts = tenant.hosts.iter().map(|host| host.as_str().into()).collect();
        let revision_at = encoding::string::encoded_len(ID_FIELD, &tenant.tenant_id);
        Self { id: tenant.tenant_id.into(), hosts, value, revision_at, fingerprint }
    }

    /// Stands for a stored record that does not decode: it has no hosts, and differs from all others.
    pub(crate) fn damaged(id: &str) -> Self {
        Self { id: id.into(), hosts: Box::default(), value: Vec::new(), revision_at: 0, fingerprint: Fingerprint(0) }
    }

    /// The record as it stands in the journal: it carries the revision that writes it.
    pub(crate) fn encoded(&self, revision: u64) -> Vec<u8> {
        let (id, rest) = self.value.split_at(self.revision_at);
        let mut whole = Vec::with_capacity(self.value.len() + REVISION_BYTES);
        whole.extend_from_slice(id);
        encoding::uint64::encode(REVISION_FIELD, &revision, &mut whole);
        whole.extend_from_slice(rest);
        whole
    }
}

/// The records of one import, in order. A tenant or a host stands in it once.
#[derive(Debug, Default)]
pub(crate) struct Staged {
    tenants: Vec<StagedTenant>,
    /// Position of each tenant, from 0.
    ids: HashMap<Arc<str>, usize, ahash::RandomState>,
    /// Position of the tenant that has each host, from 0.
    hosts: HashMap<Arc<str>, usize, ahash::RandomState>,
    problems: Problems,
}

/// What is wrong with an import: lines that begin with `record N:`, counted from 1.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Problems {
    lines: Vec<String>,
    /// Those that were not kept.
    more: usize,
}

impl Problems {
    pub(crate) fn push(&mut self, record: usize, what: impl std::fmt::Display) {
        if self.lines.len() < MOST_PROBLEMS {
            self.lines.push(format!("record {}: {what}", record + 1));
        } else {
            self.more += 1;
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }
}

impl std::fmt::Display for Problems {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.lines.join("\n"))?;
        match self.more {
            0 => Ok(()),
            more => write!(f, "\nand {more} more"),
        }
    }
}

impl Staged {
    /// Takes the next record, or notes what is wrong with it.
    pub(crate) fn push(&mut self, tenant: TenantContext) {
        let position = self.tenants.len();
        if let Err(problems) = mesh_config::tenant::check(&tenant) {
            let whose = match TenantId::try_from(tenant.tenant_id.as_str()) {
                Ok(id) => format!("tenant {id}: "),
                Err(_) => String::new(),
            };
            for problem in problems {
                self.problems.push(position, format_args!("{whose}{problem}"));
            }
        }
        let tenant = StagedTenant::new(tenant);
        match self.ids.entry(Arc::clone(&tenant.id)) {
            Entry::Vacant(free) => {
                free.insert(position);
            }
            Entry::Occupied(first) => {
                let first = first.get() + 1;
                let what = format_args!("tenant {} stands in the import twice, first as record {first}", tenant.id);
                self.problems.push(position, what);
            }
        }
        for host in &tenant.hosts {
            let first = *self.hosts.entry(Arc::clone(host)).or_insert(position);
            if first != position {
                let other = &self.tenants[first].id;
                let what = format_args!(
                    "tenant {}: host {host} is that of tenant {other} too, record {}",
                    tenant.id,
                    first + 1
                );
                self.problems.push(position, what);
            }
        }
        // A record that is wrong keeps its place, so that the others are counted right.
        self.tenants.push(tenant);
    }

    /// The import, if nothing is wrong with it.
    pub(crate) fn finish(self) -> Result<Import, Problems> {
        if self.problems.is_empty() { Ok(Import { tenants: self.tenants, ids: self.ids }) } else { Err(self.problems) }
    }
}

/// An import whose records are each good and do not contradict each other.
#[derive(Debug, Default)]
pub(crate) struct Import {
    tenants: Vec<StagedTenant>,
    ids: HashMap<Arc<str>, usize, ahash::RandomState>,
}

impl Import {
    pub(crate) fn tenants(&self) -> &[StagedTenant] {
        &self.tenants
    }

    /// Whether it replaces this tenant.
    pub(crate) fn replaces(&self, id: &str) -> bool {
        self.ids.contains_key(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(id: &str, hosts: &[&str]) -> TenantContext {
        let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
        TenantContext { tenant_id: id.to_owned(), status: 1, hosts, ..TenantContext::default() }
    }

    fn problems(tenants: Vec<TenantContext>) -> String {
        let mut staged = Staged::default();
        tenants.into_iter().for_each(|tenant| staged.push(tenant));
        staged.finish().unwrap_err().to_string()
    }

    #[test]
    fn the_revision_of_what_is_written_does_not_count() {
        let one = StagedTenant::new(tenant("acme", &[]));
        let two = StagedTenant::new(TenantContext { revision: 7, ..tenant("acme", &[]) });
        let three = StagedTenant::new(TenantContext { status: 2, ..tenant("acme", &[]) });
        assert_eq!(one.fingerprint, two.fingerprint);
        assert_eq!(one.encoded(1), two.encoded(1));
        assert_ne!(one.fingerprint, three.fingerprint);
    }

    #[test]
    fn what_is_written_is_as_encoded_at_once_with_its_revision() {
        let tenant = TenantContext { region: "us-east".to_owned(), ..tenant("acme", &["a.example"]) };
        for revision in [1, 300, u64::MAX] {
            let whole = TenantContext { revision, ..tenant.clone() }.encode_to_vec();
            assert_eq!(StagedTenant::new(tenant.clone()).encoded(revision), whole);
        }
    }

    #[test]
    fn every_problem_names_its_record_counted_from_one() {
        let text = problems(vec![
            tenant("good", &["a.example"]),
            tenant("Bad", &[]),
            tenant("globex", &["a.example"]),
            tenant("good", &[]),
            tenant("last", &["UPPER.example"]),
        ]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("record 2: \"Bad\" is not a tenant id"), "{text}");
        assert_eq!(lines[1], "record 3: tenant globex: host a.example is that of tenant good too, record 1");
        assert_eq!(lines[2], "record 4: tenant good stands in the import twice, first as record 1");
        assert!(lines[3].starts_with("record 5: tenant last: \"UPPER.example\""), "{text}");
        assert_eq!(lines.len(), 4);
    }

    #[test]
    fn no_more_than_twenty_problems_are_spelled_out() {
        let text = problems((0..50).map(|_| tenant("Bad", &[])).collect());
        assert_eq!(text.lines().count(), 21);
        assert!(text.ends_with("\nand 79 more"), "{text}");
    }
}
