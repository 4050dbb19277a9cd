//! Meshes in one test process, interoperability, chaos, benchmarks and the demo.
