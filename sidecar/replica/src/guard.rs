//! What a snapshot must not do to a map that is in use (DESIGN §5, poison guards).

use tenon_proto::kind;

/// The most that a snapshot may shrink a map that a follower holds.
///
/// The accident it stops: an emptied table upstream empties every cache below it. An operator who means it removes the
/// state file and starts the follower again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guard {
    /// Share of the held records, in percent, that a snapshot may lack. 100 switches the guard off.
    pub largest_shrink_percent: u8,
    /// Maps of at most this many records are not guarded: few records can all go for good reasons.
    pub unguarded_records: u64,
}

impl Default for Guard {
    fn default() -> Self {
        Self { largest_shrink_percent: 50, unguarded_records: 20 }
    }
}

impl Guard {
    /// The guard of a kind, for every follower of it.
    ///
    /// Lists of who is refused have none: that a shorter one is not believed would keep the next refusal out for ever. Nor
    /// do keys: a mesh is scaled down overnight, and a key that is missing comes back with its instance's next
    /// confirmation, within a minute.
    pub fn of(kind: &str) -> Self {
        match kind {
            kind::KEY | kind::REVOCATION | kind::QUARANTINE => Self::OFF,
            _ => Self::default(),
        }
    }

    /// Accepts every snapshot.
    pub const OFF: Self = Self { largest_shrink_percent: 100, unguarded_records: 0 };

    /// Whether a map of `held` records may become one of `offered`.
    ///
    /// # Errors
    /// One line for the log, the status and the NACK.
    pub(crate) fn check(&self, held: u64, offered: u64) -> Result<(), String> {
        let lost = u128::from(held.saturating_sub(offered));
        if held <= self.unguarded_records || lost * 100 <= u128::from(held) * u128::from(self.largest_shrink_percent) {
            return Ok(());
        }
        Err(format!(
            "the snapshot has {offered} records where {held} are held, which is more than {} % fewer: refused as poisoned",
            self.largest_shrink_percent
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_may_shrink_by_the_share_and_not_by_one_more() {
        let guard = Guard::default();
        for (held, offered, allowed) in [
            (0, 0, true),
            (20, 0, true),
            (21, 0, false),
            (21, 10, false),
            (21, 11, true),
            (100, 50, true),
            (100, 49, false),
            (100, 900, true),
        ] {
            assert_eq!(guard.check(held, offered).is_ok(), allowed, "{held} to {offered}");
        }
        assert!(Guard::OFF.check(1_000_000, 0).is_ok());
    }
}
