//! The truth behind each replicated kind, and the publishing side of replication.
