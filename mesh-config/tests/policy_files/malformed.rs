//! Each file of `tests/malformed` has one mistake, and beside it stands what is told of it.
//!
//! They are read with `base.yaml` beside them, but for those named `mesh-*`. In `yaml` are those that are no YAML or not
//! the part of it that we take, in `shape` those that the schema refuses too, in `meaning` the others.

use std::fs;

use crate::documents::{below, compare, yaml_files};

#[test]
fn each_mistake_gives_exactly_its_problem() {
    let base = fs::read_to_string(below("tests/malformed/base.yaml")).unwrap();
    let mut wrong = String::new();
    let mut files = 0;
    for path in ["yaml", "shape", "meaning"].iter().flat_map(|kind| yaml_files(&below("tests/malformed").join(kind))) {
        let dir = tempfile::tempdir().unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        if !name.starts_with("mesh-") {
            fs::write(dir.path().join("base.yaml"), &base).unwrap();
        }
        fs::copy(&path, dir.path().join(name)).unwrap();
        let came = match mesh_config::load(dir.path()) {
            Ok(_) => "no problem\n".to_owned(),
            Err(problems) => format!("{problems}\n").replace(&format!("{}/", dir.path().display()), ""),
        };
        for line in came.lines() {
            let whole = line.split(':').count() >= 4 && line.contains(", expected ");
            if !whole {
                wrong += &format!("=== {}\nnot a place, what is wrong and what was expected: {line}\n", path.display());
            }
        }
        wrong += &compare(&path.with_extension("txt"), &came).err().unwrap_or_default();
        files += 1;
    }
    assert!(wrong.is_empty(), "\n{wrong}");
    assert!(files >= 200, "{files}");
}

#[test]
fn no_expectation_stands_without_its_file() {
    for kind in ["yaml", "shape", "meaning"] {
        for entry in fs::read_dir(below("tests/malformed").join(kind)).unwrap() {
            let path = entry.unwrap().path();
            assert!(path.with_extension("yaml").is_file(), "{}", path.display());
        }
    }
}
