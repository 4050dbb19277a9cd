//! Whole meshes for tests, benchmarks and the demo: real binaries, real TLS, loopback only.
//!
//! A [`mesh::Mesh`] is `tenon up` on a folder of its own with ports of its own; dropping it ends every process of it. The
//! binaries are those that `cargo build --workspace --bins` put beside the test: `make test` does that first.

pub mod asap;
pub mod bench;
pub mod by_hand;
pub mod calls;
pub mod changes;
pub mod guide;
pub mod mesh;
pub mod nats;
pub mod open_loop;
pub mod ports;
pub mod python;
pub mod shop;
pub mod traffic;
pub mod trouble;
pub mod under_traffic;
