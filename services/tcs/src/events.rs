//! The memory of lifecycle events: what was applied is known for a while, so that an event that is sent again changes
//! nothing.
//!
//! It lies in the journal of the tenants, under keys that no tenant can have, and is written with the change itself.

use std::time::Duration;

use pbjson_types::Timestamp;
use prost::Message as _;
use tenon_proto::tcs::v1::{AppliedEvent, LifecycleEvent};
use xxhash_rust::xxh3::xxh3_128;

/// For how long an event is remembered.
pub(crate) const MEMORY: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Before the id in the key of its record.
const PREFIX: &str = "event/";

/// The longest event id, in bytes.
const LONGEST_ID: usize = 128;

/// Key of the record that remembers an event.
pub(crate) fn key(event_id: &str) -> String {
    format!("{PREFIX}{event_id}")
}

/// Whether a key of the journal is that of an event; all others are tenants.
pub(crate) fn is_event(key: &str) -> bool {
    key.contains('/')
}

/// Whether a text can be the id of an event.
pub(crate) fn is_event_id(text: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | ':' | '-');
    (1..=LONGEST_ID).contains(&text.len()) && text.chars().all(good)
}

/// What tells an event from another one with the same id.
pub(crate) fn digest(event: &LifecycleEvent) -> [u8; 16] {
    xxh3_128(&event.encode_to_vec()).to_le_bytes()
}

/// What is remembered of an event whose change has this revision.
pub(crate) fn remember(event: &LifecycleEvent, revision: u64, at: Timestamp) -> AppliedEvent {
    AppliedEvent { digest: digest(event).to_vec().into(), revision, at: Some(at) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_of_a_few_characters_and_not_too_long() {
        for good in ["a", "A-1_b:c.d", &"x".repeat(128)] {
            assert!(is_event_id(good), "{good}");
        }
        for bad in ["", "a/b", "a b", "ü", &"x".repeat(129)] {
            assert!(!is_event_id(bad), "{bad}");
        }
    }

    #[test]
    fn no_tenant_has_the_key_of_an_event() {
        assert!(is_event(&key("e")));
        assert!(!is_event("acme"));
        assert!(mesh_config::names::TenantId::try_from(key("e").as_str()).is_err());
    }
}
