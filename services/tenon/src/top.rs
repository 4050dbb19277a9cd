//! `tenon top`: the busiest services, methods or tenants of the last seconds.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use serde_json::{Value, json};
use tenon_proto::policy::v1::{TapRequest, TappedCall, tapped_call::Outcome};
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use crate::{
    cli::{By, Top},
    failure::{Answer, Failure},
    operator::Mesh,
    output::{Output, Tone},
    tap::{
        feed::{Feed, Heard},
        took,
    },
};

/// Of which calls are counted.
const WINDOW: Duration = Duration::from_secs(10);
/// Calls a second that each policy service tells at most: what it takes as a rate.
const RATE: u32 = 1_000;
/// Between two tables at least.
const OFTEN: Duration = Duration::from_secs(1);

/// Runs the command until Ctrl-C, or until all tables are drawn.
///
/// # Errors
/// No mesh, no policy service that answers to begin with, a filter that it does not take, or no output that can be written to.
pub async fn run(args: Top) -> Result<Answer, Failure> {
    let request = TapRequest { filter: Some(args.filter.filter(false)), rate: RATE, headers: Vec::new() };
    let mut feed = Feed::begin(Mesh::find(&args.mesh.data)?, &request);
    let mut out = Output::stdout(args.output.output);
    let mut seen = Seen::new(Instant::now());
    let every = args.every.max(OFTEN);
    let mut ticks = interval_at(Instant::now() + every, every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut left = args.rounds;
    while left != Some(0) && !out.is_closed() {
        tokio::select! {
            heard = feed.next() => seen.hear(Instant::now(), args.by, heard?),
            _ = ticks.tick() => {
                let now = Instant::now();
                seen.forget(now);
                draw(&mut out, &seen, now, &args)?;
                left = left.map(|left| left - 1);
            }
            _ = tokio::signal::ctrl_c() => break,
        }
    }
    Ok(Answer::Yes)
}

/// One call, as far as it is counted.
struct Call {
    at: Instant,
    key: String,
    end: End,
    microseconds: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Fine,
    Refused,
    Failed,
}

/// The calls of the last seconds.
struct Seen {
    since: Instant,
    calls: VecDeque<Call>,
    /// How many were not told, and when that was said.
    left_out: VecDeque<(Instant, u64)>,
    sidecars: u32,
    away: Option<String>,
}

/// A line of the table.
#[derive(Default)]
struct Line {
    calls: u64,
    refused: u64,
    failed: u64,
    microseconds: Vec<u64>,
}

impl Seen {
    const fn new(since: Instant) -> Self {
        Self { since, calls: VecDeque::new(), left_out: VecDeque::new(), sidecars: 0, away: None }
    }

    fn hear(&mut self, now: Instant, by: By, heard: Heard) {
        match heard {
            Heard::Call(call) => {
                let end = end(&call);
                let TappedCall { service, path, tenant, caller, microseconds, .. } = *call;
                let key = match by {
                    By::Service => service,
                    By::Method => path,
                    By::Tenant => tenant,
                    By::Caller => caller,
                };
                self.calls.push_back(Call { at: now, key, end, microseconds });
                self.forget(now);
            }
            Heard::State { sidecars, left_out } => {
                self.sidecars = sidecars;
                self.left_out.push_back((now, left_out));
                self.away = None;
            }
            Heard::Away(what) => self.away = Some(what),
        }
    }

    fn forget(&mut self, now: Instant) {
        let old = |at: Instant| now.duration_since(at) > WINDOW;
        self.calls.drain(..self.calls.partition_point(|call| old(call.at)));
        self.left_out.drain(..self.left_out.partition_point(|(at, _)| old(*at)));
    }

    /// What stands for one call that was told, and the seconds that are counted.
    fn scale(&self, now: Instant) -> (f64, f64) {
        let left_out: u64 = self.left_out.iter().map(|(_, calls)| calls).sum();
        let told = self.calls.len() as f64;
        let each = if told > 0.0 { (told + left_out as f64) / told } else { 1.0 };
        (each, now.duration_since(self.since).min(WINDOW).as_secs_f64().max(1.0))
    }

    /// The busiest first.
    fn lines(&self) -> Vec<(&str, Line)> {
        let mut lines: HashMap<&str, Line> = HashMap::new();
        for call in &self.calls {
            let line = lines.entry(&call.key).or_default();
            line.calls += 1;
            line.refused += u64::from(call.end == End::Refused);
            line.failed += u64::from(call.end == End::Failed);
            line.microseconds.push(call.microseconds);
        }
        let mut lines: Vec<_> = lines.into_iter().collect();
        lines.iter_mut().for_each(|(_, line)| line.microseconds.sort_unstable());
        lines.sort_by(|(a, left), (b, right)| right.calls.cmp(&left.calls).then(a.cmp(b)));
        lines
    }
}

/// A status that is not OK is a failure whoever is at fault; what was cancelled or broken off is one too.
fn end(call: &TappedCall) -> End {
    match call.outcome() {
        Outcome::Finished if call.status == "0" || call.status.is_empty() => End::Fine,
        Outcome::Refused => End::Refused,
        Outcome::Finished | Outcome::Cancelled | Outcome::Broken | Outcome::Unspecified => End::Failed,
    }
}

impl Line {
    /// Of which so many hundredths are not slower.
    fn quantile(&self, hundredths: usize) -> u64 {
        let index = (self.microseconds.len() * hundredths).div_ceil(100).saturating_sub(1);
        self.microseconds.get(index).copied().unwrap_or_default()
    }
}

fn draw(out: &mut Output, seen: &Seen, now: Instant, args: &Top) -> Result<(), Failure> {
    let (each, seconds) = seen.scale(now);
    let rate = |calls: u64| calls as f64 * each / seconds;
    let all = seen.lines();
    let lines = &all[..all.len().min(args.lines.into())];
    if out.is_json() {
        let line = |(key, line): &(&str, Line)| {
            json!({
                name(args.by): key,
                "callsPerSecond": rate(line.calls),
                "refusedPerSecond": rate(line.refused),
                "failedPerSecond": rate(line.failed),
                "p50Microseconds": line.quantile(50),
                "p99Microseconds": line.quantile(99),
            })
        };
        let rows: Vec<Value> = lines.iter().map(line).collect();
        let told = json!({
            "sidecars": seen.sidecars,
            "seconds": seconds,
            "estimated": each > 1.0,
            "lines": rows,
        });
        out.json(&told)?;
        return out.flush();
    }
    out.clear()?;
    let calls: u64 = all.iter().map(|(_, line)| line.calls).sum();
    let estimated = if each > 1.0 { format!(", estimated from one call in {each:.1}") } else { String::new() };
    out.line(&format!(
        "{} sidecars, {:.1} calls a second in the last {seconds:.0} s{estimated}; Ctrl-C ends",
        seen.sidecars,
        rate(calls)
    ))?;
    if let Some(away) = &seen.away {
        out.line(away)?;
    }
    let rows: Vec<Vec<String>> = lines.iter().map(|(key, line)| row(out, key, line, rate)).collect();
    out.table(&[name(args.by), "calls/s", "refused/s", "failed/s", "p50", "p99"], &rows)?;
    let more = all.len() - lines.len();
    if more > 0 {
        out.line(&format!("and {more} more: --lines shows them, --by and filters narrow them"))?;
    }
    out.flush()
}

fn row(out: &Output, key: &str, line: &Line, rate: impl Fn(u64) -> f64) -> Vec<String> {
    let bad = |calls: u64, tone: Tone| match calls {
        0 => "0".to_owned(),
        calls => out.toned(tone, &format!("{:.1}", rate(calls))),
    };
    let key = if key.is_empty() { "(none)" } else { key };
    vec![
        key.to_owned(),
        format!("{:.1}", rate(line.calls)),
        bad(line.refused, Tone::Bad),
        bad(line.failed, Tone::Doubtful),
        took(line.quantile(50)),
        took(line.quantile(99)),
    ]
}

const fn name(by: By) -> &'static str {
    match by {
        By::Service => "service",
        By::Method => "method",
        By::Tenant => "tenant",
        By::Caller => "caller",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(service: &str, outcome: Outcome, status: &str, microseconds: u64) -> Heard {
        Heard::Call(Box::new(TappedCall {
            service: service.to_owned(),
            outcome: outcome.into(),
            status: status.to_owned(),
            microseconds,
            ..TappedCall::default()
        }))
    }

    #[test]
    fn what_is_older_than_the_window_does_not_count_and_what_was_left_out_does() {
        let begun = Instant::now();
        let mut seen = Seen::new(begun);
        seen.hear(begun, By::Service, call("old", Outcome::Finished, "0", 1));
        let now = begun + WINDOW + Duration::from_secs(1);
        for microseconds in 1..=100 {
            seen.hear(now, By::Service, call("media", Outcome::Finished, "0", microseconds));
        }
        seen.hear(now, By::Service, call("wiki", Outcome::Refused, "PATH_NOT_ALLOWED", 1));
        seen.hear(now, By::Service, call("wiki", Outcome::Finished, "14", 1));
        seen.hear(now, By::Service, Heard::State { sidecars: 3, left_out: 102 });
        let lines = seen.lines();
        let told: Vec<_> = lines.iter().map(|(key, line)| (*key, line.calls, line.refused, line.failed)).collect();
        assert_eq!(told, [("media", 100, 0, 0), ("wiki", 2, 1, 1)]);
        assert_eq!((lines[0].1.quantile(50), lines[0].1.quantile(99)), (50, 99));
        assert_eq!(seen.scale(now), (2.0, 10.0));
    }

    #[test]
    fn without_a_call_nothing_is_divided_by_nothing() {
        let begun = Instant::now();
        let seen = Seen::new(begun);
        assert_eq!(seen.scale(begun), (1.0, 1.0));
        assert_eq!((seen.lines().len(), Line::default().quantile(99)), (0, 0));
    }
}
