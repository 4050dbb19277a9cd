//! A call that did not come out as expected, for people: what was expected, what came, and why.

use super::{Outcome, with_token};
use crate::output::Tone;

/// The call on one line, with all that it carries.
pub fn call(outcome: &Outcome) -> String {
    let Outcome { caller, service, path, tenant, region, .. } = outcome;
    let tenant = tenant.as_ref().map(|tenant| format!(", tenant {tenant}")).unwrap_or_default();
    let region = region.as_ref().map(|region| format!(", in {region}")).unwrap_or_default();
    format!("{caller} -> {service} {path}{tenant}{region}{}", with_token(outcome))
}

/// As a diff: `-` is what the test expects, `+` what came. `toned` gives words their colour.
pub fn diff(outcome: &Outcome, toned: impl Fn(Tone, &str) -> String) -> Vec<String> {
    let refusal = outcome.message.as_ref().map(|message| format!(": {message}")).unwrap_or_default();
    let mut lines = vec![
        format!("{}: {}: {}", outcome.source, outcome.test, call(outcome)),
        format!("  {}", toned(Tone::Good, &format!("- {}", outcome.expected))),
        format!("  {}{refusal}", toned(Tone::Bad, &format!("+ {}", outcome.came))),
    ];
    lines.extend(outcome.because.as_ref().map(|because| format!("    {because}")));
    lines
}
