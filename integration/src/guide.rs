//! Documents whose commands a test runs.
//!
//! In a block of shell, `$ ` begins a command. Other lines are what must be printed, in this order: other lines may stand
//! between, `…` is any text, and runs of spaces are one; what goes to standard error counts too. `# ` begins a comment, but for
//! `# exit 1` at the end, which is the exit code of the block; else it is 0. Before the last one, a command may fail where it is
//! shown what it prints then, or the next one has `$?`.

use std::{
    collections::VecDeque,
    ffi::OsString,
    fs,
    net::SocketAddr,
    os::unix::{fs::symlink, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
};

use anyhow::Context as _;
use rustix::process::{Pid, Signal};

use crate::{
    mesh::{Mesh, SOON, repository, target_profile_dir, wait},
    python,
};

/// Where the commands of documents are run: a folder as the top of the repository is when `make up` has run, and a mesh whose
/// addresses are others than the sample's.
#[derive(Clone, Debug)]
pub struct Place {
    folder: PathBuf,
    data: PathBuf,
    /// By port, as documents have it.
    addresses: Vec<(u16, String)>,
    /// What else is another here.
    others: Vec<(String, String)>,
}

impl Place {
    /// Beside a mesh. `sidecars` are the addresses that documents have for those of its own.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn of(mesh: &Mesh, sidecars: &[(u16, SocketAddr)]) -> anyhow::Result<Self> {
        let folder = mesh.scratch().join("guide");
        fs::create_dir_all(&folder)?;
        symlink(mesh.data_dir(), folder.join(".tenon"))?;
        symlink(repository().join("proto"), folder.join("proto"))?;
        let control_plane = mesh.mesh_file()?["controlPlane"].clone();
        let control_plane =
            [(15010, "identity"), (15011, "keyRepository"), (15020, "tcs"), (15030, "policy"), (15080, "dashboard")]
                .into_iter()
                .filter_map(|(port, name)| Some((port, control_plane[name].as_str()?.to_owned())));
        let sidecars = sidecars.iter().map(|(port, address)| (*port, address.to_string()));
        Ok(Self {
            folder,
            data: mesh.data_dir(),
            addresses: control_plane.chain(sidecars).collect(),
            others: Vec::new(),
        })
    }

    /// What documents call `shown` is `own` here.
    #[must_use]
    pub fn with(mut self, shown: &str, own: &str) -> Self {
        self.others.push((shown.to_owned(), own.to_owned()));
        self
    }

    /// Where the commands are run.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The block of shell of a document in which `word` stands, for this place.
    ///
    /// # Errors
    /// There is none.
    pub fn shell(&self, document: &str, word: &str) -> anyhow::Result<Shell> {
        shell(document, word, |line| self.local(line))
    }

    /// Runs all blocks of shell of a document, in their order; how many commands there are.
    ///
    /// # Errors
    /// The document cannot be read, or a command not be started.
    ///
    /// # Panics
    /// A command prints something else than the document says, or ends otherwise.
    pub fn run(&self, document: &str) -> anyhow::Result<usize> {
        let text = fs::read_to_string(repository().join(document))?;
        let mut commands = 0;
        for block in blocks(&text).iter().filter(|block| block.language == "sh") {
            let shell = Shell::read(block, |line| self.local(line))?;
            commands += shell.commands;
            shell.run(&self.folder, &self.data, &format!("line {} of {document}", block.line))?;
        }
        Ok(commands)
    }

    /// A line of a document with the addresses and the trust domain of the mesh. In one pass: an address of the test may look
    /// like one of the document.
    fn local(&self, line: &str) -> String {
        let mut parts = line.split("127.0.0.1:");
        let mut local = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let digits = part.find(|it: char| !it.is_ascii_digit()).unwrap_or(part.len());
            let (port, rest) = part.split_at(digits);
            let known = self.addresses.iter().find(|(shown, _)| port.parse() == Ok(*shown));
            match known {
                Some((_, address)) => local += address,
                None => local += &format!("127.0.0.1:{port}"),
            }
            local += rest;
        }
        let local = local.replace("demo.example", "test.example").replace("target/release/tenon", "tenon");
        self.others.iter().fold(local, |line, (shown, own)| line.replace(shown, own))
    }
}

/// The block of shell of a document in which `word` stands; `local` puts the test's own values into a line of it.
///
/// # Errors
/// There is none.
pub fn shell(document: &str, word: &str, local: impl Fn(&str) -> String) -> anyhow::Result<Shell> {
    let text = fs::read_to_string(repository().join(document))?;
    let found = blocks(&text).into_iter().find(|block| block.language == "sh" && block.text.contains(word));
    Shell::read(&found.with_context(|| format!("no block of {document} has {word}"))?, local)
}

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
        // Nothing is shown that the last command printed.
        let mut silent = false;
        for line in block.text.lines() {
            if let Some(command) = line.strip_prefix("$ ").or(goes_on.then_some(line)) {
                if silent && !goes_on && !command.contains("$?") {
                    shell.script += "[ $? = 0 ] || exit 90\n";
                }
                silent = true;
                shell.script += &(local(command) + "\n");
                shell.commands += usize::from(!goes_on);
                goes_on = command.ends_with(['\\', '|']);
            } else if let Some(code) = line.strip_prefix("# exit ") {
                shell.exit = code.parse().context("an exit code")?;
            } else if !line.is_empty() && !line.starts_with("# ") {
                shell.expected.push_back(local(line));
                silent = false;
            }
        }
        Ok(shell)
    }

    /// Starts it in `folder`, where it runs until what comes back is dropped. What it prints is in the file `log` there.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(&self, folder: &Path, variables: &[(&str, &str)]) -> anyhow::Result<Running> {
        let log = fs::File::options().create(true).append(true).open(folder.join("log"))?;
        let mut command = Command::new("sh");
        command.args(["-c", &self.script]).current_dir(folder).env("PATH", programs()?).envs(variables.iter().copied());
        // A group of its own: with it ends what it has started.
        command.process_group(0).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(Running { child: command.spawn()?, folder: folder.to_owned() })
    }

    /// Runs it in `folder` to its end: the exit code, and all that it prints.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn output(&self, folder: &Path, variables: &[(&str, &str)]) -> anyhow::Result<(Option<i32>, String)> {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("exec 2>&1\n{}", self.script)]).current_dir(folder).stdin(Stdio::null());
        let output = command.env("PATH", programs()?).envs(variables.iter().copied()).output()?;
        Ok((output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned()))
    }

    /// Runs it in `folder`, with the data folder of a mesh; what it prints must be what it says.
    ///
    /// # Errors
    /// It cannot be started.
    ///
    /// # Panics
    /// It prints something else, or ends otherwise.
    pub fn run(mut self, folder: &Path, data: &Path, place: &str) -> anyhow::Result<()> {
        let (exit, printed) = self.output(folder, &[("TENON_DATA", &data.to_string_lossy())])?;
        let told = || format!("{place}:\n{}{printed}", self.script);
        assert_eq!(exit, Some(self.exit), "{}", told());
        for line in printed.lines() {
            if self.expected.front().is_some_and(|pattern| matches(pattern, line)) {
                self.expected.pop_front();
            }
        }
        assert!(self.expected.is_empty(), "{}\ndoes not print {:?}", told(), self.expected);
        Ok(())
    }
}

/// Commands of a document that run.
#[derive(Debug)]
pub struct Running {
    child: Child,
    folder: PathBuf,
}

impl Running {
    /// What they have printed.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// Ends them as Ctrl-C does, and waits.
    ///
    /// # Errors
    /// They do not end in time.
    pub fn end(mut self) -> anyhow::Result<ExitStatus> {
        rustix::process::kill_process_group(Pid::from_child(&self.child), Signal::INT)?;
        wait(&mut self.child, SOON)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _gone = rustix::process::kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _gone = self.child.wait();
    }
}

/// Where a shell finds this build's programs, and grpcurl.
fn programs() -> anyhow::Result<OsString> {
    let installed = python::program("grpcurl")?;
    let own = [target_profile_dir()?, installed.parent().context("a program lies in a folder")?.to_owned()];
    Ok(std::env::join_paths(own.into_iter().chain(std::env::split_paths(&std::env::var("PATH")?)))?)
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
    fn a_command_goes_on_after_a_backslash_and_after_a_bar() {
        let document = "```sh\n$ one \\\n  two 1\n# then\n$ three |\n  four\nprinted\n# exit 1\n```\n";
        let shell = Shell::read(&blocks(document)[0], |line| line.replace('1', "2")).unwrap();
        assert_eq!(
            (shell.script.as_str(), shell.commands, shell.exit),
            ("one \\\n  two 2\n[ $? = 0 ] || exit 90\nthree |\n  four\n", 2, 1)
        );
        assert_eq!(shell.expected, ["printed"]);
    }
}
