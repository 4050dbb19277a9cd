//! A watched folder that goes away, comes back, is half written, or contains itself.

use std::os::unix::fs::symlink;

use tenon_proto::policy::v1::HistoryRequest;

use super::*;

/// A policy in force from the folder, and who asks for it.
async fn begin(world: &World) -> (Running, PolicyClient<Channel>, DescribeResponse) {
    world.write("mesh.yaml", MESH);
    world.write("allowlist.yaml", &rule("first"));
    let running = world.start(Some(world.folder())).await;
    let mut client = world.operator(&running);
    let first = describe(&mut client).await;
    assert_eq!(rules(&first), ["first"]);
    (running, client, first)
}

fn has_problems(described: &DescribeResponse) -> bool {
    !described.problems.is_empty()
}

#[tokio::test]
async fn a_folder_that_vanishes_and_comes_back_changes_nothing() {
    let world = World::new();
    let (running, mut client, first) = begin(&world).await;
    fs::rename(world.folder(), world.dir.path().join("away")).unwrap();
    let gone = until(&mut client, has_problems).await;
    assert_eq!((rules(&gone), gone.revision), (vec!["first"], first.revision));
    fs::rename(world.dir.path().join("away"), world.folder()).unwrap();
    let back = until(&mut client, |described| !has_problems(described)).await;
    assert_eq!((rules(&back), back.revision), (vec!["first"], first.revision));
    let entries = client.history(HistoryRequest::default()).await.unwrap().into_inner().entries;
    assert_eq!(entries.len(), 1, "{entries:?}");
    assert_eq!(entries[0].by, format!("folder {}", world.folder().display()));
    running.stop().await;
}

#[tokio::test]
async fn an_empty_folder_is_not_an_empty_policy() {
    let world = World::new();
    let (running, mut client, first) = begin(&world).await;
    fs::remove_file(world.folder().join("mesh.yaml")).unwrap();
    fs::remove_file(world.folder().join("allowlist.yaml")).unwrap();
    let empty = until(&mut client, has_problems).await;
    assert_eq!((rules(&empty), empty.revision), (vec!["first"], first.revision));
    running.stop().await;
}

#[tokio::test]
async fn a_file_that_is_written_bit_by_bit_is_taken_when_it_is_whole() {
    let world = World::new();
    let (running, mut client, first) = begin(&world).await;
    let text = rule("second");
    let file = world.folder().join("allowlist.yaml");
    fs::write(&file, &text[..text.len() - 20]).unwrap();
    let half = until(&mut client, has_problems).await;
    assert_eq!((rules(&half), half.revision), (vec!["first"], first.revision));
    assert!(half.problems[0].file.ends_with("allowlist.yaml") && half.problems[0].line >= 5, "{half:?}");
    fs::write(&file, &text).unwrap();
    until(&mut client, |described| rules(described) == ["second"] && !has_problems(described)).await;
    running.stop().await;
}

#[tokio::test]
async fn a_folder_that_contains_itself_is_a_problem_until_it_does_not() {
    let world = World::new();
    let (running, mut client, first) = begin(&world).await;
    let inside = world.folder().join("inside");
    symlink(world.folder(), &inside).unwrap();
    let looped = until(&mut client, has_problems).await;
    assert_eq!((rules(&looped), looped.revision), (vec!["first"], first.revision));
    assert!(looped.problems[0].file.ends_with("inside"), "{looped:?}");
    fs::remove_file(&inside).unwrap();
    // A link to itself alone.
    symlink(world.folder().join("self.yaml"), world.folder().join("self.yaml")).unwrap();
    until(&mut client, |described| described.problems.iter().any(|problem| problem.file.ends_with("self.yaml"))).await;
    fs::remove_file(world.folder().join("self.yaml")).unwrap();
    world.write("allowlist.yaml", &rule("second"));
    until(&mut client, |described| rules(described) == ["second"] && !has_problems(described)).await;
    running.stop().await;
}

#[tokio::test]
async fn a_folder_with_problems_is_no_reason_not_to_start() {
    let world = World::new();
    let running = world.start(Some(Path::new("/nowhere/policies").to_owned())).await;
    let mut client = world.operator(&running);
    let described = describe(&mut client).await;
    assert_eq!(described.problems[0].file, "/nowhere/policies");
    let applied = apply(&mut client, &[("a.yaml", MESH)]).await;
    assert!(applied.problems.is_empty());
    running.stop().await;
}

#[tokio::test]
async fn the_swap_of_a_config_map_takes_effect_at_once() {
    let world = World::new();
    let generation = |name: &str, text: &str| {
        fs::create_dir_all(world.folder().join(name)).unwrap();
        fs::write(world.folder().join(name).join("all.yaml"), format!("{MESH}---\n{text}")).unwrap();
        symlink(name, world.folder().join("..new")).unwrap();
        fs::rename(world.folder().join("..new"), world.folder().join("..data")).unwrap();
    };
    generation("..1", &rule("first"));
    symlink("..data/all.yaml", world.folder().join("all.yaml")).unwrap();
    let running = world.start(Some(world.folder())).await;
    let mut client = world.operator(&running);
    assert_eq!(rules(&describe(&mut client).await), ["first"]);
    generation("..2", &rule("other"));
    until(&mut client, |described| rules(described) == ["other"]).await;
    running.stop().await;
}

#[tokio::test]
async fn a_file_rewritten_in_place_with_the_same_length_is_seen() {
    let world = World::new();
    world.write("mesh.yaml", MESH);
    world.write("allowlist.yaml", &rule("aaaaa"));
    let running = world.start(Some(world.folder())).await;
    let mut client = world.operator(&running);
    let mut wanted = describe(&mut client).await;
    for name in ["bbbbb", "ccccc"] {
        fs::write(world.folder().join("allowlist.yaml"), rule(name)).unwrap();
        wanted = until(&mut client, |described| rules(described) == [name]).await;
    }
    assert!(wanted.problems.is_empty());
    running.stop().await;
}
