//! What a refused call is answered with.

use std::{fmt, time::Duration};

use crate::{Reason, policy::Nearest};

/// A call that Tenon itself ends, and what everyone concerned needs to know of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What a program matches.
    pub reason: Reason,
    /// What a person reads: one line, without the reason before it, nothing secret and nothing of another tenant.
    pub message: String,
    /// The rule that matched before its conditions refused: an index into [`crate::policy::Policy::rules`].
    pub rule: Option<u32>,
    /// When another attempt may succeed, where that is known better than [`Reason::retry_after`] does.
    pub delay: Option<Duration>,
    /// The rule that came closest, for the callee's log and `tenon explain`; never for the caller.
    pub nearest: Option<Box<Nearest>>,
}

impl Refusal {
    /// A refusal that no rule was involved in.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), rule: None, delay: None, nearest: None }
    }

    /// One that another attempt does not meet after `delay`.
    #[must_use]
    pub fn until(self, delay: Duration) -> Self {
        Self { delay: Some(delay), ..self }
    }

    /// When another attempt may succeed, for `google.rpc.RetryInfo`; `None` where repeating the call changes nothing.
    pub fn retry_after(&self) -> Option<Duration> {
        self.delay.or(self.reason.retry_after())
    }

    /// Names the rule whose conditions refused.
    #[must_use]
    pub fn by_rule(self, rule: Option<u32>) -> Self {
        Self { rule, ..self }
    }
}

/// `REASON: message`, as `grpc-message` begins.
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason, self.message)
    }
}

impl std::error::Error for Refusal {}

/// At most 200 bytes of what the caller wrote, so that a message stays a line.
pub(crate) fn shown(text: &str) -> &str {
    let end = (0..=text.len().min(200)).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_caller_wrote_is_cut_between_characters() {
        assert_eq!(shown("/media.v1.Media/Get"), "/media.v1.Media/Get");
        assert_eq!(shown(&"é".repeat(300)).len(), 200);
        assert_eq!(shown(&format!("x{}", "é".repeat(300))).len(), 199);
    }
}
