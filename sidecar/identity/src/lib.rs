//! SPIFFE identities of the mesh: SVIDs, trust bundles, TLS configurations, joining and renewing.
