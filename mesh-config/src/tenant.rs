//! Tenant records as people write them: JSON Lines of `tenon.tcs.v1.TenantContext` with proto3 JSON names (DESIGN §7).

mod json;

use std::collections::{HashMap, HashSet};

use prost::Message as _;
use tenon_proto::tcs::v1::{Product, Shard, TenantContext, product::State, tenant_context::Status};

use crate::{
    Problem, Problems,
    names::{HostName, ProductName, RegionName, TenantId, short},
};

/// The largest record, encoded: it travels with every request of its tenant.
pub const MAX_RECORD_BYTES: usize = 64 * 1024;

/// Checks one record: the form of every name, and that status and product states are given. It does not ask whether
/// the region exists or whether another tenant has the same host.
///
/// # Errors
/// Everything that is wrong with it and what was expected, each a line.
pub fn check(tenant: &TenantContext) -> Result<(), Vec<String>> {
    let mut problems = Vec::new();
    problems.extend(TenantId::try_from(tenant.tenant_id.as_str()).err().map(|error| error.to_string()));
    match Status::try_from(tenant.status) {
        Ok(Status::Active | Status::Suspended) => {}
        Ok(Status::Unspecified) => problems.push("no status is given, expected ACTIVE or SUSPENDED".to_owned()),
        Err(_) => problems.push(format!("status {} is unknown, expected ACTIVE or SUSPENDED", tenant.status)),
    }
    let mut hosts = HashSet::new();
    for host in &tenant.hosts {
        problems.extend(HostName::try_from(host.as_str()).err().map(|error| error.to_string()));
        if !hosts.insert(host) {
            problems.push(format!("host {:?} stands twice, expected it once", short(host)));
        }
    }
    for (what, text) in [("region", &tenant.region), ("realm", &tenant.realm)] {
        if let (false, Err(error)) = (text.is_empty(), RegionName::try_from(text.as_str())) {
            problems.push(format!("{what} {:?} is not well formed, expected {}", short(text), error.expected()));
        }
    }
    for (name, product) in &tenant.products {
        problems.extend(ProductName::try_from(name.as_str()).err().map(|error| error.to_string()));
        check_product(name, product, &mut problems);
    }
    if tenant.encoded_len() > MAX_RECORD_BYTES {
        problems.push(format!("a record of {} bytes, expected at most {MAX_RECORD_BYTES}", tenant.encoded_len()));
    }
    if problems.is_empty() { Ok(()) } else { Err(problems) }
}

fn check_product(name: &str, product: &Product, problems: &mut Vec<String>) {
    let name = short(name);
    match State::try_from(product.state) {
        Ok(State::Active | State::Inactive | State::Suspended) => {}
        Ok(State::Unspecified) => {
            problems.push(format!("product {name:?} has no state, expected ACTIVE, INACTIVE or SUSPENDED"));
        }
        Err(_) => problems.push(format!(
            "product {name:?} has the unknown state {}, expected ACTIVE, INACTIVE or SUSPENDED",
            product.state
        )),
    }
    if product.features.iter().any(String::is_empty) {
        problems.push(format!("product {name:?} has a feature without a name, expected a name"));
    }
    let Some(Shard { cluster, database, schema }) = &product.shard else { return };
    for (what, text) in [("cluster", cluster), ("database", database), ("schema", schema)] {
        // Names of folders and databases are made of these: they must not lead out of where they belong.
        if text.len() > 253 || text.starts_with('.') || text.chars().any(|c| c.is_control() || matches!(c, '/' | '\\'))
        {
            problems.push(format!(
                "{what} {:?} of the shard of product {name:?} is not well formed, expected at most 253 bytes without \
                 \"/\", \"\\\" and control characters, not beginning with \".\"",
                short(text)
            ));
        }
    }
}

/// What the JSON reader says, with what it expected.
pub(crate) fn not_json(error: &str) -> String {
    match error.contains("expected") {
        true => format!("not a TenantContext in proto3 JSON: {error}"),
        false => format!("not a TenantContext in proto3 JSON: {error}, expected a value of that field's type"),
    }
}

/// Reads a file of tenants, one a line; empty lines are passed over. `file` names it in problems.
///
/// # Errors
/// Everything that is wrong with any line, also a tenant or a host that stands in the file twice.
pub fn read_json_lines(file: &str, text: &str) -> Result<Vec<TenantContext>, Problems> {
    let mut problems = Vec::new();
    let mut tenants: Vec<TenantContext> = Vec::new();
    let mut ids: HashMap<String, usize> = HashMap::new();
    let mut hosts: HashMap<String, usize> = HashMap::new();
    for (number, line) in (1..).zip(text.split('\n')) {
        if line.trim().is_empty() {
            continue;
        }
        let mut problem = |column: u32, message: String| {
            let line = u32::try_from(number).unwrap_or(u32::MAX);
            problems.push(Problem { file: file.to_owned(), line, column, message });
        };
        let tenant = match json::read(line) {
            Ok(tenant) => tenant,
            Err((column, message)) => {
                problem(column, message);
                continue;
            }
        };
        if let Err(messages) = check(&tenant) {
            messages.into_iter().for_each(|message| problem(1, message));
        }
        if let Some(first) = ids.get(&tenant.tenant_id) {
            problem(
                1,
                format!(
                    "tenant {:?} stands twice, expected it once: the first is in line {first}",
                    short(&tenant.tenant_id)
                ),
            );
        } else {
            ids.insert(tenant.tenant_id.clone(), number);
        }
        for host in &tenant.hosts {
            match hosts.insert(host.clone(), number) {
                Some(first) if first != number => {
                    problem(1, format!("host {:?} is also in line {first}, expected each host once", short(host)));
                }
                Some(_) | None => {}
            }
        }
        tenants.push(tenant);
    }
    if problems.is_empty() { Ok(tenants) } else { Err(Problems(problems)) }
}

#[cfg(test)]
mod tests;
