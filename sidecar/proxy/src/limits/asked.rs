//! What a limit would say of a call that nobody makes: for whoever asks the sidecar what would happen. Counts nothing.

use sidecar_core::{
    Refusal,
    limits::rate::{Bearer, Use},
    policy::Rule,
};

use super::{Limits, Memory, used_up};

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
