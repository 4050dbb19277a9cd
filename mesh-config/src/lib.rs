//! Mesh policy files: read, checked and compiled into the records that the mesh replicates.
