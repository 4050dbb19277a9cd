//! Takes typed values out of nodes and notes each that is not what it should be.

use std::{fmt::Display, ops::RangeInclusive, str::FromStr};

use super::{At, Entry, Map, Node, Value, shape::words};
use crate::{Problem, names::short};

/// Reads the nodes of one file. Every method that returns `None` has noted why.
#[derive(Debug)]
pub struct Reader<'f> {
    /// The file's name in problems.
    file: &'f str,
    /// What was wrong so far.
    problems: &'f mut Vec<Problem>,
}

impl<'f> Reader<'f> {
    /// A reader that adds what is wrong to the given problems.
    pub fn new(file: &'f str, problems: &'f mut Vec<Problem>) -> Self {
        Self { file, problems }
    }

    /// The file's name.
    pub fn file(&self) -> &'f str {
        self.file
    }

    /// Notes a problem: what is wrong, and what was expected.
    pub fn problem(&mut self, at: At, message: impl Into<String>) {
        let file = self.file.to_owned();
        self.problems.push(Problem { file, line: at.line, column: at.column, message: message.into() });
    }

    /// The fields of a map; each that is not known is a problem.
    pub fn fields<'n>(&mut self, node: &'n Node, map: &'static Map) -> Option<Fields<'n>> {
        let known: Vec<&str> = map.names().collect();
        let Value::Map(entries) = &node.value else {
            self.expected(node, &format!("{}: a map with {}", map.what, known.join(", ")));
            return None;
        };
        for entry in entries.iter().filter(|entry| !known.contains(&entry.key.as_str())) {
            let hint = suggestion(&entry.key, known.iter().copied());
            let message =
                format!("unknown field {:?} in {}{hint}, expected {}", short(&entry.key), map.what, one_of(&known));
            self.problem(entry.at, message);
        }
        Some(Fields { at: node.at, map, entries })
    }

    /// As [`fields`](Self::fields), of a map that must not be empty.
    pub fn some_fields<'n>(&mut self, node: &'n Node, map: &'static Map) -> Option<Fields<'n>> {
        let fields = self.fields(node, map)?;
        if fields.entries.is_empty() {
            let known = map.names().collect::<Vec<_>>().join(", ");
            self.problem(node.at, format!("an empty map, expected {} with at least one of {known}", map.what));
            return None;
        }
        Some(fields)
    }

    /// The entries of a map of the user's own names, at least one. `what` says what of.
    pub fn some_names<'n>(&mut self, node: &'n Node, what: &str) -> Option<&'n [Entry]> {
        match &node.value {
            Value::Map(entries) if !entries.is_empty() => return Some(entries),
            Value::Map(_) => self.problem(node.at, format!("an empty map, expected {what}")),
            Value::Null | Value::Bool(_) | Value::Integer(_) | Value::Float(_) | Value::Text(_) | Value::List(_) => {
                self.expected(node, what);
            }
        }
        None
    }

    /// Text. `what` says what it is to be: "a reason".
    pub fn text<'n>(&mut self, node: &'n Node, what: &str) -> Option<&'n str> {
        match &node.value {
            Value::Text(text) => Some(text),
            Value::Bool(_) | Value::Integer(_) | Value::Float(_) => {
                let found = node.value.describe();
                self.problem(node.at, format!("found {found}, expected {what}: put it in quotes to make it text"));
                None
            }
            Value::Null | Value::List(_) | Value::Map(_) => {
                self.expected(node, what);
                None
            }
        }
    }

    /// Text in a form that no number or boolean has, quoted or not.
    pub fn form<'n>(&mut self, node: &'n Node, what: &str) -> Option<&'n str> {
        let text = if let Value::Text(text) = &node.value { Some(text.as_str()) } else { None };
        if text.is_none() {
            self.expected(node, what);
        }
        text
    }

    /// Text in the form of a type, which says itself what it expects.
    pub fn parsed<T: FromStr<Err: Display>>(&mut self, node: &Node, what: &str) -> Option<T> {
        match self.text(node, what)?.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.problem(node.at, error.to_string());
                None
            }
        }
    }

    /// `true` or `false`.
    pub fn boolean(&mut self, node: &Node) -> Option<bool> {
        match &node.value {
            Value::Bool(value) => Some(*value),
            Value::Null | Value::Integer(_) | Value::Float(_) | Value::Text(_) | Value::List(_) | Value::Map(_) => {
                self.expected(node, "true or false");
                None
            }
        }
    }

    /// A whole number of at least `least`.
    pub fn number(&mut self, node: &Node, least: u64) -> Option<u64> {
        let value = if let Value::Integer(value) = &node.value { u64::try_from(*value).ok() } else { None };
        let value = value.filter(|value| *value >= least);
        if value.is_none() {
            // What is too large for a whole number is a Float.
            let huge =
                matches!(node.value, Value::Float(value) if value.is_finite() && value > 0.0 && value.fract() == 0.0);
            let most = if huge { format!(" and at most {}", i64::MAX) } else { String::new() };
            self.expected(node, &format!("a whole number of at least {least}{most}"));
        }
        value
    }

    /// A whole number in bounds. `or` says what else may stand there, behind a comma; empty: nothing.
    pub fn number_of(&mut self, node: &Node, bounds: RangeInclusive<u32>, or: &str) -> Option<u32> {
        let value = if let Value::Integer(value) = &node.value { u32::try_from(*value).ok() } else { None };
        let value = value.filter(|value| bounds.contains(value));
        if value.is_none() {
            self.expected(node, &format!("a whole number of {} to {}{or}", bounds.start(), bounds.end()));
        }
        value
    }

    /// Any number in bounds, as [`number_of`](Self::number_of).
    pub fn decimal_of(&mut self, node: &Node, bounds: RangeInclusive<f64>, or: &str) -> Option<f64> {
        let value = match &node.value {
            // What is too large to be exact is out of any bounds.
            Value::Integer(value) => i32::try_from(*value).ok().map(f64::from),
            Value::Float(value) => Some(*value),
            Value::Null | Value::Bool(_) | Value::Text(_) | Value::List(_) | Value::Map(_) => None,
        };
        let value = value.filter(|value| bounds.contains(value));
        if value.is_none() {
            self.expected(node, &format!("a number of {} to {}{or}", bounds.start(), bounds.end()));
        }
        value
    }

    /// One of a few words.
    pub fn choice<T: Copy>(&mut self, node: &Node, choices: &[(&'static str, T)]) -> Option<T> {
        let words = words(choices);
        let expected = one_of(&words);
        let text = self.form(node, &expected)?;
        let found = choices.iter().find(|(word, _)| *word == text).map(|(_, choice)| *choice);
        if found.is_none() {
            let hint = suggestion(text, words.iter().copied());
            self.problem(node.at, format!("found text {:?}{hint}, expected {expected}", short(text)));
        }
        found
    }

    /// A list with something in it. `what` says what of: "service names".
    pub fn some_list<'n>(&mut self, node: &'n Node, what: &str) -> Option<&'n [Node]> {
        let items = self.list(node, what)?;
        if items.is_empty() {
            self.problem(node.at, format!("an empty list, expected a list of {what} with at least one of them"));
            return None;
        }
        Some(items)
    }

    /// A list. `what` says what of: "rules".
    pub fn list<'n>(&mut self, node: &'n Node, what: &str) -> Option<&'n [Node]> {
        match &node.value {
            Value::List(items) => Some(items),
            Value::Null | Value::Bool(_) | Value::Integer(_) | Value::Float(_) | Value::Text(_) | Value::Map(_) => {
                self.expected(node, &format!("a list of {what}"));
                None
            }
        }
    }

    /// Notes that something else was expected.
    pub fn expected(&mut self, node: &Node, what: &str) {
        self.problem(node.at, format!("found {}, expected {what}", node.value.describe()));
    }
}

/// The fields of a map.
#[derive(Debug, Clone, Copy)]
pub struct Fields<'n> {
    /// Where the map begins.
    at: At,
    /// What may stand in the map.
    map: &'static Map,
    entries: &'n [Entry],
}

impl<'n> Fields<'n> {
    /// Where the map begins.
    pub fn at(&self) -> At {
        self.at
    }

    /// The value of a field that may be absent.
    pub fn optional(&self, name: &str) -> Option<&'n Node> {
        debug_assert!(self.map.names().any(|known| known == name), "{name} is no field of {}", self.map.what);
        self.entries.iter().find(|entry| entry.key == name).map(|entry| &entry.value)
    }

    /// The value of a field that must be there. `expected` says what should stand in it.
    pub fn required(&self, reader: &mut Reader<'_>, name: &str, expected: &str) -> Option<&'n Node> {
        let found = self.optional(name);
        if found.is_none() {
            reader.problem(self.at, format!("missing field {name:?} in {}, expected {expected}", self.map.what));
        }
        found
    }
}

/// ` (did you mean "x"?)` when one of the candidates is close to what was written, else nothing. Capitals count as
/// what they are capitals of.
pub fn suggestion<'c>(written: &str, candidates: impl IntoIterator<Item = &'c str>) -> String {
    let written = short(written).to_lowercase();
    let near = candidates
        .into_iter()
        .map(|candidate| (strsim::osa_distance(&written, &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len().max(3) / 3)
        .min();
    near.map(|(_, candidate)| format!(" (did you mean {candidate:?}?)")).unwrap_or_default()
}

/// `a, b or c`
pub(crate) fn one_of(words: &[&str]) -> String {
    match words {
        [] => "nothing".to_owned(),
        [word] => (*word).to_owned(),
        [words @ .., last] => format!("{} or {last}", words.join(", ")),
    }
}
