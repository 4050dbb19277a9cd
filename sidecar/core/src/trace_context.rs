//! W3C Trace Context (Recommendation of 23 November 2021): who continues which trace.

use std::fmt;

/// What `traceparent` says: a trace, the span that calls, and whether it is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// Never all zeroes.
    pub trace: [u8; 16],
    /// The span that calls; never all zeroes.
    pub span: [u8; 8],
    /// The caller records it.
    pub sampled: bool,
    /// The other flags: of those that are not known, none is made.
    flags: u8,
}

const SAMPLED: u8 = 1;
/// Flags of Level 2 that say something about the trace's id.
const RANDOM: u8 = 2;
/// Letters of a value of version 00.
const LENGTH: usize = 55;

impl TraceContext {
    /// A trace that begins here. `None` where an id is all zeroes.
    #[must_use]
    pub fn new(trace: [u8; 16], span: [u8; 8], sampled: bool) -> Option<Self> {
        (trace != [0; 16] && span != [0; 8]).then_some(Self { trace, span, sampled, flags: RANDOM })
    }

    /// Reads the value of the one `traceparent` header. A later version's is read as far as it is known (section 3.2.4).
    #[must_use]
    pub fn parse(value: &[u8]) -> Option<Self> {
        let (known, more) = value.split_at_checked(LENGTH)?;
        let dashes = [2, 35, 52].into_iter().all(|at| known[at] == b'-');
        let mut version = [0];
        hex(&known[..2], &mut version)?;
        let fits = match version[0] {
            0xff => false,
            0 => more.is_empty(),
            _ => more.is_empty() || more[0] == b'-',
        };
        if !dashes || !fits {
            return None;
        }
        let (mut trace, mut span, mut flags) = ([0; 16], [0; 8], [0]);
        hex(&known[3..35], &mut trace)?;
        hex(&known[36..52], &mut span)?;
        hex(&known[53..], &mut flags)?;
        let context = Self::new(trace, span, flags[0] & SAMPLED != 0)?;
        Some(Self { flags: flags[0] & RANDOM, ..context })
    }

    /// In hexadecimal.
    #[must_use]
    pub fn trace_id(&self) -> String {
        self.trace.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The same trace as the next hop is to know it, when `span` calls. `None` where that is all zeroes.
    #[must_use]
    pub fn continued_by(self, span: [u8; 8]) -> Option<Self> {
        (span != [0; 8]).then_some(Self { span, ..self })
    }
}

impl fmt::Display for TraceContext {
    /// The value of `traceparent`, version 00.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("00-")?;
        self.trace.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))?;
        formatter.write_str("-")?;
        self.span.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))?;
        write!(formatter, "-{:02x}", self.flags | u8::from(self.sampled))
    }
}

/// Lower-case letters only: others are no trace context.
fn hex(text: &[u8], bytes: &mut [u8]) -> Option<()> {
    let digit = |letter: u8| match letter {
        b'0'..=b'9' => Some(letter - b'0'),
        b'a'..=b'f' => Some(letter - b'a' + 10),
        _ => None,
    };
    for (pair, byte) in text.chunks_exact(2).zip(bytes) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EXAMPLE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn the_example_of_the_recommendation_is_read_and_continued() {
        let context = TraceContext::parse(EXAMPLE.as_bytes()).unwrap();
        assert!(context.sampled);
        assert_eq!(context.to_string(), EXAMPLE);
        let next = context.continued_by([1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
        assert_eq!(next.to_string(), "00-4bf92f3577b34da6a3ce929d0e0e4736-0102030405060708-01");
        assert_eq!(context.continued_by([0; 8]), None);
    }

    #[test]
    fn what_is_none_is_not_read() {
        for wrong in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01more",
            "00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473g-00f067aa0ba902b7-01",
        ] {
            assert_eq!(TraceContext::parse(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn a_later_version_is_read_and_written_as_this_one() {
        let later = "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-ff-what-the-future-will-be-like";
        let context = TraceContext::parse(later.as_bytes()).unwrap();
        assert_eq!(context.to_string(), "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-03");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(trace: [u8; 16], span: [u8; 8], sampled: bool) {
            let context = TraceContext::new(trace, span, sampled);
            prop_assume!(context.is_some());
            prop_assert_eq!(context, TraceContext::parse(context.unwrap().to_string().as_bytes()));
        }

        #[test]
        fn nothing_that_comes_breaks_it(value: Vec<u8>) {
            let _ = TraceContext::parse(&value);
        }
    }
}
