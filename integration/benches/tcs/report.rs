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

    /// What another process measured: its figures become ours.
    pub fn take(&mut self, prefix: &str, figures: &Value) {
        for (name, value) in figures.as_object().into_iter().flatten() {
            let shown = value.as_f64().map_or_else(|| value.to_string(), |number| format!("{number:.3}"));
            self.figure(&format!("{prefix}{name}"), value.clone(), shown);
        }
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

/// Nanoseconds, with three digits kept.
pub fn histogram() -> Histogram<u64> {
    Histogram::new(3).expect("three digits are allowed")
}

/// `histogram` as p50, p99 and max in microseconds, and as a rate.
pub fn latency(histogram: &Histogram<u64>, over: Duration) -> Value {
    let micros = |nanos: u64| Duration::from_nanos(nanos).as_secs_f64() * 1e6;
    json!({
        "p50_us": micros(histogram.value_at_quantile(0.5)),
        "p99_us": micros(histogram.value_at_quantile(0.99)),
        "p999_us": micros(histogram.value_at_quantile(0.999)),
        "max_us": micros(histogram.max()),
        "per_second": (u32::try_from(histogram.len()).map_or(f64::MAX, f64::from)) / over.as_secs_f64(),
    })
}
