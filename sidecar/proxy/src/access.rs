//! The access log: a line of JSON for each call that has ended, or for a share of them, on the standard output. Its schema is
//! `docs/access-log.md`; never a token, a header's value other than the tenant's id and the request id, or a body.

use std::{fmt, io::Write as _, str::FromStr, sync::Mutex};

use mesh_identity::clock;
use serde::Serialize;
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};

use crate::{call::End, headers, metrics::Outcome, trace::Span};

/// Lines that may wait to be written. Where nobody reads them, those above are lost and counted.
const LINES: usize = 8_192;
/// Changes of the schema that a reader has to know of.
const SCHEMA: u32 = 1;
/// Bytes of a path that are told.
const PATH: usize = 1_024;

/// Which calls are logged.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Logged {
    /// None.
    #[default]
    Off,
    /// A share of them, above 0 and below 1, by chance.
    Share(f64),
    /// All.
    On,
}

impl FromStr for Logged {
    type Err = String;

    /// `on`, `off` or a percentage. `true` and `false` are the former names of the first two.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text}: expected on, off, or a share of the calls in percent: 1%");
        match text {
            "on" | "true" => Ok(Self::On),
            "off" | "false" => Ok(Self::Off),
            _ => match text.strip_suffix('%').ok_or_else(wrong)?.parse::<f64>().map_err(|_| wrong())? {
                100.0 => Ok(Self::On),
                0.0 => Ok(Self::Off),
                percent if percent > 0.0 && percent < 100.0 => Ok(Self::Share(percent / 100.0)),
                _ => Err(wrong()),
            },
        }
    }
}

impl fmt::Display for Logged {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => formatter.write_str("off"),
            Self::Share(share) => write!(formatter, "{}%", share * 100.0),
            Self::On => formatter.write_str("on"),
        }
    }
}

/// The open log.
pub struct AccessLog {
    lines: NonBlocking,
    /// Of 2^32 calls so many are logged.
    share: u64,
    /// What waits is written when it is dropped.
    _writer: Mutex<WorkerGuard>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    schema: u32,
    /// When it ended.
    unix_ms: u64,
    direction: &'a str,
    caller: &'a str,
    service: &'a str,
    method: &'a str,
    path: &'a str,
    tenant: Option<&'a str>,
    request_id: &'a str,
    outcome: &'a str,
    grpc_status: Option<u32>,
    reason: Option<&'a str>,
    microseconds: u64,
    trace_id: Option<String>,
}

impl AccessLog {
    /// On the standard output; `None` where no calls are logged.
    #[must_use]
    pub fn open(logged: Logged) -> Option<Self> {
        Self::over(logged, std::io::stdout())
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of 2^32")]
    fn over(logged: Logged, output: impl std::io::Write + Send + 'static) -> Option<Self> {
        let share = match logged {
            Logged::Off => return None,
            Logged::Share(share) => (share * f64::from(u32::MAX)).ceil() as u64,
            Logged::On => 1 << 32,
        };
        let (lines, writer) = NonBlockingBuilder::default()
            .lossy(true)
            .buffered_lines_limit(LINES)
            .thread_name("tenon-access-log")
            .finish(output);
        Some(Self { lines, share, _writer: Mutex::new(writer) })
    }

    /// Logs a call that has ended, when it is one of those. Does not wait.
    pub fn ended(&self, end: &End<'_>, span: Option<&Span>) {
        if u64::from(u32::from_ne_bytes(headers::random())) >= self.share {
            return;
        }
        if let Ok(mut line) = serde_json::to_vec(&Line::of(end, span)) {
            line.push(b'\n');
            // Only a writer that is gone is an error: those above what may wait are counted.
            let _gone = self.lines.clone().write_all(&line);
        }
    }

    /// Lines that were lost, since nobody read them.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lines.error_counter().dropped_lines() as u64
    }
}

impl<'a> Line<'a> {
    fn of(end: &'a End<'_>, span: Option<&Span>) -> Self {
        let facts = end.facts;
        let path = facts.uri.path();
        let until = (0..=PATH.min(path.len())).rev().find(|until| path.is_char_boundary(*until)).unwrap_or_default();
        let finished = end.outcome == Outcome::Finished;
        Self {
            schema: SCHEMA,
            unix_ms: u64::try_from(clock::since_epoch().as_millis()).unwrap_or(u64::MAX),
            direction: end.direction.as_str(),
            caller: &facts.caller,
            service: &facts.service,
            method: facts.method.as_str(),
            path: &path[..until],
            tenant: Some(end.tenant).filter(|tenant| !tenant.is_empty()),
            request_id: facts.request_id(),
            outcome: end.outcome.as_str(),
            grpc_status: end.status.filter(|_| finished).and_then(|code| code.parse().ok()),
            reason: end.status.filter(|_| end.outcome == Outcome::Refused),
            microseconds: u64::try_from(end.took.as_micros()).unwrap_or(u64::MAX),
            trace_id: span.map(Span::trace_id),
        }
    }
}

#[cfg(test)]
mod tests;
