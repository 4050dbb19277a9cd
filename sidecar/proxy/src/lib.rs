//! The data plane: one process beside each instance of a service.
