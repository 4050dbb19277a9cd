//! Mesh policy files: read, checked and compiled into the records that the mesh replicates.
//!
//! Raw YAML → [`Mesh`] (cannot be wrong) → [`Records`]. Everything that is wrong is reported at once, each with file, line
//! and column. Only [`read_folder`], [`fingerprint`] and [`load`] touch the file system; nothing here reads the clock.

mod compile;
mod folder;
mod mesh;
pub mod names;
mod parse;
pub mod path;
mod problem;
mod route_changes;
pub mod tenant;
mod units;
pub mod yaml;

use std::path::Path;

pub use crate::{
    compile::{Records, compile},
    folder::{Fingerprint, MAX_FILE_BYTES, MAX_FOLDER_BYTES, SourceFile, fingerprint, read_folder},
    mesh::{
        Allowlist, Attestor, AttestorRule, Caller, ControlPlaneAddresses, Expect, ExternalClient, HealthCheck, Hedge,
        HeldTenants, Instance, Limits, LocalMesh, Mesh, Mode, Outbound, Outliers, PolicyTest, Proof, Quarantine,
        REASONS, Rate, ReplicaAddress, Residency, Retry, RetryBudget, Route, RouteMethod, Rule, Service, Setting,
        StatusCode, TenantCondition, Tenants, TestCall, TestTransaction, Timeout,
    },
    parse::{parse, schema::schema},
    problem::{Problem, Problems},
    route_changes::route_changes,
};

/// Reads and checks a folder of policy files.
///
/// # Errors
/// Everything that is wrong in any of its files; each problem names its file as the user can open it.
pub fn load(dir: &Path) -> Result<Mesh, Problems> {
    let files = read_folder(dir)?;
    parse(&files).map_err(|problems| problems.below(dir))
}
