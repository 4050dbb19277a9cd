//! What is wrong with a file, where, and what was expected instead.

use std::{fmt, path::Path};

/// One thing that is wrong in a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The file: below the folder for [`parse`](crate::parse), as the user can open it for [`load`](crate::load).
    pub file: String,
    /// Counted from 1.
    pub line: u32,
    /// In characters, counted from 1.
    pub column: u32,
    /// What is wrong, and what was expected. One line.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}", self.file, self.line, self.column, self.message)
    }
}

/// Everything that is wrong, in the order of file, line and column. Never empty where it is an error.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Problems(pub Vec<Problem>);

/// Before the place of what was there first, which ends the message: `base.yaml:8:18`, below the folder.
pub(crate) const FIRST_AT: &str = ": the first is at ";

/// More than anybody reads, and few enough for one message.
pub(crate) const MAX_PROBLEMS: usize = 100;

impl Problems {
    /// In their order, cut where nobody would read on.
    pub(crate) fn sorted(mut problems: Vec<Problem>) -> Self {
        problems.sort();
        let more = problems.len().saturating_sub(MAX_PROBLEMS);
        problems.truncate(MAX_PROBLEMS);
        if let (Some(last), true) = (problems.last().cloned(), more > 0) {
            problems.push(Problem { message: format!("and {more} more problems from here on"), ..last });
        }
        Self(problems)
    }

    /// Names each file as a user can open it, also inside of messages: the folder joined with the path below it.
    #[must_use]
    pub fn below(mut self, folder: &Path) -> Self {
        for problem in &mut self.0 {
            let path = if problem.file.is_empty() { folder.to_owned() } else { folder.join(&problem.file) };
            problem.file = path.display().to_string();
            let Some(at) = problem.message.rfind(FIRST_AT).map(|at| at + FIRST_AT.len()) else { continue };
            let (said, first) = problem.message.split_at(at);
            // A place in the same file has no path: `4:8`.
            if first.matches(':').count() >= 2 {
                problem.message = format!("{said}{}", folder.join(first).display());
            }
        }
        self
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}
