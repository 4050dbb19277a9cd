//! A line of JSON as a tree in which every value knows where it stands. Only for what was found wrong: it is slower than
//! reading the record, and it takes for granted that the line is JSON.

use std::{iter::Peekable, str::CharIndices};

use crate::yaml::{At, Entry, Node, Value};

/// The tree; `None` for what is no JSON.
pub(super) fn tree(line: &str) -> Option<Node> {
    Scan { text: line, rest: line.char_indices().peekable(), column: 1 }.value()
}

struct Scan<'l> {
    text: &'l str,
    rest: Peekable<CharIndices<'l>>,
    /// Of the next character.
    column: u32,
}

impl Scan<'_> {
    /// Lists and maps stand in one another no deeper than the JSON reader allows, which went before.
    fn value(&mut self) -> Option<Node> {
        let first = self.peek()?;
        let at = self.at();
        let value = match first {
            '{' => Value::Map(self.items('}', Self::entry)?),
            '[' => Value::List(self.items(']', Self::value)?),
            '"' => Value::Text(self.string()?),
            _ => self.word()?,
        };
        Some(Node { at, value })
    }

    fn items<T>(&mut self, end: char, mut item: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let mut items = Vec::new();
        self.take()?;
        while self.peek()? != end {
            items.push(item(self)?);
            if self.peek()? == ',' {
                self.take()?;
            }
        }
        self.take()?;
        Some(items)
    }

    fn entry(&mut self) -> Option<Entry> {
        self.peek()?;
        let at = self.at();
        let key = self.string()?;
        self.peek().filter(|&colon| colon == ':')?;
        self.take()?;
        Some(Entry { key, at, value: self.value()? })
    }

    fn string(&mut self) -> Option<String> {
        let (from, _) = self.take().filter(|&(_, quote)| quote == '"')?;
        loop {
            match self.take()? {
                (_, '\\') => _ = self.take()?,
                (to, '"') => return serde_json::from_str(self.text.get(from..=to)?).ok(),
                _ => {}
            }
        }
    }

    /// A number, `true`, `false` or `null`.
    fn word(&mut self) -> Option<Value> {
        let mut word = String::new();
        while let Some(&(_, next)) = self.rest.peek()
            && (next.is_ascii_alphanumeric() || matches!(next, '+' | '-' | '.'))
        {
            word.push(next);
            self.take()?;
        }
        match word.as_str() {
            "null" => Some(Value::Null),
            "true" => Some(Value::Bool(true)),
            "false" => Some(Value::Bool(false)),
            number => match number.parse() {
                Ok(whole) => Some(Value::Integer(whole)),
                Err(_) => number.parse().ok().map(Value::Float),
            },
        }
    }

    /// The next character that is not white space.
    fn peek(&mut self) -> Option<char> {
        while self.rest.peek().is_some_and(|(_, next)| next.is_ascii_whitespace()) {
            self.take();
        }
        self.rest.peek().map(|(_, next)| *next)
    }

    fn take(&mut self) -> Option<(usize, char)> {
        self.column = self.column.saturating_add(1);
        self.rest.next()
    }

    const fn at(&self) -> At {
        At { line: 1, column: self.column }
    }
}
