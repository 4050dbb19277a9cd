//! A part of the benchmark in a process of its own, so that its memory and its threads are its own. It is told what to do
//! by lines of JSON and answers each with one.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context as _, bail};
use serde_json::Value;

/// A child that was started; it ends with this.
pub struct Part {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Part {
    /// Starts this program again as `part`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(part: &str, arguments: &[&str]) -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg(part)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {part}"))?;
        let orders = child.stdin.take().context("it was piped")?;
        let answers = BufReader::new(child.stdout.take().context("it was piped")?);
        Ok(Self { child, orders, answers })
    }

    /// Tells it to begin with something; [`Part::answer`] waits for the end.
    ///
    /// # Errors
    /// It has ended.
    pub fn order(&mut self, order: &Value) -> anyhow::Result<()> {
        writeln!(self.orders, "{order}").context("the part has ended")
    }

    /// Waits for its next answer. Blocks.
    ///
    /// # Errors
    /// It has ended, or failed at what it was told.
    pub fn answer(&mut self) -> anyhow::Result<Value> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            bail!("the part ended: {:?}", self.child.wait());
        }
        Ok(serde_json::from_str(&line)?)
    }

    /// Tells it something and waits for the answer. Blocks.
    ///
    /// # Errors
    /// As [`Part::answer`].
    pub fn ask(&mut self, order: &Value) -> anyhow::Result<Value> {
        self.order(order)?;
        self.answer()
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// In the child: the next order; absent when the parent has gone.
pub fn next_order() -> Option<Value> {
    let mut line = String::new();
    match std::io::stdin().lock().read_line(&mut line) {
        Ok(0) | Err(_) => None,
        Ok(_) => serde_json::from_str(&line).ok(),
    }
}

/// In the child: answers the parent.
pub fn answer(answer: &Value) {
    println!("{answer}");
}

/// Resident memory of a process, in bytes.
///
/// # Errors
/// The system does not say.
pub fn resident(pid: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kilobytes = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    Ok(kilobytes.context("no VmRSS")? << 10)
}
