use std::os::unix::fs::symlink;

use super::*;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// Without the folder's own path.
fn problems(dir: &Path) -> Vec<String> {
    let Problems(problems) = read_folder(dir).unwrap_err();
    problems.iter().map(|problem| problem.to_string().replace(&format!("{}/", dir.display()), "")).collect()
}

fn paths(dir: &Path) -> Vec<String> {
    read_folder(dir).unwrap().into_iter().map(|file| file.path).collect()
}

#[test]
fn every_yaml_file_below_is_read_in_the_byte_order_of_its_path() {
    let dir = folder();
    fs::create_dir_all(dir.path().join("a/b")).unwrap();
    fs::create_dir_all(dir.path().join("folder.yaml")).unwrap();
    for name in ["z.yaml", "a.yaml", "a/b/c.yaml", "a-b.yaml", "notes.txt", ".x.yml", "folder.yaml/in.yaml"] {
        fs::write(dir.path().join(name), name).unwrap();
    }
    assert_eq!(paths(dir.path()), ["a-b.yaml", "a.yaml", "a/b/c.yaml", "folder.yaml/in.yaml", "z.yaml"]);
}

#[test]
fn a_file_that_was_meant_to_be_policy_and_is_not_named_so_is_a_problem() {
    let dir = folder();
    fs::create_dir_all(dir.path().join("a/folder.yml")).unwrap();
    for name in ["mesh.yaml", "quarantine.yml", "a/b.yml", "a/folder.yml/c.yaml"] {
        fs::write(dir.path().join(name), "").unwrap();
    }
    let rename = "policy files end in .yaml: rename it";
    let expected = [format!("a/b.yml:1:1: {rename}"), format!("quarantine.yml:1:1: {rename}")];
    assert_eq!(problems(dir.path()), expected);
    // Somebody who watches the folder sees it come and go.
    let with = fingerprint(dir.path());
    fs::remove_file(dir.path().join("quarantine.yml")).unwrap();
    fs::remove_file(dir.path().join("a/b.yml")).unwrap();
    assert_ne!(fingerprint(dir.path()), with);
    assert_eq!(paths(dir.path()), ["a/folder.yml/c.yaml", "mesh.yaml"]);
}

#[test]
fn a_config_map_mount_is_read_once_through_its_links() {
    let dir = folder();
    fs::create_dir(dir.path().join("..2024_01_01")).unwrap();
    fs::write(dir.path().join("..2024_01_01/mesh.yaml"), "content").unwrap();
    symlink("..2024_01_01", dir.path().join("..data")).unwrap();
    symlink("..data/mesh.yaml", dir.path().join("mesh.yaml")).unwrap();
    let files = read_folder(dir.path()).unwrap();
    assert_eq!(files, [SourceFile { path: "mesh.yaml".to_owned(), text: "content".to_owned() }]);
}

#[test]
fn a_config_map_mount_that_is_swapped_is_seen_and_read_anew() {
    let dir = folder();
    for (generation, text) in [("..1", "old"), ("..2", "new")] {
        fs::create_dir(dir.path().join(generation)).unwrap();
        fs::write(dir.path().join(generation).join("mesh.yaml"), text).unwrap();
    }
    symlink("..data/mesh.yaml", dir.path().join("mesh.yaml")).unwrap();
    let mut seen = Vec::new();
    for generation in ["..1", "..2"] {
        symlink(generation, dir.path().join("..tmp")).unwrap();
        fs::rename(dir.path().join("..tmp"), dir.path().join("..data")).unwrap();
        seen.push((fingerprint(dir.path()), read_folder(dir.path()).unwrap()[0].text.clone()));
    }
    assert_ne!(seen[0].0, seen[1].0);
    assert_eq!((seen[0].1.as_str(), seen[1].1.as_str()), ("old", "new"));
    fs::remove_file(dir.path().join("..data")).unwrap();
    let problems = read_folder(dir.path()).unwrap_err().to_string();
    assert!(problems.contains("mesh.yaml:1:1: cannot read this file: No such file"), "{problems}");
}

#[test]
fn pipes_and_devices_are_problems_and_are_not_waited_for() {
    let dir = folder();
    let pipe = dir.path().join("pipe.yaml");
    let (mode, none) = (rustix::fs::Mode::RWXU, 0);
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, none).unwrap();
    symlink("/dev/zero", dir.path().join("zero.yaml")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket.yaml")).unwrap();
    assert_eq!(
        problems(dir.path()),
        ["pipe.yaml", "socket.yaml", "zero.yaml"].map(|file| format!("{file}:1:1: {NO_FILE}"))
    );
    // It may take a file's place after the walk: then it is opened, without waiting for somebody who writes.
    for path in [pipe, dir.path().join("zero.yaml")] {
        assert_eq!(read_file(&path, MAX_FILE_BYTES).unwrap_err().2, NO_FILE);
    }
}

#[test]
fn a_file_that_cannot_be_read_says_why() {
    let dir = folder();
    // A file for which reading fails, whoever reads.
    symlink("/proc/self/mem", dir.path().join("torn.yaml")).unwrap();
    let [torn] = problems(dir.path()).try_into().unwrap();
    assert!(torn.starts_with("torn.yaml:1:1: cannot read this file: Input/output error"), "{torn}");
}

#[test]
fn a_link_to_nowhere_may_have_been_a_folder_of_policies() {
    let dir = folder();
    symlink("gone", dir.path().join("team-a")).unwrap();
    symlink("team-b", dir.path().join("team-b")).unwrap();
    let [a, b] = problems(dir.path()).try_into().unwrap();
    assert!(a.starts_with("team-a:1:1: cannot tell what this is: No such file"), "{a}");
    assert!(b.starts_with("team-b:1:1: cannot tell what this is: Too many levels of symbolic links"), "{b}");
}

#[test]
fn a_file_of_a_gigabyte_is_not_read() {
    let dir = folder();
    fs::File::create(dir.path().join("huge.yaml")).unwrap().set_len(1 << 30).unwrap();
    let expected = "huge.yaml:1:1: the file is larger than 4 MiB, expected smaller files: split it";
    assert_eq!(problems(dir.path()), [expected]);
}

#[test]
fn files_that_are_too_large_together_are_a_problem_at_the_first_that_is_too_much() {
    let dir = folder();
    for name in ["a.yaml", "b.yaml", "c.yaml", "d.yaml"] {
        fs::write(dir.path().join(name), vec![b'#'; 700_000]).unwrap();
    }
    let within = |megabytes: u64| read_within(dir.path(), &Limits { folder: megabytes << 20, ..LIMITS });
    let Problems(problems) = within(2).unwrap_err();
    let [Problem { file, message, .. }] = &problems[..] else { panic!("{problems:?}") };
    assert!(file.ends_with("/c.yaml"), "{file}");
    assert_eq!(message, "the files up to this one are larger than 2 MiB together, expected a smaller policy");
    assert_eq!(within(3).unwrap().len(), 4);
}

#[test]
fn a_walk_ends_however_many_ways_there_are() {
    let dir = folder();
    // Each folder has two links to the next one: a million ways, and no loop.
    for level in 0..20 {
        let path = dir.path().join(format!(".{level}"));
        fs::create_dir(&path).unwrap();
        for name in ["a", "b"] {
            symlink(format!("../.{}", level + 1), path.join(name)).unwrap();
        }
    }
    fs::create_dir(dir.path().join(".20")).unwrap();
    symlink(".0", dir.path().join("start")).unwrap();
    let Problems(problems) = read_within(dir.path(), &Limits { entries: 1_000, ..LIMITS }).unwrap_err();
    assert!(problems.iter().any(|problem| problem.message.starts_with("too many files and folders")), "{problems:?}");
}

#[test]
fn folders_too_deep_in_one_another_are_a_problem() {
    let dir = folder();
    fs::create_dir_all(dir.path().join("d/".repeat(40))).unwrap();
    let [deep] = problems(dir.path()).try_into().unwrap();
    assert!(deep.contains(":1:1: folders stand in one another too deep, expected at most 32 levels"), "{deep}");
}

#[test]
fn a_loop_of_links_is_a_problem_and_not_an_endless_walk() {
    let dir = folder();
    fs::create_dir(dir.path().join("a")).unwrap();
    symlink("..", dir.path().join("a/up")).unwrap();
    symlink("self.yaml", dir.path().join("self.yaml")).unwrap();
    let Problems(problems) = read_folder(dir.path()).unwrap_err();
    let [up, link] = problems.as_slice() else { panic!("{problems:?}") };
    assert!(up.file.ends_with("a/up") && up.message.contains("contains itself"), "{up}");
    assert!(link.file.ends_with("self.yaml") && link.message.contains("cannot read this file"), "{link}");
}

#[test]
fn a_folder_that_is_not_there_is_a_problem() {
    let dir = folder();
    let problems = read_folder(&dir.path().join("gone")).unwrap_err().to_string();
    assert!(problems.contains("gone:1:1: cannot read this folder: "), "{problems}");
}

#[test]
fn files_that_are_too_large_or_no_text_are_problems_with_a_place() {
    let dir = folder();
    let large = vec![b'#'; usize::try_from(MAX_FILE_BYTES).unwrap() + 1];
    fs::write(dir.path().join("large.yaml"), &large).unwrap();
    fs::write(dir.path().join("largest.yaml"), &large[1..]).unwrap();
    fs::write(dir.path().join("latin1.yaml"), b"a: b\nname: caf\xe9\n").unwrap();
    let Problems(problems) = read_folder(dir.path()).unwrap_err();
    let messages: Vec<String> =
        problems.iter().map(|p| p.to_string().replace(&format!("{}/", dir.path().display()), "")).collect();
    assert_eq!(
        messages,
        [
            "large.yaml:1:1: the file is larger than 4 MiB, expected smaller files: split it",
            "latin1.yaml:2:10: a byte that is not UTF-8, expected text in UTF-8",
        ]
    );
}

#[test]
fn a_file_that_cannot_be_read_hides_no_problem_of_the_others() {
    let dir = folder();
    fs::write(dir.path().join("bad.yaml"), b"a: b\nname: caf\xe9\n").unwrap();
    symlink("gone", dir.path().join("gone.yaml")).unwrap();
    let document = "apiVersion: tenon.dev/v1\nkind: Service\nmetadata: {name: a}\nspec: {prodcut: x}\n";
    fs::create_dir(dir.path().join("sub")).unwrap();
    fs::write(dir.path().join("sub/a.yaml"), document).unwrap();
    fs::write(dir.path().join("z.yaml"), document).unwrap();
    let below = format!("{}/", dir.path().display());
    let expected = [
        "bad.yaml:2:10: a byte that is not UTF-8, expected text in UTF-8".to_owned(),
        "gone.yaml:1:1: cannot read this file: No such file or directory (os error 2), expected a policy file"
            .to_owned(),
        r#"sub/a.yaml:4:8: unknown field "prodcut" in the spec of a Service (did you mean "product"?), expected "#
            .to_owned(),
        format!(r#"z.yaml:3:18: a second Service named "a", expected one: the first is at {below}sub/a.yaml:3:18"#),
        r#"z.yaml:4:8: unknown field "prodcut" in the spec of a Service (did you mean "product"?), expected "#
            .to_owned(),
    ];
    for problems in [read_folder(dir.path()).unwrap_err(), crate::load(dir.path()).unwrap_err()] {
        let found: Vec<String> = problems.0.iter().map(ToString::to_string).collect();
        assert_eq!(found.len(), expected.len(), "{problems}");
        for (found, expected) in found.iter().zip(&expected) {
            assert!(found.starts_with(&format!("{below}{expected}")), "{found}\nis not\n{expected}");
        }
    }
}

#[test]
fn a_place_inside_of_a_message_names_its_file_as_the_problem_does() {
    let dir = folder();
    fs::write(dir.path().join("a.yaml"), "a: 1\na: 2\n").unwrap();
    let problems = crate::load(dir.path()).unwrap_err().to_string();
    assert!(
        problems.contains("a.yaml:2:1: key \"a\" stands twice, expected it once: the first is at 1:1"),
        "{problems}"
    );
}

#[test]
fn load_names_the_file_as_the_user_can_open_it() {
    let dir = folder();
    fs::write(dir.path().join("a.yaml"), "kind: Mush\n").unwrap();
    let problems = crate::load(dir.path()).unwrap_err();
    assert!(problems.0.iter().all(|problem| Path::new(&problem.file).exists()), "{problems}");
    let empty = folder();
    assert_eq!(crate::load(empty.path()).unwrap_err().0[0].file, empty.path().display().to_string());
}

#[test]
fn a_fingerprint_changes_with_content_names_links_and_a_vanished_folder() {
    let dir = folder();
    let path = dir.path().join("policies");
    let mut looks = vec![fingerprint(&path)];
    fs::create_dir(&path).unwrap();
    looks.push(fingerprint(&path));
    fs::write(path.join("a.yaml"), "one").unwrap();
    looks.push(fingerprint(&path));
    fs::write(path.join("new"), "two").unwrap();
    assert_eq!(fingerprint(&path), looks[2], "a file of another kind is none of ours");
    fs::rename(path.join("new"), path.join("a.yaml")).unwrap();
    looks.push(fingerprint(&path));
    fs::rename(path.join("a.yaml"), path.join("b.yaml")).unwrap();
    looks.push(fingerprint(&path));
    for (index, look) in looks.iter().enumerate() {
        assert!(looks[index + 1..].iter().all(|later| later != look), "{index}: {look:?}");
    }
    assert_eq!(fingerprint(&path), looks[4]);
}
