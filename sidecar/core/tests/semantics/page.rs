//! Reads `table.md`. What it does not understand is a mistake on the page, and it says where.

use std::collections::BTreeMap;

use mesh_config::SourceFile;

/// All of the page.
#[derive(Default)]
pub struct Page {
    /// Of every section.
    pub files: Vec<SourceFile>,
    /// JSON Lines.
    pub tenants: String,
    pub sections: Vec<Section>,
}

/// From one `##` to the next.
pub struct Section {
    pub title: String,
    pub line: usize,
    pub called: String,
    pub files: Vec<SourceFile>,
    pub with_partner: bool,
    pub without_tenants: bool,
    /// What the compiler's problem says, when the files are no policy.
    pub refused: Option<String>,
    pub rows: Vec<Row>,
}

/// One line of a table.
pub struct Row {
    pub line: usize,
    pub text: String,
    /// By column.
    pub cells: BTreeMap<String, String>,
}

impl Row {
    /// A cell that is not empty.
    pub fn text_of(&self, column: &str) -> Option<&str> {
        self.cells.get(column).map(String::as_str).filter(|cell| !cell.is_empty())
    }

    /// What stands after a word in the column `more`.
    pub fn word(&self, word: &str) -> Option<&str> {
        let words: Vec<&str> = self.text_of("more")?.split(' ').collect();
        words.chunks(2).find(|pair| pair[0] == word).map(|pair| pair[1])
    }

    /// As [`shown`].
    pub fn outcome(&self) -> String {
        let cell = |column: &str| self.text_of(column).unwrap_or_default();
        shown(cell("outcome"), cell("rule"), cell("app gets"))
    }
}

/// One outcome, for comparing.
pub fn shown(outcome: &str, rule: &str, app_gets: &str) -> String {
    format!("{outcome}, rule {rule:?}, app gets {app_gets:?}")
}

pub fn read(text: &str) -> Page {
    let mut page = Page::default();
    let mut lines = (1..).zip(text.lines());
    let mut columns = Vec::new();
    while let Some((line, text)) = lines.next() {
        if let Some(title) = text.strip_prefix("## ") {
            columns.clear();
            page.sections.push(Section::new(title, line));
        } else if let Some(kind) = text.strip_prefix("```") {
            let block: Vec<&str> = lines.by_ref().map(|(_, text)| text).take_while(|text| *text != "```").collect();
            page.take(kind, block.join("\n") + "\n", line);
        } else if let Some(row) = text.strip_prefix("| ") {
            let cells: Vec<String> = row.split('|').map(|cell| cell.trim().to_owned()).collect();
            let section = page.sections.last_mut().expect("tables stand in sections");
            match cells[0].as_str() {
                "---" => {}
                "caller" => columns = cells,
                _ => section.rows.push(Row::new(&columns, cells, line, text)),
            }
        } else if let Some(section) = page.sections.last_mut() {
            section.take(text);
        }
    }
    page
}

impl Page {
    fn take(&mut self, kind: &str, text: String, line: usize) {
        let files = self.sections.last_mut().map_or(&mut self.files, |section| &mut section.files);
        match kind.split_once(' ').unwrap_or((kind, "policy.yaml")) {
            ("yaml", path) => files.push(SourceFile { path: path.to_owned(), text }),
            ("jsonl", _) => self.tenants = text,
            _ => panic!("line {line}: a block of {kind}"),
        }
    }
}

impl Section {
    fn new(title: &str, line: usize) -> Self {
        Section {
            title: title.to_owned(),
            line,
            called: "media".to_owned(),
            files: Vec::new(),
            with_partner: false,
            without_tenants: false,
            refused: None,
            rows: Vec::new(),
        }
    }

    fn take(&mut self, text: &str) {
        match text {
            "{external client: partner}" => self.with_partner = true,
            "{no tenants yet}" => self.without_tenants = true,
            _ => {
                if let Some(called) = text.strip_prefix("Called: `") {
                    self.called = called.trim_end_matches('`').to_owned();
                } else if let Some(problem) = text.strip_prefix("{refused by the language: ") {
                    self.refused = Some(problem.trim_end_matches('}').to_owned());
                } else {
                    assert!(!text.starts_with('{'), "line {}: {text}", self.line);
                }
            }
        }
    }
}

impl Row {
    fn new(columns: &[String], cells: Vec<String>, line: usize, text: &str) -> Self {
        assert_eq!(cells.len(), columns.len(), "line {line}: {text}");
        let cells: BTreeMap<String, String> = columns.iter().cloned().zip(cells).collect();
        let more = cells.get("more").map(String::as_str).unwrap_or_default();
        let known = |word: &str| ["at", "token", "seen"].contains(&word);
        let words: Vec<&str> = more.split(' ').filter(|word| !word.is_empty()).collect();
        assert!(
            words.len().is_multiple_of(2) && words.iter().step_by(2).all(|word| known(word)),
            "line {line}: {text}"
        );
        Row { line, text: text.to_owned(), cells }
    }
}
