//! What a sidecar decides: pure functions over snapshots of state, without IO and without a clock.
