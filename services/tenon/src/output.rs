//! What goes to standard output: a table on a terminal, aligned text in a pipe, JSON for machines.

use std::io::{self, IsTerminal as _, Write};

use comfy_table::{Attribute, Cell, ContentArrangement, Table, presets};
use serde::Serialize;

use crate::{cli::Format, failure::Failure};

/// Below this many columns a table is not fitted into the terminal.
const NARROW: u16 = 60;

/// What a word means at a glance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    Good,
    Bad,
    Doubtful,
}

/// The standard output of one command.
pub struct Output {
    format: Format,
    terminal: bool,
    colour: bool,
    /// Nobody reads any more.
    closed: bool,
    out: Box<dyn Write + Send>,
}

impl Output {
    /// The process' own standard output. Bold headers only on a terminal, and not when `NO_COLOR` is set.
    pub fn stdout(format: Format) -> Self {
        let terminal = io::stdout().is_terminal();
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            format,
            terminal,
            colour: terminal && !no_color,
            closed: false,
            out: Box::new(io::BufWriter::new(io::stdout())),
        }
    }

    /// Output into anything, as to a pipe.
    pub fn piped(format: Format, out: impl Write + Send + 'static) -> Self {
        Self { format, terminal: false, colour: false, closed: false, out: Box::new(out) }
    }

    /// Whether JSON was asked for.
    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// A word in the colour of its tone, where colours are shown.
    pub fn toned(&self, tone: Tone, word: &str) -> String {
        let colour = match tone {
            Tone::Good => 32,
            Tone::Bad => 31,
            Tone::Doubtful => 33,
        };
        if self.colour { format!("\u{1b}[{colour}m{word}\u{1b}[0m") } else { word.to_owned() }
    }

    /// One line of text. A closed pipe is not an error: whoever reads has seen enough.
    pub fn line(&mut self, text: &str) -> Result<(), Failure> {
        let written = writeln!(self.out, "{text}");
        self.written(written)
    }

    /// A value as indented JSON.
    pub fn json(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        let text =
            serde_json::to_string_pretty(value).map_err(|error| Failure::new(format!("cannot write JSON: {error}")))?;
        self.line(&text)
    }

    /// Makes room for the next of several pictures: on a terminal the last one goes.
    pub fn clear(&mut self) -> Result<(), Failure> {
        let text = if self.terminal { "\u{1b}[H\u{1b}[2J\u{1b}[3J" } else { "\n" };
        let written = self.out.write_all(text.as_bytes());
        self.written(written)
    }

    /// Rows under a header; columns are as wide as they must be.
    pub fn table(&mut self, header: &[&str], rows: &[Vec<String>]) -> Result<(), Failure> {
        let text = if self.terminal { drawn(header, rows, self.colour) } else { aligned(header, rows) };
        let written = self.out.write_all(text.as_bytes());
        self.written(written)
    }

    /// Without format or terminal: bytes as they are, for parts of a longer document.
    pub fn raw(&mut self, text: &str) -> Result<(), Failure> {
        let written = self.out.write_all(text.as_bytes());
        self.written(written)
    }

    /// Hands everything to the operating system; the command's last act.
    pub fn flush(&mut self) -> Result<(), Failure> {
        let written = self.out.flush();
        self.written(written)
    }

    /// Whether nobody reads any more, so that a command that goes on for ever ends.
    pub const fn is_closed(&self) -> bool {
        self.closed
    }

    fn written(&mut self, result: io::Result<()>) -> Result<(), Failure> {
        match result {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.closed = true,
            Err(error) => return Err(Failure::new(format!("cannot write to standard output: {error}"))),
            Ok(()) => {}
        }
        Ok(())
    }
}

fn drawn(header: &[&str], rows: &[Vec<String>], colour: bool) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    // Fitted into a terminal that is too narrow, or that does not say how wide it is, nothing can be read any more.
    if table.width().is_some_and(|width| width >= NARROW) {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    }
    table.set_header(header.iter().map(|name| {
        let cell = Cell::new(name);
        if colour { cell.add_attribute(Attribute::Bold) } else { cell }
    }));
    table.add_rows(rows);
    format!("{table}\n")
}

/// Columns separated by two spaces, no padding after the last: `awk`, `cut` and `grep` work on it.
fn aligned(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|name| name.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let mut push = |cells: &mut dyn Iterator<Item = &str>| {
        let mut line = String::new();
        for (cell, width) in cells.zip(&widths) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 2));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    };
    push(&mut header.iter().map(|name| name.to_uppercase()).collect::<Vec<_>>().iter().map(String::as_str));
    for row in rows {
        push(&mut row.iter().map(String::as_str));
    }
    text
}

/// A moment as RFC 3339 in UTC; an empty text for 0, which stands for "never".
pub fn rfc3339(unix_seconds: u64) -> String {
    match i64::try_from(unix_seconds).ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok()) {
        Some(at) if unix_seconds > 0 => at.to_string(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Vec<String>> {
        vec![vec!["media".into(), "127.0.0.1:1".into()], vec!["tenon-identity".into(), String::new()]]
    }

    #[test]
    fn piped_tables_are_aligned_and_have_no_trailing_spaces() {
        let text = aligned(&["service", "address"], &rows());
        assert_eq!(text, "SERVICE         ADDRESS\nmedia           127.0.0.1:1\ntenon-identity\n");
    }

    #[test]
    fn tables_on_a_terminal_have_no_escape_codes_without_colour() {
        let text = drawn(&["service", "address"], &rows(), false);
        assert!(text.contains('│') && !text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn moments_are_rfc_3339_and_zero_is_never() {
        assert_eq!(rfc3339(1_700_000_000), "2023-11-14T22:13:20Z");
        assert_eq!(rfc3339(0), "");
        assert_eq!(rfc3339(u64::MAX), "");
    }
}
