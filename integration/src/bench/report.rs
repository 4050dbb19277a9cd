//! What was measured: a table for people, JSON for machines.

use std::{path::Path, time::Duration};

use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

/// Figures in the order in which they were measured.
#[derive(Default)]
pub struct Report {
    rows: Vec<[String; 3]>,
    json: Map<String, Value>,
    missed: Vec<String>,
}

impl Report {
    /// One figure as it is; `name` is its name in the JSON too.
    pub fn figure(&mut self, name: &str, value: Value, shown: impl Into<String>) {
        self.rows.push([name.to_owned(), shown.into(), String::new()]);
        self.json.insert(name.to_owned(), value);
    }

    /// For the JSON alone.
    pub fn data(&mut self, name: &str, value: Value) {
        self.json.insert(name.to_owned(), value);
    }

    /// One figure and the bar that it must not exceed.
    pub fn bar(&mut self, name: &str, value: f64, bar: f64, unit: &str) {
        let met = value <= bar;
        let verdict = format!("≤ {bar} {unit}: {}", if met { "met" } else { "MISSED" });
        if !met {
            self.missed.push(format!("{name}: {value:.3} {unit}, where {bar} {unit} is the bar"));
        }
        self.rows.push([name.to_owned(), format!("{value:.3} {unit}"), verdict]);
        self.json.insert(name.to_owned(), json!(value));
    }

    /// Times as [`latency`] gives them, in one row.
    pub fn times(&mut self, name: &str, figures: &Value) {
        let micros = |quantile: &str| shown_micros(figures[quantile].as_f64().unwrap_or(f64::NAN));
        let rate = figures["per_second"].as_f64().map(|rate| format!(", {rate:.0}/s")).unwrap_or_default();
        let (p50, p99, max) = (micros("p50_us"), micros("p99_us"), micros("max_us"));
        self.figure(name, figures.clone(), format!("p50 {p50}, p99 {p99}, max {max}{rate}"));
    }

    /// A time in seconds.
    pub fn seconds(&mut self, name: &str, seconds: &Value) {
        let shown = seconds.as_f64().map_or_else(|| seconds.to_string(), |seconds| format!("{seconds:.2} s"));
        self.figure(name, seconds.clone(), shown);
    }

    /// An amount of memory or of disk, in bytes.
    pub fn bytes(&mut self, name: &str, bytes: &Value) {
        let shown = bytes.as_f64().map_or_else(|| bytes.to_string(), |bytes| format!("{:.1} MB", bytes / 1e6));
        self.figure(name, bytes.clone(), shown);
    }

    /// Prints the table and writes the JSON. Returns whether every bar was met.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn finish(self, file: &Path) -> anyhow::Result<bool> {
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED).set_header(["figure", "measured", "bar"]);
        for row in &self.rows {
            table.add_row(row);
        }
        println!("{table}");
        std::fs::write(file, serde_json::to_string_pretty(&self.json)?)?;
        println!("as JSON: {}", file.display());
        for missed in &self.missed {
            println!("missed: {missed}");
        }
        Ok(self.missed.is_empty())
    }
}

/// Nanoseconds up to ten minutes, with three digits kept.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 600_000_000_000, 3).expect("the bounds are allowed")
}

/// `histogram` in microseconds.
pub fn latency(histogram: &Histogram<u64>) -> Value {
    let micros = |nanos: u64| Duration::from_nanos(nanos).as_secs_f64() * 1e6;
    json!({
        "p50_us": micros(histogram.value_at_quantile(0.5)),
        "p99_us": micros(histogram.value_at_quantile(0.99)),
        "p999_us": micros(histogram.value_at_quantile(0.999)),
        "max_us": micros(histogram.max()),
        "count": histogram.len(),
    })
}

fn shown_micros(micros: f64) -> String {
    if micros < 1000.0 { format!("{micros:.2} µs") } else { format!("{:.1} ms", micros / 1000.0) }
}
