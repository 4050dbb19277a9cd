//! Tenant records as people write them: JSON Lines of `tenon.tcs.v1.TenantContext` with proto3 JSON names (DESIGN §7).

mod fields;
mod json;
mod tree;

use std::collections::{HashMap, HashSet};

use prost::Message as _;
use tenon_proto::tcs::v1::{Product, Shard, TenantContext, product::State, tenant_context::Status};

pub(crate) use self::fields::{TENANT, misfits, place};
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
    let wrong = wrong(tenant);
    if wrong.is_empty() { Ok(()) } else { Err(wrong.into_iter().map(|wrong| wrong.message).collect()) }
}

/// One thing that is wrong with a record, and the field that it concerns: `products`, `media`, `state`. No path: the
/// record as a whole.
pub(crate) struct Wrong {
    pub path: Vec<String>,
    pub message: String,
}

/// See [`check`].
pub(crate) fn wrong(tenant: &TenantContext) -> Vec<Wrong> {
    let mut found = Vec::new();
    let mut note = |path: &[&str], message: String| {
        found.push(Wrong { path: path.iter().map(|&step| step.to_owned()).collect(), message });
    };
    if let Err(error) = TenantId::try_from(tenant.tenant_id.as_str()) {
        note(&["tenantId"], error.to_string());
    }
    match Status::try_from(tenant.status) {
        Ok(Status::Active | Status::Suspended) => {}
        Ok(Status::Unspecified) => note(&["status"], "no status is given, expected ACTIVE or SUSPENDED".to_owned()),
        Err(_) => note(&["status"], format!("status {} is unknown, expected ACTIVE or SUSPENDED", tenant.status)),
    }
    let mut hosts = HashSet::new();
    for (index, host) in tenant.hosts.iter().enumerate() {
        let path = ["hosts", &index.to_string()];
        if let Err(error) = HostName::try_from(host.as_str()) {
            note(&path, error.to_string());
        }
        if !hosts.insert(host) {
            note(&path, format!("host {:?} stands twice, expected it once", short(host)));
        }
    }
    for (what, text) in [("region", &tenant.region), ("realm", &tenant.realm)] {
        if let (false, Err(error)) = (text.is_empty(), RegionName::try_from(text.as_str())) {
            note(&[what], format!("{what} {:?} is not well formed, expected {}", short(text), error.expected()));
        }
    }
    for (name, product) in &tenant.products {
        if let Err(error) = ProductName::try_from(name.as_str()) {
            note(&["products", name], error.to_string());
        }
        check_product(name, product, |path, message| note(&[&["products", name], path].concat(), message));
    }
    if tenant.encoded_len() > MAX_RECORD_BYTES {
        note(&[], format!("a record of {} bytes, expected at most {MAX_RECORD_BYTES}", tenant.encoded_len()));
    }
    found
}

fn check_product(name: &str, product: &Product, mut note: impl FnMut(&[&str], String)) {
    let name = short(name);
    match State::try_from(product.state) {
        Ok(State::Active | State::Inactive | State::Suspended) => {}
        Ok(State::Unspecified) => {
            note(&["state"], format!("product {name:?} has no state, expected ACTIVE, INACTIVE or SUSPENDED"));
        }
        Err(_) => note(
            &["state"],
            format!("product {name:?} has the unknown state {}, expected ACTIVE, INACTIVE or SUSPENDED", product.state),
        ),
    }
    if product.features.iter().any(String::is_empty) {
        note(&["features"], format!("product {name:?} has a feature without a name, expected a name"));
    }
    let Some(Shard { cluster, database, schema }) = &product.shard else { return };
    for (what, text) in [("cluster", cluster), ("database", database), ("schema", schema)] {
        // Names of folders and databases are made of these: they must not lead out of where they belong.
        if text.len() > 253 || text.starts_with('.') || text.chars().any(|c| c.is_control() || matches!(c, '/' | '\\'))
        {
            let message = format!(
                "{what} {:?} of the shard of product {name:?} is not well formed, expected at most 253 bytes without \
                 \"/\", \"\\\" and control characters, not beginning with \".\"",
                short(text)
            );
            note(&["shard", what], message);
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
    read_json_lines_bytes(file, text.as_bytes())
}

/// As [`read_json_lines`], of text that may turn out not to be UTF-8. A byte order mark before it is passed over.
///
/// # Errors
/// As [`read_json_lines`], and the first byte of each line that is not UTF-8.
pub fn read_json_lines_bytes(file: &str, bytes: &[u8]) -> Result<Vec<TenantContext>, Problems> {
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    let mut lines = Lines::default();
    for (number, line) in (1..).zip(bytes.split(|&byte| byte == b'\n')) {
        let found = match str::from_utf8(line) {
            Ok(line) if line.trim().is_empty() => continue,
            Ok(line) => lines.line(number, line),
            Err(error) => {
                let good = String::from_utf8_lossy(line.get(..error.valid_up_to()).unwrap_or_default());
                vec![(column(&good), "a byte that is not UTF-8, expected text in UTF-8".to_owned())]
            }
        };
        lines.problems.extend(found.into_iter().map(|(column, message)| Problem {
            file: file.to_owned(),
            line: number,
            column,
            message,
        }));
    }
    if lines.problems.is_empty() { Ok(lines.tenants) } else { Err(Problems::sorted(lines.problems)) }
}

/// The lines of a file that have been read.
#[derive(Default)]
struct Lines {
    tenants: Vec<TenantContext>,
    /// The line of each tenant and of each host.
    ids: HashMap<String, u32>,
    hosts: HashMap<String, u32>,
    problems: Vec<Problem>,
}

impl Lines {
    /// Reads one line. What is wrong stands behind its column.
    fn line(&mut self, number: u32, line: &str) -> Vec<(u32, String)> {
        let tenant = match json::read(line) {
            Ok(tenant) => tenant,
            Err(problems) => return problems,
        };
        let mut found = wrong(&tenant);
        let id = &tenant.tenant_id;
        if let Some(first) = self.ids.get(id) {
            let message =
                format!("tenant {:?} stands twice, expected it once: the first is in line {first}", short(id));
            found.push(Wrong { path: vec!["tenantId".to_owned()], message });
        } else {
            self.ids.insert(id.clone(), number);
        }
        for (index, host) in tenant.hosts.iter().enumerate() {
            match self.hosts.insert(host.clone(), number) {
                Some(first) if first != number => {
                    let message = format!("host {:?} is also in line {first}, expected each host once", short(host));
                    found.push(Wrong { path: vec!["hosts".to_owned(), index.to_string()], message });
                }
                Some(_) | None => {}
            }
        }
        self.tenants.push(tenant);
        if found.is_empty() {
            return Vec::new();
        }
        let tree = tree::tree(line);
        let column = |path: &[String]| tree.as_ref().and_then(|tree| place(tree, path)).map_or(1, |at| at.column);
        found.into_iter().map(|Wrong { path, message }| (column(&path), message)).collect()
    }
}

/// The column behind this beginning of a line.
fn column(before: &str) -> u32 {
    u32::try_from(before.chars().count()).unwrap_or(u32::MAX).saturating_add(1)
}

#[cfg(test)]
mod tests;
