//! Documents whose commands a test runs.
//!
//! In a block of shell, `$ ` begins a command. Other lines are what must be printed, in this order: other lines may stand
//! between, `…` is any text, and runs of spaces are one. `# exit 1` at the end is the exit code of the block; else it is 0.

use std::{
    collections::VecDeque,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::Context as _;

use crate::{mesh::target_profile_dir, python};

/// What stands between fences.
pub struct Block<'a> {
    /// Behind the first fence.
    pub language: &'a str,
    /// What stands between them.
    pub text: String,
    /// Of the first fence.
    pub line: usize,
}

/// All blocks of a document, in order.
///
/// # Panics
/// When the last one has no end.
#[must_use]
pub fn blocks(document: &str) -> Vec<Block<'_>> {
    let mut blocks: Vec<Block<'_>> = Vec::new();
    let mut open = false;
    for (number, line) in document.lines().enumerate() {
        if let Some(language) = line.strip_prefix("```") {
            if !open {
                blocks.push(Block { language, text: String::new(), line: number + 1 });
            }
            open = !open;
        } else if let (true, Some(block)) = (open, blocks.last_mut()) {
            block.text += line;
            block.text += "\n";
        }
    }
    assert!(!open, "the last block has an end");
    blocks
}

/// A block of shell, read.
#[derive(Debug)]
pub struct Shell {
    /// Its commands.
    pub script: String,
    /// How many there are.
    pub commands: usize,
    /// What they print.
    expected: VecDeque<String>,
    exit: i32,
}

impl Shell {
    /// Reads a block; `local` puts the test's own values into a line of it.
    ///
    /// # Errors
    /// The exit code is none.
    pub fn read(block: &Block<'_>, local: impl Fn(&str) -> String) -> anyhow::Result<Self> {
        let mut shell = Self { script: String::new(), commands: 0, expected: VecDeque::new(), exit: 0 };
        // A line that ends in a backslash goes on with the next.
        let mut goes_on = false;
        for line in block.text.lines() {
            if let Some(command) = line.strip_prefix("$ ").or(goes_on.then_some(line)) {
                shell.script += &(local(command) + "\n");
                shell.commands += usize::from(!goes_on);
                goes_on = command.ends_with('\\');
            } else if let Some(code) = line.strip_prefix("# exit ") {
                shell.exit = code.parse().context("an exit code")?;
            } else if !line.is_empty() {
                shell.expected.push_back(local(line));
            }
        }
        Ok(shell)
    }

    /// Runs it in `folder`, with the data folder of a mesh; what it prints must be what it says.
    ///
    /// # Errors
    /// It cannot be started.
    ///
    /// # Panics
    /// It prints something else, or ends otherwise.
    pub fn run(mut self, folder: &Path, data: &Path, place: &str) -> anyhow::Result<()> {
        let installed = python::program("grpcurl")?;
        let programs = [target_profile_dir()?, installed.parent().context("a program lies in a folder")?.to_owned()];
        let path = std::env::join_paths(programs.into_iter().chain(std::env::split_paths(&std::env::var("PATH")?)))?;
        let output = Command::new("sh")
            .args(["-c", &self.script])
            .current_dir(folder)
            .env("PATH", path)
            .env("TENON_DATA", data)
            .stdin(Stdio::null())
            .output()?;
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        let told = || format!("{place}:\n{}{printed}{errors}", self.script);
        assert_eq!(output.status.code(), Some(self.exit), "{}", told());
        for line in printed.lines() {
            if self.expected.front().is_some_and(|pattern| matches(pattern, line)) {
                self.expected.pop_front();
            }
        }
        assert!(self.expected.is_empty(), "{}\ndoes not print {:?}", told(), self.expected);
        Ok(())
    }
}

/// Whether `line` is what `pattern` shows: from its beginning, `…` for any text, spaces alike.
#[must_use]
pub fn matches(pattern: &str, line: &str) -> bool {
    let plain = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let line = plain(line);
    let mut rest = line.as_str();
    for (index, part) in pattern.split('…').map(plain).enumerate() {
        match rest.find(part.as_str()) {
            Some(at) if index > 0 || at == 0 => rest = &rest[at + part.len()..],
            Some(_) | None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_a_guide_is_compared_from_its_beginning() {
        assert!(matches("applied: 1 changes, revision …", "applied: 1 changes, revision 17.4"));
        assert!(matches("media …3 …enforce", "media   3   media   2   enforce"));
        assert!(matches("…halted", "rollout of 1.2 halted: why"));
        assert!(!matches("applied", "not applied"));
        assert!(!matches("media …4", "media 3 enforce"));
        assert!(!matches("one two", "one and two"));
    }

    #[test]
    fn a_command_goes_on_after_a_backslash() {
        let document = "```sh\n$ one \\\n  two 1\n$ three\nprinted\n# exit 1\n```\n";
        let shell = Shell::read(&blocks(document)[0], |line| line.replace('1', "2")).unwrap();
        assert_eq!((shell.script.as_str(), shell.commands, shell.exit), ("one \\\n  two 2\nthree\n", 2, 1));
        assert_eq!(shell.expected, ["printed"]);
    }
}
