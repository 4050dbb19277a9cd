//! What a write comes to: decided from the index, written to the journal, taken over into the index.

use std::sync::Arc;

use journal::{Expected, Position, Write};
use prost::Message as _;
use tenon_proto::tcs::v1::AppliedEvent;

use super::index::Change;
use crate::staged::{Import, StagedTenant};

/// What a write comes to, decided from the index at one position.
pub(super) enum Decision<T> {
    /// It stands already.
    Stands(T),
    Write(Plan, T),
}

/// What is to be written after the head that it was decided at.
pub(super) enum Plan {
    /// Replaces a tenant, and remembers the event that did.
    Tenant(StagedTenant, Option<u64>, Option<(String, AppliedEvent)>),
    /// Deletes it.
    Gone(String, u64, Option<(String, AppliedEvent)>),
    /// The tenants of an import that differ, by their positions in it, each with the revision that it replaces.
    Import(Arc<Import>, Vec<(usize, Option<u64>)>),
    Forget(Vec<String>),
}

impl Plan {
    /// Whether it takes long.
    pub(super) const fn is_large(&self) -> bool {
        matches!(self, Self::Import(..))
    }

    /// Blocks for as long as a million records take to be copied.
    pub(super) fn writes(&self, head: Position) -> Vec<Write> {
        let expected = |revision: &Option<u64>| revision.map_or(Expected::Absent, Expected::Revision);
        match self {
            Self::Tenant(tenant, revision, memory) => {
                let value = tenant.encoded(head.revision + 1);
                let write = Write::put(&*tenant.id, value).expecting(expected(revision));
                std::iter::once(write).chain(memory.as_ref().map(remembering)).collect()
            }
            Self::Gone(id, revision, memory) => {
                let write = Write::delete(id).expecting(Expected::Revision(*revision));
                std::iter::once(write).chain(memory.as_ref().map(remembering)).collect()
            }
            Self::Import(import, changed) => {
                let writes = changed.iter().zip(head.revision + 1..).map(|((position, replaces), revision)| {
                    let tenant = &import.tenants()[*position];
                    Write::put(&*tenant.id, tenant.encoded(revision)).expecting(expected(replaces))
                });
                writes.collect()
            }
            Self::Forget(keys) => keys.iter().map(Write::delete).collect(),
        }
    }

    /// The same for the index, in the same order.
    pub(super) fn changes(&self) -> Vec<Change<'_>> {
        match self {
            Self::Tenant(tenant, _, memory) => {
                std::iter::once(Change::Tenant(tenant)).chain(memory.as_ref().map(remembered)).collect()
            }
            Self::Gone(id, _, memory) => {
                std::iter::once(Change::Gone(id)).chain(memory.as_ref().map(remembered)).collect()
            }
            Self::Import(import, changed) => {
                changed.iter().map(|(position, _)| Change::Tenant(&import.tenants()[*position])).collect()
            }
            Self::Forget(keys) => keys.iter().map(|key| Change::Forgotten(key)).collect(),
        }
    }
}

fn remembered((key, event): &(String, AppliedEvent)) -> Change<'_> {
    Change::Event { key, at_unix_seconds: event.at.as_ref().map_or(0, |at| at.seconds) }
}

fn remembering((key, event): &(String, AppliedEvent)) -> Write {
    Write::put(key, event.encode_to_vec()).expecting(Expected::Absent)
}
