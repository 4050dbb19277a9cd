//! Nodes that are killed and stopped in the middle.
