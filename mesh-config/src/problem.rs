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

impl Problems {
    /// Names each file as a user can open it: the folder joined with the path below it.
    #[must_use]
    pub fn below(mut self, folder: &Path) -> Self {
        for problem in &mut self.0 {
            let path = if problem.file.is_empty() { folder.to_owned() } else { folder.join(&problem.file) };
            problem.file = path.display().to_string();
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
