//! What this process logs: `TENON_LOG` at the start, and what an operator asks for while it runs.
//!
//! Libraries of others never log more than `info`, whoever asks: what they say below that may hold headers, and those may hold
//! tokens. Nothing of this is on the path of a call but what `tracing` itself does.

use std::{
    fmt,
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use mesh_identity::clock;
use tracing::{Level, info};
use tracing_subscriber::{EnvFilter, filter::LevelFilter, fmt::MakeWriter, util::SubscriberInitExt as _};

/// How the targets of our own crates begin.
const OWN: &[&str] = &["tenon", "sidecar_core", "mesh_asap", "mesh_config", "mesh_identity", "replica"];
/// The longest filter.
const LONGEST: usize = 1_024;

/// The log of this process; there is one where `main` began it.
static LOG: OnceLock<Log> = OnceLock::new();

/// Which events are logged: a level, and levels of targets, as `info,tenon_sidecar=debug`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// As it was asked for.
    asked: String,
    /// What comes of it.
    directives: String,
}

/// What of a filter cannot be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FilterError {
    /// Neither a level nor a target with one.
    #[error("{0:?} at character {1}: expected a level (off, error, warn, info, debug, trace) or TARGET=LEVEL")]
    Malformed(String, usize),
    /// Another one's library at a level at which it may print secrets.
    #[error(
        "{0:?} at character {1}: a target that is not Tenon's logs no more than info, since it may print tokens below that"
    )]
    Foreign(String, usize),
    /// More than anybody writes.
    #[error("expected {LONGEST} characters at most")]
    TooLong,
}

impl Default for Filter {
    fn default() -> Self {
        Self { asked: "info".to_owned(), directives: "info".to_owned() }
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.asked)
    }
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        if text.len() > LONGEST {
            return Err(FilterError::TooLong);
        }
        let mut directives = Vec::new();
        let mut at = 1;
        for part in text.split(',') {
            let malformed = || FilterError::Malformed(part.to_owned(), at);
            match part.trim().split_once('=') {
                None => directives.extend(everywhere(level(part.trim()).ok_or_else(malformed)?)),
                Some((target, wanted)) => {
                    let wanted = level(wanted).filter(|_| is_target(target)).ok_or_else(malformed)?;
                    if wanted > LevelFilter::INFO && !is_own(target) {
                        return Err(FilterError::Foreign(part.to_owned(), at));
                    }
                    directives.push(format!("{target}={wanted}"));
                }
            }
            at += part.chars().count() + 1;
        }
        Ok(Self { asked: text.to_owned(), directives: directives.join(",") })
    }
}

/// One level for all: more than `info` for our own crates alone.
fn everywhere(level: LevelFilter) -> Vec<String> {
    if level <= LevelFilter::INFO {
        return vec![level.to_string()];
    }
    let own = OWN.iter().map(|target| format!("{target}={level}"));
    std::iter::once(Level::INFO.to_string()).chain(own).collect()
}

fn level(name: &str) -> Option<LevelFilter> {
    let known = ["off", "error", "warn", "info", "debug", "trace"];
    known.iter().find(|known| name.eq_ignore_ascii_case(known))?.parse().ok()
}

fn is_target(target: &str) -> bool {
    !target.is_empty() && target.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_:-".contains(&byte))
}

/// Whether every target that this one is the beginning of is ours.
fn is_own(target: &str) -> bool {
    OWN.iter().any(|own| target.starts_with(own))
}

/// Begins the log of this process, by `TENON_LOG`. What of that cannot be is said, and is `info`.
pub fn begin<W: for<'w> MakeWriter<'w> + Send + Sync + 'static>(writer: W) {
    let asked = std::env::var("TENON_LOG").unwrap_or_default();
    let parsed = if asked.is_empty() { Ok(Filter::default()) } else { asked.parse() };
    let start = parsed.as_ref().cloned().unwrap_or_default();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(&start.directives))
        .with_writer(writer)
        .with_ansi(false)
        .with_filter_reloading();
    let handle = subscriber.reload_handle();
    subscriber.finish().init();
    let set =
        move |filter: &Filter| handle.reload(EnvFilter::new(&filter.directives)).map_err(|error| error.to_string());
    let state = State { lasting: start.clone(), current: start.clone(), until: None, changes: 0 };
    let _begun_twice = LOG.set(Log { start, set: Box::new(set), state: Arc::new(Mutex::new(state)) });
    if let Err(problem) = parsed {
        tracing::warn!(%problem, "TENON_LOG cannot be used: info is logged");
    }
}

/// Puts a filter into effect.
type Set = dyn Fn(&Filter) -> Result<(), String> + Send + Sync;

struct Log {
    start: Filter,
    set: Box<Set>,
    state: Arc<Mutex<State>>,
}

struct State {
    /// What it goes back to.
    lasting: Filter,
    current: Filter,
    /// When it goes back, Unix seconds.
    until: Option<u64>,
    /// Counts the changes: the end of one that was overtaken changes nothing.
    changes: u64,
}

/// What is logged, and until when, in Unix seconds; `None`: it stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InEffect {
    /// As it was asked for.
    pub filter: String,
    /// When it goes back.
    pub until: Option<u64>,
}

/// What is logged now; `None` where the log is not this process' own.
pub fn current() -> Option<InEffect> {
    let state = LOG.get()?.state();
    Some(InEffect { filter: state.current.to_string(), until: state.until })
}

/// Logs by this filter from now on, `None`: as at the start; for so long, or until the next change. Comes back with what was
/// in effect before, and is now; `None` where the log is not this process' own.
///
/// # Errors
/// The filter cannot be put into effect.
pub fn set(filter: Option<Filter>, length: Option<Duration>) -> Option<Result<(InEffect, InEffect), String>> {
    let log = LOG.get()?;
    Some(log.change(filter.unwrap_or_else(|| log.start.clone()), length))
}

impl Log {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&'static self, filter: Filter, length: Option<Duration>) -> Result<(InEffect, InEffect), String> {
        let mut state = self.state();
        let old = InEffect { filter: state.current.to_string(), until: state.until };
        (self.set)(&filter)?;
        let until = length.map(|length| clock::unix_seconds().saturating_add(length.as_secs()));
        let new = InEffect { filter: filter.to_string(), until };
        if until.is_none() {
            state.lasting = filter.clone();
        }
        (state.current, state.until, state.changes) = (filter, until, state.changes + 1);
        let change = state.changes;
        drop(state);
        info!(
            old = old.filter,
            new = new.filter,
            seconds = length.map(|length| length.as_secs()),
            "the log level is set"
        );
        if let Some(length) = length {
            tokio::spawn(async move {
                tokio::time::sleep(length).await;
                self.go_back(change);
            });
        }
        Ok((old, new))
    }

    fn go_back(&self, change: u64) {
        let mut state = self.state();
        if state.changes != change {
            return;
        }
        let lasting = state.lasting.clone();
        if (self.set)(&lasting).is_ok() {
            (state.current, state.until, state.changes) = (lasting.clone(), None, state.changes + 1);
        }
        drop(state);
        info!(new = %lasting, "the log level is set back");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directives(text: &str) -> Result<String, String> {
        text.parse::<Filter>().map(|filter| filter.directives).map_err(|error| error.to_string())
    }

    #[test]
    fn more_than_info_is_for_our_own_crates_alone() {
        let all = directives("trace").unwrap();
        assert!(all.starts_with("INFO,tenon=trace,") && all.ends_with("replica=trace"), "{all}");
        assert_eq!(directives("warn").unwrap(), "warn");
        assert_eq!(directives("info,tenon_sidecar=debug").unwrap(), "info,tenon_sidecar=debug");
        assert_eq!(directives("error, tenon::access=OFF,h2=info").unwrap(), "error,tenon::access=off,h2=info");
    }

    #[test]
    fn what_cannot_be_is_named_with_its_place() {
        for (text, expected) in [
            ("", "\"\" at character 1: expected a level"),
            ("info,h2=trace", "\"h2=trace\" at character 6: a target that is not Tenon's"),
            ("debug,hyper=debug", "\"hyper=debug\" at character 7: a target that is not Tenon's"),
            // It is the beginning of many a target.
            ("t=trace", "\"t=trace\" at character 1: a target that is not Tenon's"),
            ("debgu", "\"debgu\" at character 1: expected a level"),
            ("info,tenon=loud", "\"tenon=loud\" at character 6: expected a level"),
            ("info,=debug", "\"=debug\" at character 6: expected a level"),
            ("tenon[call{x=1}]=debug", "\"tenon[call{x=1}]=debug\" at character 1: expected a level"),
            (&"x".repeat(2_000), "expected 1024 characters"),
        ] {
            let error = directives(text).unwrap_err();
            assert!(error.starts_with(expected), "{text}: {error}");
        }
    }
}
