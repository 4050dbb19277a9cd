//! The wire types of Tenon and of the sample services, generated from the `.proto` files of this crate.
//!
//! Nothing here decides or checks anything: values of these types are raw.

#![allow(clippy::all, clippy::wildcard_enum_match_arm, clippy::unwrap_used, clippy::too_many_lines, missing_docs)]

/// Every file of this crate and what it imports, encoded as a `google.protobuf.FileDescriptorSet`, for reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// One protocol for all replicated state.
pub mod replication {
    pub mod v1 {
        tonic::include_proto!("tenon.replication.v1");
    }
}

/// Tenant contexts and their write side.
pub mod tcs {
    pub mod v1 {
        tonic::include_proto!("tenon.tcs.v1");
        include!(concat!(env!("OUT_DIR"), "/tenon.tcs.v1.serde.rs"));
    }
}

/// Allowlists, routes, endpoints and quarantines.
pub mod policy {
    pub mod v1 {
        tonic::include_proto!("tenon.policy.v1");
    }
}

/// SVIDs, trust bundles, public keys and revocations.
pub mod identity {
    pub mod v1 {
        tonic::include_proto!("tenon.identity.v1");
    }
}

/// What a sidecar tells those who run it.
pub mod admin {
    pub mod v1 {
        tonic::include_proto!("tenon.admin.v1");
    }
}

/// The audit records of the control plane.
pub mod audit {
    pub mod v1 {
        tonic::include_proto!("tenon.audit.v1");
    }
}

/// The SPIFFE Workload API.
pub mod spiffe {
    tonic::include_proto!("_");
}

/// The sample media service.
pub mod media {
    pub mod v1 {
        tonic::include_proto!("media.v1");
    }
}

/// The sample issues service.
pub mod issues {
    pub mod v1 {
        tonic::include_proto!("issues.v1");
    }
}

/// Names of the replicated kinds, as they stand in `Start.kind`.
pub mod kind {
    pub const TENANT: &str = "tenant";
    /// The guard of the map of tenants, in the store of the TCS; not followed as a kind of its own.
    pub const TENANT_GUARD: &str = "tenant_guard";
    pub const ALLOWLIST: &str = "allowlist";
    pub const ROUTE: &str = "route";
    pub const ENDPOINT: &str = "endpoint";
    pub const QUARANTINE: &str = "quarantine";
    pub const KEY: &str = "key";
    pub const TRUST_BUNDLE: &str = "trust_bundle";
    pub const REVOCATION: &str = "revocation";
    /// Served by the policy service, for the identity service alone.
    pub const ATTESTATION: &str = "attestation";
}
