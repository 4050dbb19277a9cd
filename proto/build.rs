//! Compiles the .proto files with protox, so that no protoc is needed.

use std::{env, fs, path::PathBuf};

use prost::Message as _;

const FILES: &[&str] = &[
    "tenon/replication/v1/replication.proto",
    "tenon/tcs/v1/tcs.proto",
    "tenon/policy/v1/policy.proto",
    "tenon/identity/v1/identity.proto",
    "tenon/admin/v1/admin.proto",
    "tenon/audit/v1/audit.proto",
    "spiffe/workload/workload.proto",
    "media/v1/media.proto",
    "issues/v1/issues.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let descriptors = protox::compile(FILES, ["."])?;
    let encoded = descriptors.encode_to_vec();
    fs::write(out.join("descriptors.bin"), &encoded)?;

    tonic_prost_build::configure()
        .bytes(".")
        .btree_map(".")
        .extern_path(".google.protobuf", "::pbjson_types")
        .compile_well_known_types(true)
        .compile_fds(descriptors)?;

    // Files of tenants are proto3 JSON.
    let tenants = protox::compile(["tenon/tcs/v1/tcs.proto"], ["."])?.encode_to_vec();
    pbjson_build::Builder::new().register_descriptors(&tenants)?.btree_map(["."]).build(&[".tenon.tcs.v1"])?;
    Ok(())
}
