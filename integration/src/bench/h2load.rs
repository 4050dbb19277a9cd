//! Calls by h2load, whoever forwards them, and the CPU time of what is in between.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, ensure};

use super::app::message;

/// What is called, and how.
pub struct Load {
    pub proxy: SocketAddr,
    pub authority: String,
    pub path: String,
    pub headers: Vec<String>,
    /// File with the body of each request.
    pub body: PathBuf,
    /// Bytes of each answer's body: refused calls have none.
    pub answer: usize,
    pub connections: usize,
    /// Of each connection at once.
    pub streams: usize,
}

/// What came of it.
#[derive(Clone, Copy, Debug)]
pub struct Ran {
    pub calls: usize,
    pub took: Duration,
}

impl Ran {
    pub fn per_second(self) -> f64 {
        self.calls as f64 / self.took.as_secs_f64()
    }
}

impl Load {
    /// Calls with messages of so many bytes, each answered so many times.
    ///
    /// # Errors
    /// The scratch folder cannot be written.
    pub fn new(proxy: SocketAddr, bytes: usize, messages: usize, scratch: &Path) -> anyhow::Result<Self> {
        let (body, content) = (scratch.join(format!("body-{bytes}")), message(bytes));
        std::fs::write(&body, &content)?;
        let (authority, path) = ("media".to_owned(), "/bench.v1.S0/Get".to_owned());
        let headers = if messages == 1 { Vec::new() } else { vec![format!("{}: {messages}", super::app::MESSAGES)] };
        let answer = content.len() * messages;
        Ok(Self { proxy, authority, path, headers, body, answer, connections: 4, streams: 8 })
    }

    /// Makes the calls.
    ///
    /// # Errors
    /// h2load is not there, or a call was not answered by the app.
    pub fn run(&self, calls: usize) -> anyhow::Result<Ran> {
        let mut load = Command::new("h2load");
        let number = |number: usize| number.to_string();
        load.args(["-n", &number(calls), "-c", &number(self.connections), "-m", &number(self.streams), "-t", "1"]);
        load.args(["-w", "20", "-W", "26", "--connect-to", &self.proxy.to_string()]);
        load.args(["-H", "content-type: application/grpc", "-H", "te: trailers"]);
        for header in &self.headers {
            load.args(["-H", header]);
        }
        load.arg("-d").arg(&self.body).arg(format!("http://{}{}", self.authority, self.path));
        let output = load.output().context("h2load cannot be run: install the package nghttp2-client")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let data = text.lines().find_map(|line| line.strip_prefix("traffic: ")?.rsplit('(').next()?.split(')').next());
        let data: usize = data.context("h2load says nothing of traffic")?.parse()?;
        let errors = text.contains(" 0 failed, 0 errored, 0 timeout");
        ensure!(errors && data >= calls * self.answer, "not every call was answered by the app:\n{text}");
        let took = text.lines().find_map(|line| line.strip_prefix("finished in ")?.split(',').next()).and_then(seconds);
        Ok(Ran { calls, took: took.with_context(|| format!("h2load does not say how long it took:\n{text}"))? })
    }
}

/// `1.24s`, `340.52ms` or `950us`.
fn seconds(text: &str) -> Option<Duration> {
    let digits = text.find(|letter: char| letter.is_ascii_alphabetic())?;
    let scale = match &text[digits..] {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        _ => return None,
    };
    Some(Duration::from_secs_f64(text[..digits].parse::<f64>().ok()? * scale))
}

/// CPU time of a process so far.
///
/// # Errors
/// It has ended.
pub fn cpu(pid: u32) -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may hold anything.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}
