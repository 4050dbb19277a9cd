//! `--config FILE` of the roles: the settings of a YAML file as defaults of the flags.
//!
//! A flag wins over its TENON_* variable, and a variable over the file. Keys are the flags' names in camelCase.

use std::{collections::BTreeMap, ffi::OsString, fs};

use clap::{Arg, Command, CommandFactory as _};
use mesh_config::{
    Problem, Problems,
    yaml::{self, Node, Value},
};

use crate::{cli::Cli, failure::Failure};

/// Names the file, as `--config` does.
const VARIABLE: &str = "TENON_CONFIG";
/// Flags that a file cannot hold.
const NOT_IN_FILES: [&str; 3] = ["config", "help", "version"];

/// The command line's definition, with what the file says as defaults when one is named for a role.
///
/// # Errors
/// All problems of the file, with line and column.
pub fn command(args: &[OsString]) -> Result<Command, Failure> {
    let command = Cli::command();
    let Some(role) = role(args) else { return Ok(command) };
    let Some(file) = named(args) else { return Ok(command) };
    let name = file.to_string_lossy().into_owned();
    let text = fs::read_to_string(&file).map_err(|error| {
        Failure::new(format!("cannot read {name}: {error}")).next("name a YAML file of settings with --config")
    })?;
    let serve = command.find_subcommand(&role).and_then(|role| role.find_subcommand("serve"));
    let flags: Vec<String> = serve
        .into_iter()
        .flat_map(Command::get_arguments)
        .filter_map(Arg::get_long)
        .filter(|flag| !NOT_IN_FILES.contains(flag))
        .map(str::to_owned)
        .collect();
    let settings = read(&name, &text, &flags).map_err(|problems| {
        Failure::new(problems.to_string()).next(format!("`tenon {role} serve --help` names all settings"))
    })?;
    Ok(command.mut_subcommand(role, |role| {
        role.mut_subcommand("serve", |serve| serve.mut_args(|arg| with_default(arg, &settings)))
    }))
}

fn with_default(arg: Arg, settings: &BTreeMap<String, String>) -> Arg {
    match arg.get_long().and_then(|flag| settings.get(flag)) {
        // Read once in the life of the process; clap wants defaults that live as long.
        Some(value) => arg.default_value(&*value.clone().leak()).required(false),
        None => arg,
    }
}

/// `identity`, `tcs` or `policy`, when the command is its `serve`.
fn role(args: &[OsString]) -> Option<String> {
    let mut words = args.iter().skip(1).map(|word| word.to_string_lossy());
    let role = words.next().filter(|word| ["identity", "tcs", "policy"].contains(&&**word))?.into_owned();
    (words.next()? == "serve").then_some(role)
}

fn named(args: &[OsString]) -> Option<OsString> {
    let mut words = args.iter();
    while let Some(word) = words.next() {
        if word == "--config" {
            return words.next().cloned();
        }
        if let Some(file) = word.to_str().and_then(|word| word.strip_prefix("--config=")) {
            return Some(file.into());
        }
    }
    std::env::var_os(VARIABLE)
}

/// The settings of a file by the names of their flags.
fn read(name: &str, text: &str, flags: &[String]) -> Result<BTreeMap<String, String>, Problems> {
    let mut problems = Vec::new();
    let (documents, _) = yaml::read(name, text, &mut problems);
    let mut problem = |node: yaml::At, message: String| {
        problems.push(Problem { file: name.to_owned(), line: node.line, column: node.column, message });
    };
    let mut settings = BTreeMap::new();
    for Node { at, value } in &documents {
        let Value::Map(entries) = value else {
            problem(*at, format!("{}, expected a map of settings", value.describe()));
            continue;
        };
        for entry in entries {
            let flag = kebab(&entry.key);
            if camel(&flag) != entry.key || !flags.contains(&flag) {
                let known: Vec<String> = flags.iter().map(|flag| camel(flag)).collect();
                let hint = yaml::suggestion(&entry.key, known.iter().map(String::as_str));
                problem(
                    entry.at,
                    format!("unknown setting {:?}, expected one of {}{hint}", entry.key, known.join(", ")),
                );
                continue;
            }
            let value = match &entry.value.value {
                Value::Text(text) => text.clone(),
                Value::Integer(number) => number.to_string(),
                Value::Bool(value) => value.to_string(),
                other @ (Value::Null | Value::Float(_) | Value::List(_) | Value::Map(_)) => {
                    problem(
                        entry.value.at,
                        format!("{}, expected text (in quotes where it looks like a number)", other.describe()),
                    );
                    continue;
                }
            };
            settings.insert(flag, value);
        }
    }
    if problems.is_empty() { Ok(settings) } else { Err(Problems(problems)) }
}

/// `joinTokenFile` → `join-token-file`
fn kebab(key: &str) -> String {
    let mut flag = String::new();
    for character in key.chars() {
        if character.is_ascii_uppercase() {
            flag.push('-');
        }
        flag.push(character.to_ascii_lowercase());
    }
    flag
}

/// `join-token-file` → `joinTokenFile`
fn camel(flag: &str) -> String {
    let mut words = flag.split('-');
    let mut key = words.next().unwrap_or_default().to_owned();
    for word in words {
        let mut letters = word.chars();
        key.extend(letters.next().map(|first| first.to_ascii_uppercase()));
        key.push_str(letters.as_str());
    }
    key
}

#[cfg(test)]
mod tests {
    use clap::FromArgMatches as _;

    use super::*;
    use crate::cli;

    fn parse(file: &std::path::Path, more: &str) -> Result<cli::TcsServe, String> {
        let mut args: Vec<OsString> = ["tenon", "tcs", "serve", "--config"].map(OsString::from).into();
        args.push(file.into());
        args.extend(more.split_whitespace().map(OsString::from));
        let matches = command(&args).map_err(|failure| failure.to_string())?.try_get_matches_from(&args);
        let matches = matches.map_err(|error| error.to_string())?;
        let parsed = Cli::from_arg_matches(&matches).map_err(|error| error.to_string())?;
        let cli::Command::Tcs(cli::Tcs::Serve(args)) = parsed.command else { panic!("another command") };
        Ok(*args)
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        file
    }

    const WHOLE: &str = "trustDomain: demo.example\nstateDir: state\nstore: embedded:tcs.redb\nlisten: 127.0.0.1:1\n\
                         trustBundleSha256: abc\n";

    #[test]
    fn a_file_is_enough_and_a_flag_wins_over_it() {
        let file = file(WHOLE);
        let args = parse(file.path(), "").unwrap();
        assert_eq!((args.listen.port(), args.role.trust_domain.as_str()), (1, "demo.example"));
        assert_eq!(args.policy[0].port(), 15030, "what the file does not say has its usual default");
        let args = parse(file.path(), "--listen 127.0.0.1:2").unwrap();
        assert_eq!(args.listen.port(), 2);
    }

    #[test]
    fn a_setting_with_commas_is_the_list_that_the_flag_makes_of_it() {
        let file = file(&WHOLE.replace("store: embedded:tcs.redb", "follow: 127.0.0.1:3,127.0.0.1:4"));
        let args = parse(file.path(), "").unwrap();
        let ports: Vec<_> = args.follow.iter().map(std::net::SocketAddr::port).collect();
        assert_eq!((args.store, ports), (None, vec![3, 4]));
    }

    #[test]
    fn all_problems_of_a_file_are_said_with_their_places() {
        let file = file("trustDomian: demo.example\nstateDir: [a]\nconfig: other.yaml\n");
        let problems = parse(file.path(), "").unwrap_err();
        let name = file.path().display();
        assert!(problems.contains(&format!("{name}:1:1: unknown setting \"trustDomian\"")), "{problems}");
        assert!(problems.contains(&format!("{name}:2:11: a list, expected text")), "{problems}");
        assert!(problems.contains(&format!("{name}:3:1: unknown setting \"config\"")), "{problems}");
    }

    #[test]
    fn a_value_that_is_none_is_refused_like_that_of_the_flag() {
        let file = file(&WHOLE.replace("127.0.0.1:1", "nowhere"));
        let problem = parse(file.path(), "").unwrap_err();
        assert!(problem.contains("'nowhere'") && problem.contains("--listen"), "{problem}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let problem = parse(std::path::Path::new("/nonexistent.yaml"), "").unwrap_err();
        assert!(problem.starts_with("cannot read /nonexistent.yaml"), "{problem}");
    }
}
