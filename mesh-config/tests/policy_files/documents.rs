//! The documents of the tests, and files that a test can write anew.

use std::{
    fs,
    path::{Path, PathBuf},
};

use mesh_config::yaml::{self, Node, Value};
use serde_json::{Number, Value as Json};

/// Set: tests write what came into the files of what they expected, and fail no more. Read every change of them.
const WRITE: &str = "TENON_WRITE_EXPECTED";

/// A path below the crate.
pub fn below(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Compares with what the file holds: says what differs, or writes it.
pub fn compare(path: &Path, came: &str) -> Result<(), String> {
    let expected = fs::read_to_string(path).unwrap_or_default();
    if expected == came {
        return Ok(());
    }
    if std::env::var_os(WRITE).is_some() {
        fs::write(path, came).unwrap();
        return Ok(());
    }
    Err(format!("=== {}\n--- expected\n{expected}--- came\n{came}", path.display()))
}

/// Every YAML file below a folder, in the order of their paths.
pub fn yaml_files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(yaml_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "yaml") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Each document of a text as an editor's YAML reader would have it; `None`: it is not YAML, or not as we take it.
pub fn documents(text: &str) -> Option<Vec<Json>> {
    let mut problems = Vec::new();
    let (nodes, _) = yaml::read("m.yaml", text, &mut problems);
    problems.is_empty().then(|| nodes.iter().map(json).collect())
}

fn json(node: &Node) -> Json {
    match &node.value {
        Value::Null => Json::Null,
        Value::Bool(value) => Json::Bool(*value),
        Value::Integer(value) => Json::from(*value),
        Value::Float(value) => Number::from_f64(*value).map_or(Json::Null, Json::Number),
        Value::Text(text) => Json::String(text.clone()),
        Value::List(items) => items.iter().map(json).collect(),
        Value::Map(entries) => entries.iter().map(|entry| (entry.key.clone(), json(&entry.value))).collect(),
    }
}
