use mesh_config::{SourceFile, parse};

use super::*;

/// The YAML blocks of a document, each with what stands before it in the place of lines, so that problems have the
/// document's own lines.
fn blocks(text: &str) -> Vec<SourceFile> {
    let mut blocks: Vec<String> = Vec::new();
    let mut inside = false;
    for (index, line) in text.lines().enumerate() {
        match line {
            "```yaml" => {
                inside = true;
                blocks.push("\n".repeat(index + 1));
            }
            "```" => inside = false,
            line if inside => blocks.last_mut().unwrap().extend([line, "\n"]),
            _ => {}
        }
    }
    let file = |(index, text)| SourceFile { path: format!("block-{index}.yaml"), text };
    blocks.into_iter().enumerate().map(file).collect()
}

#[test]
fn the_page_of_policy_files_is_a_policy_whose_tests_pass() {
    let page = include_str!("../../../../../docs/policy-files.md");
    let mesh = parse(&blocks(page)).unwrap_or_else(|problems| panic!("{problems}"));
    let records = compile(&mesh);
    assert_eq!((mesh.external_clients().len(), mesh.attestors().len(), mesh.quarantines().len()), (1, 1, 1));
    let outcomes: Vec<Outcome> =
        mesh.tests().iter().flat_map(|test| decide(test, &records, 1_800_000_000).unwrap()).collect();
    assert!(outcomes.len() >= 7);
    let failed: Vec<_> = outcomes.iter().filter(|outcome| !outcome.passed).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    let calls: Vec<String> = rows(&outcomes).into_iter().map(|row| row[2].clone()).collect();
    assert_eq!(calls[0], "edge -> media /media.v1.Media/Erase (transaction of acme)");
    assert_eq!(calls[2], "edge -> media /media.v1.Media/Erase (transaction of no tenant)");
}
