//! Tenant records as people write them: JSON Lines of `tenon.tcs.v1.TenantContext` with proto3 JSON names (DESIGN §7).

use tenon_proto::tcs::v1::TenantContext;

use crate::Problems;

/// Checks one record: the form of every name, and that status and product states are given.
///
/// # Errors
/// Everything that is wrong with it, each a line.
pub fn check(_tenant: &TenantContext) -> Result<(), Vec<String>> {
    Ok(())
}

/// Reads a file of tenants, one a line; empty lines are passed over.
///
/// # Errors
/// Everything that is wrong with any line, also a tenant or a host that stands in the file twice.
pub fn read_json_lines(file: &str, _text: &str) -> Result<Vec<TenantContext>, Problems> {
    Err(Problems::of_file(file, "not read yet"))
}
