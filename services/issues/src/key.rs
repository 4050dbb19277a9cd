//! Names of issues: `<PROJECT>-<number>`.

use std::fmt;

use tonic::Status;

/// Longest project name, in bytes.
const PROJECT_BYTES: usize = 32;

/// `[A-Za-z][A-Za-z0-9_]*`, at most 32 bytes. Case matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Project(String);

impl Project {
    pub(crate) fn parse(text: &str) -> Result<Self, Status> {
        let fits = text.len() <= PROJECT_BYTES
            && text.starts_with(|first: char| first.is_ascii_alphabetic())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if fits {
            return Ok(Self(text.to_owned()));
        }
        let message = "not a project, expected a letter and then letters, digits or '_', at most 32 bytes";
        Err(Status::invalid_argument(format!("{:?} is {message}", shortened(text))))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// What the rows of all its issues begin with. No project contains a hyphen.
    pub(crate) fn prefix(&self) -> String {
        format!("{}-", self.0)
    }
}

/// The key of one issue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IssueKey {
    pub project: Project,
    /// From 1, counted for each tenant and project.
    pub number: u64,
}

impl IssueKey {
    pub(crate) fn parse(text: &str) -> Result<Self, Status> {
        let wrong = || {
            let key = shortened(text);
            Status::invalid_argument(format!(
                "{key:?} is not the key of an issue, expected <PROJECT>-<number> as in DEMO-1"
            ))
        };
        let (project, number) = text.rsplit_once('-').ok_or_else(wrong)?;
        let plain = number.bytes().all(|b| b.is_ascii_digit()) && !number.starts_with('0');
        let number = if plain { number.parse().map_err(|_| wrong())? } else { return Err(wrong()) };
        Ok(Self { project: Project::parse(project).map_err(|_| wrong())?, number })
    }

    /// Its row: in the order of rows issues are in the order of numbers.
    pub(crate) fn row(&self) -> String {
        format!("{}-{:020}", self.project.as_str(), self.number)
    }

    /// A row that belongs to it, such as its third comment.
    pub(crate) fn part(&self, number: u64) -> String {
        format!("{}{number:020}", self.parts())
    }

    /// What the rows of all its parts begin with.
    pub(crate) fn parts(&self) -> String {
        format!("{}/", self.row())
    }
}

impl fmt::Display for IssueKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.project.as_str(), self.number)
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_back_as_they_are_written() {
        for text in ["DEMO-1", "a_1-18446744073709551615", "Ops2-10"] {
            assert_eq!(IssueKey::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let cases = [
            "",
            "-",
            "DEMO",
            "DEMO-",
            "DEMO-0",
            "DEMO-01",
            "DEMO-+1",
            "DEMO-1x",
            "-1",
            "1A-1",
            "A-B-1",
            "A/B-1",
            "DÉMO-1",
            "DEMO-18446744073709551616",
            " DEMO-1",
        ];
        for text in cases {
            let refused = IssueKey::parse(text).unwrap_err();
            assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{text:?}");
        }
    }

    #[test]
    fn rows_are_in_the_order_of_numbers_and_projects_do_not_mix() {
        let row = |text: &str| IssueKey::parse(text).unwrap().row();
        assert!(row("A-2") < row("A-10"));
        let prefix = Project::parse("A").unwrap().prefix();
        assert!(!row("A1-2").starts_with(&prefix) && !row("A_-2").starts_with(&prefix));
        let parts = IssueKey::parse("A-1").unwrap().parts();
        assert!(!IssueKey::parse("A-10").unwrap().part(1).starts_with(&parts));
    }
}
