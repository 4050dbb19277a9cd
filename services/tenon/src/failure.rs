//! Why a command failed, in words for whoever typed it.

use std::{fmt, process::ExitCode};

/// How a command came out that did its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Exit code 0.
    Yes,
    /// Exit code 1: the work was done and the answer is no; it has been printed already.
    No,
}

impl From<bool> for Answer {
    fn from(yes: bool) -> Self {
        if yes { Self::Yes } else { Self::No }
    }
}

impl From<Answer> for ExitCode {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Yes => Self::SUCCESS,
            Answer::No => Self::from(1),
        }
    }
}

/// A command that could not do its work: exit code 1, or 2 for wrong usage.
///
/// Displays as what went wrong, then what to do next on a line of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    what: String,
    next: Option<String>,
    usage: bool,
}

impl Failure {
    /// `what` says what went wrong, without a capital letter or a full stop.
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), next: None, usage: false }
    }

    /// Wrong usage that clap could not see: exit code 2.
    pub fn usage(what: impl Into<String>) -> Self {
        Self { usage: true, ..Self::new(what) }
    }

    /// What to do next.
    #[must_use]
    pub fn next(self, next: impl Into<String>) -> Self {
        Self { next: Some(next.into()), ..self }
    }

    /// The same, with the work that it kept from being done in front.
    #[must_use]
    pub fn of(self, work: &str) -> Self {
        Self { what: format!("{work}: {}", self.what), ..self }
    }

    /// What went wrong, without what to do next.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// The exit code of the process.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(if self.usage { 2 } else { 1 })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        match &self.next {
            Some(next) => write!(f, "\n  {next}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Failure {}

/// The causes of an error on one line: `Display` of ours never prints its source.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_what_to_do_next_on_its_own_line() {
        let failure = Failure::new("port taken").next("move it");
        assert_eq!(failure.to_string(), "port taken\n  move it");
        assert_eq!(failure.exit_code(), ExitCode::from(1));
        assert_eq!(failure.clone().of("not started").to_string(), "not started: port taken\n  move it");
        assert_eq!(failure.what(), "port taken");
        assert_eq!(Failure::usage("x").exit_code(), ExitCode::from(2));
    }

    #[test]
    fn a_chain_names_every_cause_once() {
        #[derive(Debug)]
        struct Outer(std::io::Error);
        impl fmt::Display for Outer {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("cannot open x")
            }
        }
        impl std::error::Error for Outer {
            fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
                Some(&self.0)
            }
        }
        assert_eq!(chain(&Outer(std::io::Error::other("denied"))), "cannot open x: denied");
    }
}
