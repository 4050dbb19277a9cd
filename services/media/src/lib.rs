//! Sample product service: files of each tenant, with thumbnails.
//!
//! It listens on loopback and trusts its sidecar: the sidecar has verified the caller and the tenant, and this service
//! refuses any request that carries no tenant context. It reads of the context only where the tenant's rows are kept.
//!
//! The sample service `issues` has the same way to its storage. As neither may import anything of the mesh but the wire types,
//! and the wire types hold no logic, it uses [`tenancy`], [`shards`], [`calls`] and [`hosting`] of this library. Nothing here
//! knows of `issues`.

pub mod calls;
pub mod shards;
pub mod tenancy;
