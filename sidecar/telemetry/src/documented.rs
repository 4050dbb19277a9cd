//! What `docs/telemetry.md` lists, for the tests that compare it.

/// Names and types of the metrics in the tables below the headings `sections`, sorted. A name is as OpenMetrics has it:
/// a counter's without its suffix.
#[must_use]
pub fn listed(docs: &str, sections: &[&str]) -> Vec<(String, String)> {
    let mut within = false;
    let mut listed = Vec::new();
    for line in docs.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            within = sections.contains(&heading);
        }
        if let Some((name, rest)) = line.strip_prefix("| `").and_then(|row| row.split_once('`')).filter(|_| within) {
            let kind = rest.split('|').nth(1).unwrap_or_default().trim();
            listed.push((name.to_owned(), kind.to_owned()));
        }
    }
    listed.sort_unstable();
    listed
}

/// Names and types of the metrics in a text in OpenMetrics, sorted.
#[must_use]
pub fn emitted(openmetrics: &str) -> Vec<(String, String)> {
    let types = openmetrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let mut emitted: Vec<_> = types.map(|(name, kind)| (name.to_owned(), kind.to_owned())).collect();
    emitted.sort_unstable();
    emitted
}
