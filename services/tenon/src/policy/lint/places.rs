//! Where each thing of a policy stands: the checked mesh has forgotten most of it.

use std::{collections::HashMap, path::Path};

use mesh_config::{
    SourceFile,
    yaml::{self, At, Node, Value},
};

/// A place in a policy file, as the user can open it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub file: String,
    pub line: u32,
    pub column: u32,
}

/// One step down into a document.
#[derive(Debug, Clone, Copy)]
pub enum Step<'a> {
    /// Into a map.
    Key(&'a str),
    /// Into a list.
    Item(usize),
}

/// Every document of a folder that has no problem, by kind and name.
#[derive(Debug)]
pub struct Places {
    /// What files are joined with.
    folder: String,
    /// Kind → name → file and document. Names are unique within a kind; nameless kinds have one document.
    documents: HashMap<String, HashMap<String, (String, Node)>>,
}

impl Places {
    /// Reads the files again, this time for their places.
    pub fn of(folder: &Path, files: &[SourceFile]) -> Self {
        let mut documents: HashMap<String, HashMap<String, (String, Node)>> = HashMap::new();
        for file in files {
            // They were parsed: there is nothing wrong with them.
            let (nodes, _) = yaml::read(&file.path, &file.text, &mut Vec::new());
            for node in nodes {
                let text = |steps: &[Step<'_>]| {
                    let Value::Text(text) = &walk(&node, steps).0.value else { return String::new() };
                    text.clone()
                };
                let (kind, name) = (text(&[Step::Key("kind")]), text(&[Step::Key("metadata"), Step::Key("name")]));
                documents.entry(kind).or_default().insert(name, (file.path.clone(), node));
            }
        }
        Self { folder: folder.display().to_string(), documents }
    }

    /// The place of a part of a document; of what is around it where there is no such part.
    pub fn part(&self, kind: &str, name: &str, steps: &[Step<'_>]) -> Place {
        let Some((file, node)) = self.documents.get(kind).and_then(|named| named.get(name)) else {
            return Place { file: self.folder.clone(), line: 1, column: 1 };
        };
        let (_, At { line, column }) = walk(node, steps);
        Place { file: Path::new(&self.folder).join(file).display().to_string(), line, column }
    }

    /// The place of a document's name.
    pub fn name(&self, kind: &str, name: &str) -> Place {
        self.part(kind, name, &[Step::Key("metadata"), Step::Key("name")])
    }

    /// The place of a part of a rule: the rule at this index of an allowlist.
    pub fn rule(&self, allowlist: &str, index: usize, steps: &[Step<'_>]) -> Place {
        let rule = [Step::Key("spec"), Step::Key("rules"), Step::Item(index)];
        self.part("Allowlist", allowlist, &[&rule, steps].concat())
    }
}

/// The deepest node that the steps lead to.
fn walk<'n>(mut node: &'n Node, steps: &[Step<'_>]) -> (&'n Node, At) {
    for step in steps {
        let next = match (step, &node.value) {
            (Step::Key(key), Value::Map(entries)) => {
                entries.iter().find(|entry| entry.key == *key).map(|entry| &entry.value)
            }
            (Step::Item(index), Value::List(items)) => items.get(*index),
            _ => None,
        };
        match next {
            Some(next) => node = next,
            None => break,
        }
    }
    (node, node.at)
}
