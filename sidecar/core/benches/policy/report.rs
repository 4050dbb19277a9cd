//! What was measured: a table for people, JSON for machines.

use serde_json::{Map, Value, json};

/// Figures in the order in which they were measured.
#[derive(Default)]
pub struct Report {
    rows: Vec<[String; 3]>,
    json: Map<String, Value>,
    missed: bool,
}

impl Report {
    /// One figure as it is.
    pub fn figure(&mut self, name: &str, value: f64, unit: &str) {
        self.rows.push([name.to_owned(), format!("{value:.1} {unit}"), String::new()]);
        self.json.insert(name.to_owned(), json!(value));
    }

    /// One figure and the bar that it must not exceed.
    pub fn bar(&mut self, name: &str, value: f64, bar: f64, unit: &str) {
        let met = value <= bar;
        self.missed |= !met;
        self.figure(name, value, unit);
        if let Some([_, _, verdict]) = self.rows.last_mut() {
            *verdict = format!("≤ {bar} {unit}: {}", if met { "met" } else { "MISSED" });
        }
    }

    /// Prints the table. Returns whether every bar was met.
    pub fn table(&self) -> bool {
        for [name, measured, verdict] in &self.rows {
            println!("{name:<48} {measured:>16}   {verdict}");
        }
        !self.missed
    }

    /// Prints one JSON object. Returns whether every bar was met.
    pub fn json(&self) -> bool {
        println!("{}", Value::Object(self.json.clone()));
        !self.missed
    }
}
