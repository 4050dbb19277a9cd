//! What was measured: medians of the rounds, tables for people, JSON for machines.

use std::{collections::HashMap, path::Path};

use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use serde_json::{Map, Value, json};

use crate::{
    child::resident,
    own_client::Timed,
    report::{Report, latency},
    rounds::{CROWD, HALF_LOAD, LARGE, SMALL, STREAM},
    subject::{ENVOY_LIST, ENVOY_TREE, OURS, Subject, UNCHECKED},
};

/// Of checks over none, in CPU a call.
const CHECKS: f64 = 1.10;
/// Of our pair over the better Envoy pair, in CPU a call.
const ENVOY: f64 = 0.35;
/// Of a sidecar that has nothing to do.
const IDLE_MB: f64 = 15.0;

/// Of one way and one row; what was not measured is not a number.
#[derive(Clone, Copy)]
pub struct Figures {
    /// Of the two proxies, a call.
    pub cpu_us: f64,
    pub per_second: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
}

impl Default for Figures {
    fn default() -> Self {
        let nan = f64::NAN;
        Self { cpu_us: nan, per_second: nan, p50_us: nan, p99_us: nan, p999_us: nan }
    }
}

impl Figures {
    pub fn timed(cpu_us: f64, timed: &Timed) -> Self {
        let times = latency(&timed.times);
        let micros = |quantile: &str| times[quantile].as_f64().unwrap_or(f64::NAN);
        let per_second = timed.times.len() as f64 / timed.took.as_secs_f64();
        let [p50_us, p99_us, p999_us] = ["p50_us", "p99_us", "p999_us"].map(micros);
        Self { cpu_us, per_second, p50_us, p99_us, p999_us }
    }

    fn array(self) -> [f64; 5] {
        [self.cpu_us, self.per_second, self.p50_us, self.p99_us, self.p999_us]
    }

    fn median(rounds: &[Self]) -> Self {
        let [cpu_us, per_second, p50_us, p99_us, p999_us] = std::array::from_fn(|index| {
            let mut values: Vec<f64> = rounds.iter().map(|figures| figures.array()[index]).collect();
            values.sort_unstable_by(f64::total_cmp);
            values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
        });
        Self { cpu_us, per_second, p50_us, p99_us, p999_us }
    }

    fn json(self) -> Value {
        let [cpu, rate, p50, p99, p999] =
            self.array().map(|value| if value.is_nan() { Value::Null } else { json!(value) });
        json!({"cpu_us_per_call": cpu, "calls_per_second": rate, "p50_us": p50, "p99_us": p99, "p999_us": p999})
    }
}

/// All rounds, by row and way.
#[derive(Default)]
pub struct Measured {
    /// In the order in which they were first measured.
    rows: Vec<(String, &'static str)>,
    rounds: HashMap<(String, &'static str), Vec<Figures>>,
    /// When, whose, and each proxy's bytes.
    residents: Vec<(&'static str, &'static str, Vec<u64>)>,
}

impl Measured {
    pub fn add(&mut self, row: &str, subject: &'static str, figures: Figures) {
        let key = (row.to_owned(), subject);
        let rounds = self.rounds.entry(key.clone()).or_default();
        if rounds.is_empty() {
            self.rows.push(key);
        }
        rounds.push(figures);
    }

    /// Of this round.
    pub fn last(&self, row: &str, subject: &'static str) -> Figures {
        self.rounds.get(&(row.to_owned(), subject)).and_then(|rounds| rounds.last()).copied().unwrap_or_default()
    }

    fn median(&self, row: &str, subject: &'static str) -> Figures {
        Figures::median(self.rounds.get(&(row.to_owned(), subject)).map_or(&[], Vec::as_slice))
    }

    /// What the proxies of each have in memory.
    ///
    /// # Errors
    /// One of them has ended.
    pub fn residents(&mut self, when: &'static str, subjects: &[Subject]) -> anyhow::Result<()> {
        for subject in subjects.iter().filter(|subject| !subject.pids.is_empty()) {
            let bytes = subject.pids.iter().map(|pid| resident(*pid)).collect::<Result<_, _>>()?;
            self.residents.push((when, subject.name, bytes));
        }
        Ok(())
    }

    /// Prints the tables and writes the JSON. Returns whether every bar was met.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn report(&self, file: &Path) -> anyhow::Result<bool> {
        let mut table = table(&["calls", "through", "CPU µs a call", "calls/s", "p50 µs", "p99 µs", "p99.9 µs"]);
        let (mut before, mut json) = ("", Map::new());
        for (row, subject) in self.sorted() {
            let median = self.median(row, subject);
            let [cpu, rate, p50, p99, p999] = median.array();
            let digits = |value: f64, digits: usize| {
                if value.is_nan() || value == 0.0 { String::new() } else { format!("{value:.digits$}") }
            };
            let name = if before == row { "" } else { row };
            table.add_row([
                name,
                subject,
                &digits(cpu, 1),
                &digits(rate, 0),
                &digits(p50, 0),
                &digits(p99, 0),
                &digits(p999, 0),
            ]);
            before = row;
            if let Some(row) = json.entry(row).or_insert_with(|| json!({})).as_object_mut() {
                row.insert(subject.to_owned(), median.json());
            }
        }
        println!("{table}");
        let mut memory = self::table(&["memory", "of", "caller's proxy MB", "callee's proxy MB"]);
        for (when, subject, bytes) in &self.residents {
            let shown: Vec<String> = bytes.iter().map(|bytes| format!("{:.1}", *bytes as f64 / 1e6)).collect();
            memory.add_row([*when, subject].into_iter().chain(shown.iter().map(String::as_str)));
        }
        println!("{memory}");
        let mut report = Report::default();
        let residents =
            self.residents.iter().map(|(when, subject, bytes)| json!({"when": when, "of": subject, "bytes": bytes}));
        report.data("calls", Value::Object(json));
        report.data("resident", residents.collect());
        self.bars(&mut report);
        report.finish(file)
    }

    fn bars(&self, report: &mut Report) {
        let small = format!("{}, {}", SMALL.name, CROWD.0);
        for shape in [SMALL, LARGE, STREAM] {
            let row = format!("{}, {}", shape.name, CROWD.0);
            let cpu = |subject| self.median(&row, subject).cpu_us;
            let envoy = cpu(ENVOY_LIST).min(cpu(ENVOY_TREE));
            let (checks, against) = (cpu(OURS) / cpu(UNCHECKED), cpu(OURS) / envoy);
            let names =
                [format!("{}: CPU, checks over none", shape.name), format!("{}: CPU, ours over Envoy's", shape.name)];
            if row == small {
                report.bar(&names[0], checks, CHECKS, "×");
                report.bar(&names[1], against, ENVOY, "×");
            } else {
                report.figure(&names[0], json!(checks), format!("{checks:.3} ×"));
                report.figure(&names[1], json!(against), format!("{against:.3} ×"));
            }
        }
        for shape in [SMALL, LARGE, STREAM] {
            let row = format!("{}, {HALF_LOAD}", shape.name);
            let p99 = |subject| self.median(&row, subject).p99_us;
            let against = p99(OURS) / p99(ENVOY_LIST).min(p99(ENVOY_TREE));
            let name = format!("{row}: p99, ours over Envoy's");
            if row.starts_with(SMALL.name) {
                report.bar(&name, against, 1.0, "×");
            } else {
                report.figure(&name, json!(against), format!("{against:.3} ×"));
            }
        }
        let idle = self.residents.iter().filter(|(when, subject, _)| *when == "idle" && *subject == OURS);
        let most = idle.flat_map(|(.., bytes)| bytes).max().copied().unwrap_or(u64::MAX);
        report.bar("idle RSS of a sidecar", most as f64 / 1e6, IDLE_MB, "MB");
    }

    /// Rows together, in the order of the first round.
    fn sorted(&self) -> impl Iterator<Item = (&str, &'static str)> {
        self.rows.iter().map(|(row, subject)| (row.as_str(), *subject))
    }
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(header);
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
