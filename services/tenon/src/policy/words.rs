//! Revisions, history and flows in words: what several commands of `tenon policy` show alike.

use replica::Position;
use tenon_proto::policy::v1::{HistoryEntry, PolicyRevision, history_entry::Action};

use crate::output::rfc3339;

/// A revision that may be missing in a message.
pub(super) fn position(revision: Option<&PolicyRevision>) -> Position {
    revision.map_or(Position::ZERO, |revision| Position::new(revision.epoch, revision.revision))
}

pub(super) fn on_the_wire(position: Position) -> PolicyRevision {
    PolicyRevision { epoch: position.epoch, revision: position.revision }
}

/// A moment of a message as RFC 3339; empty for 0, which stands for "never".
pub(super) fn moment(unix_seconds: i64) -> String {
    u64::try_from(unix_seconds).map(rfc3339).unwrap_or_default()
}

pub(super) fn action(entry: &HistoryEntry) -> &'static str {
    match entry.action() {
        Action::Unspecified => "changed",
        Action::Applied => "applied",
        Action::RolledBack => "rolled back",
        Action::RolloutStarted => "rollout started",
        Action::RolloutCompleted => "rollout completed",
        Action::RolloutHalted => "rollout halted",
        Action::RolloutEnded => "rollout ended",
    }
}

/// The first change, and how many more there are.
pub(super) fn changes(entry: &HistoryEntry) -> String {
    match entry.changes.as_slice() {
        [] => "nothing".to_owned(),
        [only] => only.clone(),
        [first, more @ ..] => format!("{first} and {} more", more.len()),
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `wiki -> media /media.v1.Media/Get`.
pub(super) fn call(caller: &str, service: &str, path: &str) -> String {
    let caller = if caller.is_empty() { "(nobody)" } else { caller };
    let path = if path.is_empty() { "(other paths)" } else { path };
    format!("{caller} -> {service} {path}")
}

/// `12 days 3 hours`, in whole hours, or smaller where there is less than one.
pub(super) fn length(seconds: u64) -> String {
    let some = |number: u64, unit: &str| match number {
        0 => None,
        1 => Some(format!("1 {unit}")),
        _ => Some(format!("{number} {unit}s")),
    };
    let (days, hours) = (seconds / 86_400, seconds / 3_600 % 24);
    let long: Vec<_> = [some(days, "day"), some(hours, "hour")].into_iter().flatten().collect();
    if !long.is_empty() {
        return long.join(" ");
    }
    some(seconds / 60, "minute").or_else(|| some(seconds, "second")).unwrap_or_else(|| "0 seconds".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_told_in_days_and_hours() {
        for (seconds, words) in [
            (12 * 86_400 + 3 * 3_600 + 59, "12 days 3 hours"),
            (86_400, "1 day"),
            (3_600, "1 hour"),
            (600, "10 minutes"),
            (59, "59 seconds"),
            (0, "0 seconds"),
        ] {
            assert_eq!(length(seconds), words);
        }
    }

    #[test]
    fn of_several_changes_the_first_is_shown() {
        let entry = |changes: &[&str]| HistoryEntry {
            changes: changes.iter().map(ToString::to_string).collect(),
            ..Default::default()
        };
        assert_eq!(changes(&entry(&["a", "b", "c", "d"])), "a and 3 more");
        assert_eq!((changes(&entry(&["a"])), changes(&entry(&[]))), ("a".to_owned(), "nothing".to_owned()));
    }
}
