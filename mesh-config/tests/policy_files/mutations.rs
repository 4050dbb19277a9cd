//! Files that somebody broke, or that were written half: a mesh or problems with a place come of them, never a panic.

use std::{fs, path::Path, sync::LazyLock};

use mesh_config::{Problems, SourceFile, compile, parse};
use proptest::{prelude::*, sample::Index};

use crate::documents::{below, yaml_files};

/// The demo and the page of policy files, each a whole mesh.
static GOOD: LazyLock<[Vec<SourceFile>; 2]> = LazyLock::new(|| {
    let demo = yaml_files(&below("demo")).into_iter().map(|path| SourceFile {
        path: path.file_name().unwrap().to_str().unwrap().to_owned(),
        text: fs::read_to_string(&path).unwrap(),
    });
    let page = fs::read_to_string(below("../docs/policy-files.md")).unwrap();
    let blocks: Vec<&str> = page.split("```").filter_map(|part| part.strip_prefix("yaml\n")).collect();
    [demo.collect(), vec![SourceFile { path: "page.yaml".to_owned(), text: blocks.join("---\n") }]]
});

/// What is done to a text.
#[derive(Debug, Clone)]
enum Change {
    Cut(Index),
    Drop(Index, usize),
    Repeat(Index, usize),
    Insert(Index, String),
    /// A line goes to another place.
    Move(Index, Index),
}

impl Change {
    fn apply(&self, text: &str) -> String {
        let letters: Vec<char> = text.chars().collect();
        let at = |index: &Index| index.index(letters.len() + 1);
        let end = |from: usize, length: usize| (from + length).min(letters.len());
        let whole = |parts: &[&[char]]| parts.concat().into_iter().collect::<String>();
        match self {
            Self::Cut(index) => whole(&[&letters[..at(index)]]),
            Self::Drop(index, length) => whole(&[&letters[..at(index)], &letters[end(at(index), *length)..]]),
            Self::Repeat(index, length) => whole(&[&letters[..end(at(index), *length)], &letters[at(index)..]]),
            Self::Insert(index, other) => {
                whole(&[&letters[..at(index)], &other.chars().collect::<Vec<_>>(), &letters[at(index)..]])
            }
            Self::Move(from, to) => {
                let mut lines: Vec<&str> = text.lines().collect();
                if !lines.is_empty() {
                    let line = lines.remove(from.index(lines.len()));
                    lines.insert(to.index(lines.len() + 1), line);
                }
                lines.join("\n") + "\n"
            }
        }
    }
}

fn change() -> impl Strategy<Value = Change> {
    let token = prop::sample::select(vec![
        "\n",
        " ",
        "\t",
        "- ",
        "{",
        "}",
        "[",
        "]",
        ": ",
        ", ",
        "'",
        "\"",
        "*a",
        "&a ",
        "|\n",
        "#",
        "---\n",
        "~",
        "-1",
        "1e9",
        "<<: ",
        "!!int ",
        "\u{feff}",
        "\r",
        "é",
        "unheardOf: x\n",
        "tenants: {}\n",
        "\u{0}",
    ]);
    prop_oneof![
        any::<Index>().prop_map(Change::Cut),
        (any::<Index>(), 1..40_usize).prop_map(|(at, length)| Change::Drop(at, length)),
        (any::<Index>(), 1..200_usize).prop_map(|(at, length)| Change::Repeat(at, length)),
        (any::<Index>(), token).prop_map(|(at, token)| Change::Insert(at, token.to_owned())),
        (any::<Index>(), any::<Index>()).prop_map(|(from, to)| Change::Move(from, to)),
    ]
}

/// A mesh that compiles to the same records whenever it does, or problems each of which says where.
fn sound(files: &[SourceFile]) -> Result<(), TestCaseError> {
    match parse(files) {
        Ok(mesh) => {
            let records = compile(&mesh);
            prop_assert_eq!(&records, &compile(&mesh));
            let other_way_round: Vec<SourceFile> = files.iter().rev().cloned().collect();
            prop_assert_eq!(&records, &compile(&parse(&other_way_round).unwrap()));
        }
        Err(problems) => told(&problems, |path| files.iter().any(|file| file.path == path))?,
    }
    Ok(())
}

fn told(Problems(problems): &Problems, known: impl Fn(&str) -> bool) -> Result<(), TestCaseError> {
    prop_assert!(!problems.is_empty());
    for problem in problems {
        prop_assert!(problem.line >= 1 && problem.column >= 1, "{}", problem);
        prop_assert!(!problem.message.contains('\n') && problem.message.len() < 1_000, "{}", problem);
        prop_assert!(known(&problem.file), "{}", problem);
    }
    Ok(())
}

#[test]
fn what_is_broken_here_was_good() {
    for files in GOOD.iter() {
        let mesh = parse(files).unwrap();
        assert!(compile(&mesh).allowlists.len() >= 3);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn a_good_policy_with_a_few_changes_is_one_or_says_where_it_is_not(
        which in any::<Index>(), file in any::<Index>(), changes in prop::collection::vec(change(), 1..4),
    ) {
        let mut files = GOOD[which.index(2)].clone();
        let at = file.index(files.len());
        files[at].text = changes.iter().fold(files[at].text.clone(), |text, change| change.apply(&text));
        sound(&files)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn bytes_of_any_kind_in_a_folder_are_problems_with_a_place(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("any.yaml"), bytes).unwrap();
        let problems = mesh_config::load(dir.path()).unwrap_err();
        told(&problems, |path| Path::new(path).starts_with(dir.path()))?;
    }
}
