//! The one table of who may call what, in `docs/operators.md`, is that of the servers.

use std::collections::BTreeMap;

use mesh_identity::grpc::Who;

#[test]
fn the_table_of_roles_is_that_of_the_servers() {
    let document = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/operators.md")).unwrap();
    let documented: BTreeMap<&str, &str> = document
        .lines()
        .filter_map(|line| line.strip_prefix("| `/")?.strip_suffix("` |")?.split_once("` | `"))
        .collect();
    let tables = [&*identity::AUTHORIZATION, &*policy::AUTHORIZATION, &*tcs::AUTHORIZATION];
    let served: BTreeMap<&str, &str> = tables
        .into_iter()
        .flatten()
        .filter_map(|rpc| match rpc.who {
            Who::Operators(role) | Who::OperatorsAnd(role, _) => {
                Some((rpc.path.trim_start_matches('/'), role.as_str()))
            }
            Who::Anyone | Who::Services | Who::ServicesAndOperators | Who::Only(_) => None,
        })
        .collect();
    assert_eq!(documented, served);
}
