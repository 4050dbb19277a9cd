//! OpenMetrics 1.0 and the older text format of Prometheus, and which of them a scraper asks for.

use std::fmt::Write as _;

use http::{HeaderMap, header};

/// A text format of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `text/plain; version=0.0.4`, which every scraper and `promtool check metrics` read. It has no exemplars.
    Prometheus,
    /// `application/openmetrics-text; version=1.0.0`.
    OpenMetrics,
}

const OPENMETRICS: &str = "application/openmetrics-text";
const PLAIN: &str = "text/plain";

impl Format {
    /// What the request accepts: OpenMetrics where it is named with a weight not below that of plain text (RFC 9110, 12.5.1),
    /// else plain text. Wildcards name nothing.
    #[must_use]
    pub fn accepted(headers: &HeaderMap) -> Self {
        let mut weights = [0.0f32; 2];
        let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        for range in accepted.flat_map(|value| value.split(',')) {
            let mut parts = range.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default();
            let place = match media {
                media if media.eq_ignore_ascii_case(OPENMETRICS) => 0,
                media if media.eq_ignore_ascii_case(PLAIN) => 1,
                _ => continue,
            };
            let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
            let weight = weight.map_or(1.0, |weight| weight.parse().unwrap_or(0.0));
            weights[place] = weights[place].max(weight);
        }
        if weights[0] > 0.0 && weights[0] >= weights[1] { Self::OpenMetrics } else { Self::Prometheus }
    }

    /// The value of `content-type`.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// `openmetrics` in this format.
    #[must_use]
    pub fn of(self, openmetrics: String) -> String {
        match self {
            Self::OpenMetrics => openmetrics,
            Self::Prometheus => plain(&openmetrics),
        }
    }
}

/// Where both formats differ in what prometheus-client writes: a counter's family is named without its suffix in OpenMetrics
/// and with it in plain text, which has no units, no exemplars and no end.
fn plain(openmetrics: &str) -> String {
    let mut plain = String::with_capacity(openmetrics.len());
    let mut help = None;
    for line in openmetrics.lines() {
        if let Some(of) = line.strip_prefix("# HELP ") {
            // Until its type is known.
            help = of.split_once(' ').or(Some((of, "")));
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|of| of.split_once(' ')) {
            let (suffix, kind) = match kind {
                "counter" => ("_total", kind),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                _ => ("", kind),
            };
            if let Some((_, help)) = help.take().filter(|(of, _)| *of == name) {
                let _infallible = writeln!(plain, "# HELP {name}{suffix} {help}");
            }
            let _infallible = writeln!(plain, "# TYPE {name}{suffix} {kind}");
        } else if !line.starts_with('#') {
            let sample = without_exemplar(line);
            match sample.split_once("{} ") {
                // No labels, as people and scripts look for it.
                Some((name, value)) if !name.contains('{') => {
                    let _infallible = writeln!(plain, "{name} {value}");
                }
                _ => {
                    plain.push_str(sample);
                    plain.push('\n');
                }
            }
        }
    }
    plain
}

/// A sample up to ` # {`, unless that stands in the value of a label.
fn without_exemplar(line: &str) -> &str {
    let (mut quoted, mut escaped) = (false, false);
    for (index, byte) in line.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'#' if !quoted => return line[..index].trim_end(),
            _ => {}
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted(values: &[&str]) -> Format {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::ACCEPT, value.parse().expect("a header's value"));
        }
        Format::accepted(&headers)
    }

    #[test]
    fn openmetrics_is_for_those_who_ask_for_it_by_name() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        for (values, format) in [
            (&[][..], Format::Prometheus),
            (&["*/*"], Format::Prometheus),
            (&["text/html, */*;q=0.8"], Format::Prometheus),
            (&["application/openmetrics-text"], Format::OpenMetrics),
            (&["Application/OpenMetrics-Text; version=0.0.1"], Format::OpenMetrics),
            (&[prometheus], Format::OpenMetrics),
            (&["text/plain", "application/openmetrics-text"], Format::OpenMetrics),
            (&["text/plain;version=0.0.4;q=1,application/openmetrics-text;q=0.9"], Format::Prometheus),
            (&["application/openmetrics-text;q=0"], Format::Prometheus),
            (&["application/openmetrics-text;q=much"], Format::Prometheus),
            (&["application/openmetrics-textile"], Format::Prometheus),
        ] {
            assert_eq!(accepted(values), format, "{values:?}");
        }
    }

    #[test]
    fn plain_text_names_counters_with_their_suffix_and_has_no_exemplars() {
        let openmetrics = r#"# HELP a_calls Calls # of all
# TYPE a_calls counter
a_calls_total{x="1 # {\" # {"} 3
# HELP a_seconds Times
# TYPE a_seconds histogram
# UNIT a_seconds seconds
a_seconds_sum 0.5
a_seconds_bucket{le="1.0"} 1 # {trace_id="ab"} 0.5
# HELP b What
# TYPE b unknown
b 1
# EOF
"#;
        let plain = r#"# HELP a_calls_total Calls # of all
# TYPE a_calls_total counter
a_calls_total{x="1 # {\" # {"} 3
# HELP a_seconds Times
# TYPE a_seconds histogram
a_seconds_sum 0.5
a_seconds_bucket{le="1.0"} 1
# HELP b What
# TYPE b untyped
b 1
"#;
        assert_eq!(Format::Prometheus.of(openmetrics.to_owned()), plain);
        assert_eq!(Format::OpenMetrics.of(openmetrics.to_owned()), openmetrics);
    }
}
