//! The following side of the replication protocol, with its state on disk.
