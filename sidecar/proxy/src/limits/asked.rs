//! What a limit would say of a call that nobody makes: for whoever asks the sidecar what would happen. Counts nothing.

use std::time::Duration;

use sidecar_core::{
    Reason, Refusal,
    limits::rate::{Bearer, Use},
    policy::{Rate, Rule},
};

use super::{Limits, Memory};

impl Limits {
    /// What [`Limits::rate`] would refuse the next call of `rule` with, whatever its audit mode; `None`: it would pass.
    pub fn ask_rate(&self, rule: &Rule, index: u32, party: Bearer<'_>) -> Option<Refusal> {
        let rate = rule.rate()?;
        let by = Use { allowlist: rule.allowlist(), rule: rule.name(), party };
        let delay = self.rates.look(rate, &by, self.now_ns()).err()?;
        Some(used_up(rule, rate, party, delay).by_rule(Some(index)))
    }

    /// What the next call of any rule would be refused with for the sidecar's own sake.
    pub fn ask_memory(&self) -> Option<Refusal> {
        self.memory.is_short().then(Memory::refusal)
    }
}

/// The refusal of a rate that is used up, for so long.
pub(super) fn used_up(rule: &Rule, rate: Rate, party: Bearer<'_>, delay: Duration) -> Refusal {
    let who = match party {
        Bearer::Tenant(tenant) => format!("tenant {tenant}"),
        Bearer::Caller(caller) => format!("service {caller} without tenant"),
    };
    let (count, seconds) = (rate.count, rate.per.as_secs());
    let message = format!("{who} has used up the rate of rule {}: {count} calls in {seconds} s", rule.name());
    Refusal::new(Reason::TenantRateLimited, message).until(delay)
}
