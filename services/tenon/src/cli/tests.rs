use clap::{CommandFactory as _, Parser as _};

use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

#[test]
fn the_definitions_are_sound() {
    Cli::command().debug_assert();
    SpawnChild::command().debug_assert();
}

#[test]
fn every_command_that_is_shown_has_an_example() {
    fn walk(command: &clap::Command, without: &mut Vec<String>) {
        for command in command.get_subcommands().filter(|command| !command.is_hide_set()) {
            let is_leaf = command.get_subcommands().next().is_none();
            if is_leaf && command.get_after_help().is_none_or(|help| !help.to_string().starts_with("Example")) {
                without.push(command.get_name().to_owned());
            }
            walk(command, without);
        }
    }
    let mut without = Vec::new();
    walk(&Cli::command(), &mut without);
    assert_eq!(without, Vec::<String>::new());
}

#[test]
fn explain_takes_what_the_design_says() {
    let line = "tenon policy explain -f mesh --caller wiki --service media --path /m.M/Get --tenant acme --region us-east \
                --tenants t.jsonl -o json";
    let Command::Policy(Policy::Explain(args)) = parse(line).unwrap().command else { panic!("another command") };
    assert_eq!((args.caller.as_str(), args.tenant.as_deref()), ("wiki", Some("acme")));
    assert_eq!(args.output.output, Format::Json);
}

#[test]
fn tenants_of_a_file_are_for_offline_explanations_only() {
    assert!(parse("tenon policy explain --caller a --service b --path /c --tenants t.jsonl").is_err());
}

#[test]
fn wrong_usage_has_exit_code_2_and_help_0() {
    for (line, code) in [
        ("tenon", 2),
        ("tenon nonsense", 2),
        ("tenon up", 2),
        ("tenon tenants get", 2),
        ("tenon tenants get acme --host acme.example", 2),
        ("tenon identity join-token --service media --ttl-seconds 0", 2),
        ("tenon up -f mesh --store redis://host:6379", 2),
        ("tenon --help", 0),
        ("tenon up --help", 0),
        ("tenon --version", 0),
    ] {
        assert_eq!(parse(line).unwrap_err().exit_code(), code, "{line}");
    }
}

#[test]
fn a_tcs_has_a_store_or_follows_others() {
    let serve = |more: &str| {
        let line = format!("tenon tcs serve --trust-domain d.example --state-dir s --trust-bundle-sha256 00 {more}");
        let Command::Tcs(Tcs::Serve(args)) = parse(&line).unwrap().command else { panic!("another command") };
        *args
    };
    let args = serve("--store nats://a:1,b:2");
    assert_eq!((args.store.unwrap().to_string(), args.follow.len()), ("nats://a:1,b:2".to_owned(), 0));
    let ports = |args: TcsServe| args.follow.iter().map(std::net::SocketAddr::port).collect::<Vec<_>>();
    assert_eq!(ports(serve("--follow 127.0.0.1:1,127.0.0.1:2")), [1, 2]);
    assert_eq!(ports(serve("--follow 127.0.0.1:1 --follow 127.0.0.1:2")), [1, 2]);
}

#[test]
fn the_program_of_a_child_may_have_flags_of_its_own() {
    let line = "spawn-child --parent 7 --signal KILL -- media --listen 127.0.0.1:9002";
    let args = SpawnChild::try_parse_from(line.split_whitespace()).unwrap();
    assert_eq!(args.program, ["media", "--listen", "127.0.0.1:9002"]);
}
