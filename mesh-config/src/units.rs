//! Numbers with a unit: durations, sizes and shares. A number without one means nothing.

use std::{ops::RangeInclusive, time::Duration};

use crate::{
    mesh::Setting,
    names::short,
    yaml::{Node, Reader, Value},
};

/// What is counted, and in which units: each as so many of the smallest, which is the first.
struct Quantity {
    what: &'static str,
    units: &'static [(&'static str, u64)],
    form: &'static str,
}

const TIME: Quantity = Quantity {
    what: "duration",
    units: &[("ms", 1), ("s", 1_000), ("m", 60_000)],
    form: "a duration in ms, s or m, as 250ms",
};

const BYTES: Quantity = Quantity {
    what: "size",
    units: &[("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20)],
    form: "a size in B, KiB or MiB, as 64KiB",
};

/// A duration within bounds that are given in milliseconds.
pub(crate) fn duration(reader: &mut Reader<'_>, node: &Node, bounds: RangeInclusive<u64>) -> Option<Duration> {
    duration_or_word(reader, node, bounds, "")
}

/// As [`duration`], where something else may stand too: `or` says what, behind a comma.
pub(crate) fn duration_or_word(
    reader: &mut Reader<'_>,
    node: &Node,
    bounds: RangeInclusive<u64>,
    or: &str,
) -> Option<Duration> {
    TIME.read(reader, node, &bounds, or).map(Duration::from_millis)
}

/// As [`duration`], or `off`.
pub(crate) fn duration_or_off(
    reader: &mut Reader<'_>,
    node: &Node,
    bounds: RangeInclusive<u64>,
) -> Option<Setting<Duration>> {
    or_off(reader, node, |reader, node| duration_or_word(reader, node, bounds, OR_OFF))
}

/// A size in bytes, or `off`.
pub(crate) fn size_or_off(reader: &mut Reader<'_>, node: &Node, bounds: RangeInclusive<u64>) -> Option<Setting<u64>> {
    or_off(reader, node, |reader, node| BYTES.read(reader, node, &bounds, OR_OFF))
}

/// A share of 1 to `most` percent.
pub(crate) fn percent(reader: &mut Reader<'_>, node: &Node, most: u32) -> Option<u32> {
    let expected = format!("a share of 1% to {most}%");
    let text = reader.form(node, &expected)?;
    let share = text.strip_suffix('%').and_then(digits).and_then(|share| u32::try_from(share).ok());
    let share = share.filter(|share| (1..=most).contains(share));
    if share.is_none() {
        reader.problem(node.at, format!("found text {:?}, expected {expected}", short(text)));
    }
    share
}

/// Milliseconds as they would stand in a file: `1m`, `1500ms`.
pub(crate) fn time(ms: u64) -> String {
    TIME.show(ms)
}

/// As [`time`], of a duration.
pub(crate) fn shown(duration: Duration) -> String {
    time(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

/// Bytes as they would stand in a file: `64KiB`.
pub(crate) fn size(bytes: u64) -> String {
    BYTES.show(bytes)
}

/// Behind what else a setting may be.
pub(crate) const OR_OFF: &str = ", or off";

/// `off`, or what is read otherwise.
pub(crate) fn or_off<T>(
    reader: &mut Reader<'_>,
    node: &Node,
    read: impl FnOnce(&mut Reader<'_>, &Node) -> Option<T>,
) -> Option<Setting<T>> {
    match &node.value {
        Value::Text(text) if text == "off" => Some(Setting::Off),
        Value::Text(_)
        | Value::Null
        | Value::Bool(_)
        | Value::Integer(_)
        | Value::Float(_)
        | Value::List(_)
        | Value::Map(_) => read(reader, node).map(Setting::On),
    }
}

impl Quantity {
    /// In the smallest unit.
    fn read(&self, reader: &mut Reader<'_>, node: &Node, bounds: &RangeInclusive<u64>, or: &str) -> Option<u64> {
        let text = reader.form(node, &format!("{}{or}", self.form))?;
        let parsed = text.find(|character: char| !character.is_ascii_digit()).and_then(|end| {
            let (number, unit) = text.split_at(end);
            let (_, factor) = self.units.iter().find(|(name, _)| *name == unit)?;
            (!number.is_empty()).then_some((number, *factor))
        });
        let Self { what, form, .. } = self;
        let Some((number, factor)) = parsed else {
            reader.problem(node.at, format!("{what} {:?} is not well formed, expected {form}{or}", short(text)));
            return None;
        };
        // What no u64 holds is out of any bounds.
        let value = digits(number).and_then(|number| number.checked_mul(factor)).filter(|value| bounds.contains(value));
        if value.is_none() {
            let (least, most) = (self.show(*bounds.start()), self.show(*bounds.end()));
            let message = format!("{what} {:?} is out of bounds, expected {least} to {most}{or}", short(text));
            reader.problem(node.at, message);
        }
        value
    }

    /// In the largest unit of which it is a whole number.
    fn show(&self, value: u64) -> String {
        let whole = self.units.iter().rev().find(|(_, factor)| value >= *factor && value.is_multiple_of(*factor));
        let (unit, factor) = whole.copied().unwrap_or(self.units[0]);
        format!("{}{unit}", value / factor)
    }
}

fn digits(text: &str) -> Option<u64> {
    // `parse` takes a sign too.
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}
