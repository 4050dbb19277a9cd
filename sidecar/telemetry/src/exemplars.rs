//! Exemplars in the text of OpenMetrics: calls that show what a bucket is made of.
//!
//! They are put into the text when it is written: `prometheus-client` 0.25 makes an exemplar only where it counts itself, one
//! value at a time, and not for counts that are merged from several threads.

use std::{fmt::Write as _, time::Duration};

/// One call.
#[derive(Clone, Copy, Debug)]
pub struct Exemplar {
    /// Of its trace.
    pub trace: [u8; 16],
    /// What was counted, in the unit of the histogram.
    pub value: f64,
    /// When, since 1970.
    pub at: Duration,
}

/// `openmetrics` with `exemplars` behind the buckets of the histogram `name`: one entry for each, in the order of the text.
#[must_use]
pub fn with_exemplars(openmetrics: &str, name: &str, exemplars: &[Option<Exemplar>]) -> String {
    if exemplars.iter().all(Option::is_none) {
        return openmetrics.to_owned();
    }
    let bucket = format!("{name}_bucket{{");
    let mut exemplars = exemplars.iter();
    let mut text = String::with_capacity(openmetrics.len() + exemplars.len());
    for line in openmetrics.lines() {
        text.push_str(line);
        if line.starts_with(&bucket)
            && let Some(Some(exemplar)) = exemplars.next()
        {
            let (trace, at) = (u128::from_be_bytes(exemplar.trace), exemplar.at.as_secs_f64());
            let _infallible = write!(text, " # {{trace_id=\"{trace:032x}\"}} {} {at:.3}", exemplar.value);
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exemplar_stands_behind_its_bucket() {
        let text = "# TYPE a histogram\na_sum{x=\"1\"} 2\na_bucket{x=\"1\",le=\"1\"} 1\na_bucket{x=\"1\",le=\"+Inf\"} 2\n\
                    # TYPE ab histogram\nab_bucket{le=\"+Inf\"} 1\n# EOF\n";
        let exemplar = Exemplar { trace: [0xab; 16], value: 1.5, at: Duration::from_millis(1_700_000_000_250) };
        let shown = with_exemplars(text, "a", &[None, Some(exemplar)]);
        let line = "a_bucket{x=\"1\",le=\"+Inf\"} 2";
        let behind = format!("{line} # {{trace_id=\"{}\"}} 1.5 1700000000.250", "ab".repeat(16));
        assert_eq!(shown, text.replacen(line, &behind, 1));
        assert_eq!(with_exemplars(text, "a", &[None, None]), text);
    }
}
