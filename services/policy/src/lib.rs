//! The policy service: compiles mesh policy files and distributes what comes of them.
