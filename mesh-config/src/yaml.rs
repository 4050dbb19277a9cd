//! YAML as a tree in which every node knows where it stands, and a reader that gathers all that is wrong with it.
//!
//! Stricter than YAML: a key that stands twice, a key that is not a scalar, tags of one's own and control characters
//! are problems. Aliases are resolved, within a budget.

mod deserialize;
mod reader;
pub(crate) mod shape;
mod syntax;

use std::collections::{BTreeMap, HashMap};

use saphyr::Scalar;
use saphyr_parser::{Event, Parser, ScalarStyle, Span, StrInput, Tag};

use crate::Problem;

pub(crate) use self::{deserialize::from_node, reader::one_of};
pub use self::{
    reader::{Fields, Reader, suggestion},
    shape::{Field, Form, Map},
};

/// How deep lists and maps may stand in one another. Policy files need eight.
const MAX_DEPTH: usize = 64;
/// How many nodes anchors and aliases may add to one file: a few nested ones would otherwise grow without end.
const MAX_ALIASED_NODES: usize = 100_000;
/// So many bytes of text count as a node more.
const NODE_BYTES: usize = 64;

/// A place in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct At {
    /// Counted from 1.
    pub line: u32,
    /// In characters, counted from 1.
    pub column: u32,
}

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Its first character.
    pub at: At,
    /// What stands there.
    pub value: Value,
}

/// What stands at a place, by the core schema of YAML 1.2.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Nothing, `~` or `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Integer(i64),
    /// Any other number.
    Float(f64),
    /// Text, quoted or not.
    Text(String),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping, in the order of the file; no key stands twice.
    Map(Vec<Entry>),
}

/// One key of a map with its value.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The key as it is written, without quotes.
    pub key: String,
    /// Where the key stands.
    pub at: At,
    /// The value.
    pub value: Node,
}

impl Value {
    /// The value in words, for messages: `the number 12`.
    pub fn describe(&self) -> String {
        match self {
            Self::Null => "nothing".to_owned(),
            Self::Bool(value) => format!("the boolean {value}"),
            Self::Integer(value) => format!("the number {value}"),
            Self::Float(value) => format!("the number {value}"),
            Self::Text(text) => format!("text {:?}", crate::names::short(text)),
            Self::List(_) => "a list".to_owned(),
            Self::Map(_) => "a map".to_owned(),
        }
    }

    /// How many nodes there are in it, itself counted; long texts count more.
    fn nodes(&self) -> usize {
        let of_text = |text: &str| text.len() / NODE_BYTES;
        match self {
            Self::List(items) => 1 + items.iter().map(|item| item.value.nodes()).sum::<usize>(),
            Self::Map(entries) => {
                1 + entries.iter().map(|entry| of_text(&entry.key) + entry.value.value.nodes()).sum::<usize>()
            }
            Self::Text(text) => 1 + of_text(text),
            Self::Null | Self::Bool(_) | Self::Integer(_) | Self::Float(_) => 1,
        }
    }
}

/// Reads every document of a file that holds something, and adds what is wrong to the problems.
///
/// Returns the documents before the first syntax error, and whether that was all of them.
pub fn read(file: &str, text: &str, problems: &mut Vec<Problem>) -> (Vec<Node>, bool) {
    let mut builder =
        Builder { file, problems, done: Vec::new(), open: Vec::new(), anchors: BTreeMap::new(), aliased: 0 };
    // The scanner takes U+0000 for the end of the file: what stands behind it would go unseen.
    if let Some((at, character)) = control_character(text) {
        let message =
            format!("control character U+{:04X}, expected printable text (in double quotes: \\x..)", character as u32);
        builder.problem(at, message);
        return (Vec::new(), false);
    }
    let complete = builder.run(Parser::new_from_str(text)).is_ok();
    (builder.done, complete)
}

fn control_character(text: &str) -> Option<(At, char)> {
    let (mut line, mut column) = (1, 1);
    for character in text.chars() {
        match character {
            '\n' => (line, column) = (line + 1, 0),
            '\t' | '\r' | '\u{85}' => {}
            other if other.is_control() => return Some((At { line, column }, other)),
            _ => {}
        }
        column += 1;
    }
    None
}

/// Reading of the file ended early; the problem is already noted.
struct Stopped;

/// Builds trees from the parser's events, without recursion.
struct Builder<'f> {
    /// The file's name in problems.
    file: &'f str,
    /// Where problems go.
    problems: &'f mut Vec<Problem>,
    /// Whole documents.
    done: Vec<Node>,
    /// Lists and maps whose end has not come, the outermost first.
    open: Vec<Open>,
    /// What aliases of this document may stand for.
    anchors: BTreeMap<usize, Node>,
    /// Nodes that anchors and aliases have added so far.
    aliased: usize,
}

/// A list or map whose end has not come.
struct Open {
    at: At,
    /// 0: none.
    anchor: usize,
    inside: Inside,
}

enum Inside {
    List(Vec<Node>),
    /// The places of its keys beside it, to find the second of a kind in a map of any size.
    Map(Vec<Entry>, HashMap<String, At>, Key),
}

/// What a map waits for.
enum Key {
    /// A key.
    Awaited,
    /// The value of this key.
    Read(String, At),
    /// The value of a key that cannot be one, to pass over it.
    Refused,
}

impl<'f> Builder<'f> {
    fn run(&mut self, mut parser: Parser<'f, StrInput<'f>>) -> Result<(), Stopped> {
        while let Some(event) = parser.next_event() {
            match event {
                Ok((event, span)) => self.event(event, span)?,
                Err(error) => {
                    let message = syntax::message(error.info(), self.open.last().map(|open| open.at));
                    return Err(self.stop(at(*error.marker()), message));
                }
            }
        }
        Ok(())
    }

    fn event(&mut self, event: Event<'_>, span: Span) -> Result<(), Stopped> {
        let place = at(span.start);
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) => {}
            Event::DocumentEnd => self.anchors.clear(),
            Event::SequenceStart(anchor, tag) => {
                self.check_tag(tag.as_deref(), place);
                self.open(Open { at: place, anchor, inside: Inside::List(Vec::new()) })?;
            }
            Event::MappingStart(anchor, tag) => {
                self.check_tag(tag.as_deref(), place);
                self.open(Open { at: place, anchor, inside: Inside::Map(Vec::new(), HashMap::new(), Key::Awaited) })?;
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(Open { at, anchor, inside }) = self.open.pop() {
                    let value = match inside {
                        Inside::List(items) => Value::List(items),
                        Inside::Map(entries, ..) => Value::Map(entries),
                    };
                    self.add(Node { at, value }, anchor)?;
                }
            }
            Event::Scalar(text, style, anchor, tag) => {
                self.check_tag(tag.as_deref(), place);
                if let Some(Open { inside: Inside::Map(.., key @ Key::Awaited), .. }) = self.open.last_mut() {
                    *key = Key::Read(text.into_owned(), place);
                } else {
                    let value = self.scalar(&text, style, tag.as_deref(), place);
                    self.add(Node { at: place, value }, anchor)?;
                }
            }
            Event::Alias(anchor) => self.alias(anchor, place)?,
        }
        Ok(())
    }

    fn open(&mut self, open: Open) -> Result<(), Stopped> {
        if self.open.len() >= MAX_DEPTH {
            let message = format!("lists and maps stand in one another too deep, expected at most {MAX_DEPTH} levels");
            return Err(self.stop(open.at, message));
        }
        self.open.push(open);
        Ok(())
    }

    fn alias(&mut self, anchor: usize, place: At) -> Result<(), Stopped> {
        let Some(node) = self.anchors.get(&anchor).cloned() else {
            let message = match self.open.iter().any(|open| open.anchor == anchor) {
                true => "an alias inside of what it stands for, expected one of an anchor that is closed before it",
                false => "an alias of an anchor in another document, expected one of its own document",
            };
            return Err(self.stop(place, message.to_owned()));
        };
        self.charge(&node.value, place)?;
        if let (Some(Open { inside: Inside::Map(.., key @ Key::Awaited), .. }), Value::Text(text)) =
            (self.open.last_mut(), &node.value)
        {
            *key = Key::Read(text.clone(), place);
        } else {
            self.add(Node { at: place, value: node.value }, 0)?;
        }
        Ok(())
    }

    /// Counts a copy that an anchor or an alias makes.
    fn charge(&mut self, copy: &Value, place: At) -> Result<(), Stopped> {
        self.aliased += copy.nodes();
        if self.aliased > MAX_ALIASED_NODES {
            let message = format!(
                "anchors and aliases make this file too large, expected at most {MAX_ALIASED_NODES} nodes of them"
            );
            return Err(self.stop(place, message));
        }
        Ok(())
    }

    /// Puts a whole node where it belongs: into the innermost open list or map, or among the documents.
    fn add(&mut self, node: Node, anchor: usize) -> Result<(), Stopped> {
        if anchor > 0 {
            self.charge(&node.value, node.at)?;
            self.anchors.insert(anchor, node.clone());
        }
        let problem = match self.open.last_mut() {
            None => {
                if node.value != Value::Null {
                    self.done.push(node);
                }
                return Ok(());
            }
            Some(Open { inside: Inside::List(items), .. }) => {
                items.push(node);
                return Ok(());
            }
            Some(Open { inside: Inside::Map(entries, places, key), .. }) => {
                match std::mem::replace(key, Key::Awaited) {
                    Key::Awaited => {
                        *key = Key::Refused;
                        Some((node.at, format!("{} as a key, expected the name of a field", node.value.describe())))
                    }
                    Key::Refused => None,
                    Key::Read(key, at) => match places.insert(key.clone(), at) {
                        Some(At { line, column }) => Some((
                            at,
                            format!("key {key:?} stands twice, expected it once: the first is at {line}:{column}"),
                        )),
                        None => {
                            entries.push(Entry { key, at, value: node });
                            None
                        }
                    },
                }
            }
        };
        if let Some((at, message)) = problem {
            self.problem(at, message);
        }
        Ok(())
    }

    fn scalar(&mut self, text: &str, style: ScalarStyle, tag: Option<&Tag>, place: At) -> Value {
        let tag = tag.map(|tag| std::borrow::Cow::Owned(tag.clone()));
        match Scalar::parse_from_cow_and_metadata(text.into(), style, tag.as_ref()) {
            Some(Scalar::Null) => Value::Null,
            Some(Scalar::Boolean(value)) => Value::Bool(value),
            Some(Scalar::Integer(value)) => Value::Integer(value),
            Some(Scalar::FloatingPoint(value)) => Value::Float(value.into_inner()),
            Some(Scalar::String(text)) => Value::Text(text.into_owned()),
            None => {
                let tag = tag.map(|tag| tag.suffix.clone()).unwrap_or_default();
                self.problem(
                    place,
                    format!("text {:?} has the tag !!{tag}, expected a value of that type", crate::names::short(text)),
                );
                Value::Null
            }
        }
    }

    fn check_tag(&mut self, tag: Option<&Tag>, place: At) {
        if let Some(tag) = tag.filter(|tag| !tag.is_yaml_core_schema()) {
            self.problem(place, format!("unknown tag {}{}, expected no tag", tag.handle, tag.suffix));
        }
    }

    fn stop(&mut self, at: At, message: String) -> Stopped {
        self.problem(at, message);
        Stopped
    }

    fn problem(&mut self, at: At, message: String) {
        let file = self.file.to_owned();
        self.problems.push(Problem { file, line: at.line, column: at.column, message });
    }
}

fn at(marker: saphyr_parser::Marker) -> At {
    let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
    At { line: number(marker.line()).max(1), column: number(marker.col()).saturating_add(1) }
}
