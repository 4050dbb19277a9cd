//! The record of a policy where it lies: its rules and their texts are found in its bytes, without a copy of them.

use crate::fields::{Field, Fields};

/// Of `tenon.policy.v1.ServicePolicy`.
const RULES: u32 = 5;

/// Of `tenon.policy.v1.Rule`.
pub(super) mod tag {
    pub(in crate::policy) const ALLOWLIST: u32 = 1;
    pub(in crate::policy) const NAME: u32 = 2;
    pub(super) const CALLERS: u32 = 3;
    pub(super) const PATHS: u32 = 4;
    pub(super) const SOURCE: u32 = 9;
}

/// A text, and where it begins in the record.
#[derive(Clone, Copy, Debug)]
pub(super) struct Text<'r> {
    pub(super) text: &'r str,
    pub(super) start: u32,
}

/// The record's bytes without those of its rules, and where the field of each rule begins.
pub(super) fn split(raw: &[u8]) -> Result<(Vec<u8>, Vec<u32>), String> {
    // All places in it are numbers of 32 bits.
    u32::try_from(raw.len()).map_err(|_| "the policy is too large".to_owned())?;
    let (mut rest, mut rules, mut end) = (Vec::new(), Vec::new(), 0);
    let mut fields = Fields::of(raw);
    while let Some(field) = fields.next() {
        // A rule of another wire type is none: prost will say so.
        if let (RULES, Field::Bytes(..)) = field? {
            let this = fields.span();
            rest.extend_from_slice(&raw[end..this.start]);
            rules.push(place(this.start));
            end = this.end;
        }
    }
    rest.extend_from_slice(&raw[end..]);
    Ok((rest, rules))
}

/// The message of the rule whose field begins there, and where it begins itself.
pub(super) fn rule(raw: &[u8], at: u32) -> (&[u8], u32) {
    let field = raw.get(at as usize..).and_then(|raw| Fields::of(raw).next());
    match field {
        Some(Ok((_, Field::Bytes(message, start)))) => (message, at + place(start)),
        Some(Ok((_, Field::Number(_))) | Err(_)) | None => (&[], at),
    }
}

/// Callers of a rule, as they were written.
pub(super) fn callers(rule: &[u8]) -> impl Iterator<Item = &str> {
    texts(rule, tag::CALLERS).map(|(text, _)| text)
}

/// Paths of a rule, as they were written.
pub(super) fn paths(rule: &[u8]) -> impl Iterator<Item = Text<'_>> {
    texts(rule, tag::PATHS).map(|(text, start)| Text { text, start: place(start) })
}

/// Where the texts of a rule stand in its message, so that nobody who wants one goes past all of its callers and paths.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places {
    /// Behind the last of the names of its Allowlist and of itself.
    names_end: u32,
    /// At the first path.
    paths: u32,
    /// At the last source, or at the end where it has none.
    source: u32,
}

impl Places {
    /// Those of a message that was decoded before.
    pub(super) fn of(rule: &[u8]) -> Self {
        let end = place(rule.len());
        let mut places = Self { names_end: 0, paths: end, source: end };
        let mut fields = Fields::of(rule);
        while let Some(Ok((tag, _))) = fields.next() {
            let span = fields.span();
            match tag {
                tag::ALLOWLIST | tag::NAME => places.names_end = place(span.end),
                tag::PATHS => places.paths = places.paths.min(place(span.start)),
                tag::SOURCE => places.source = place(span.start),
                _of_no_text => {}
            }
        }
        places
    }

    /// Of its Allowlist or of itself; empty when it has none. As in every message the last one counts.
    pub(super) fn name(self, rule: &[u8], tag: u32) -> &str {
        let names = rule.get(..self.names_end as usize).unwrap_or_default();
        texts(names, tag).last().map_or("", |(text, _)| text)
    }

    /// Its paths, as they were written.
    pub(super) fn paths(self, rule: &[u8]) -> impl Iterator<Item = &str> {
        texts(rule.get(self.paths as usize..).unwrap_or_default(), tag::PATHS).map(|(text, _)| text)
    }

    /// Where it comes from; may be empty.
    pub(super) fn source(self, rule: &[u8]) -> &str {
        texts(rule.get(self.source as usize..).unwrap_or_default(), tag::SOURCE).next().map_or("", |(text, _)| text)
    }
}

fn texts(rule: &[u8], tag: u32) -> impl Iterator<Item = (&str, usize)> {
    Fields::all(rule, tag).filter_map(|field| match field {
        Field::Bytes(bytes, start) => Some((std::str::from_utf8(bytes).ok()?, start)),
        Field::Number(_) => None,
    })
}

/// Somewhere in a record that [`split`] took.
fn place(at: usize) -> u32 {
    u32::try_from(at).expect("no record is larger")
}

#[cfg(test)]
mod tests;
