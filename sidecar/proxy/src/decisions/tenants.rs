//! Calls by tenant, where somebody wants metrics of tenants.

use ahash::RandomState;
use hashbrown::HashMap;

use super::ends::Ended;
use crate::metrics::Outcome;

/// Tenants that one worker tells apart between two scrapes.
const MOST: usize = 4_096;

/// Since the last taking.
#[derive(Debug, Default)]
pub struct Tenants {
    /// By tenant.
    pub calls: HashMap<Box<str>, Ended, RandomState>,
    /// Of tenants for whom there was no room.
    pub others: Ended,
}

impl Tenants {
    /// One call for `tenant`.
    pub fn add(&mut self, tenant: &str, outcome: Outcome) {
        let ended = if let Some(ended) = self.calls.get_mut(tenant) {
            ended
        } else if self.calls.len() >= MOST {
            &mut self.others
        } else {
            self.calls.entry(tenant.into()).or_default()
        };
        ended[outcome as usize] += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn however_many_tenants_call_no_call_is_missing() {
        let mut tenants = Tenants::default();
        for number in 0..MOST + 10 {
            tenants.add(&format!("tenant-{number}"), Outcome::Finished);
        }
        tenants.add("tenant-1", Outcome::Refused);
        assert_eq!(tenants.calls.len(), MOST);
        assert_eq!(tenants.others, [10, 0, 0, 0]);
        assert_eq!(tenants.calls["tenant-1"], [1, 1, 0, 0]);
    }
}
