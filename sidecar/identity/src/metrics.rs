//! What a process of the control plane shows of its own certificate.

use std::fmt;
use std::sync::Arc;

use mesh_telemetry::{Observed, Page};

use crate::Identity;

/// The SVID in use.
#[derive(Debug)]
pub struct OwnSvid(pub Arc<Identity>);

impl Observed for OwnSvid {
    fn show(&self, page: &mut Page<'_, '_>) -> fmt::Result {
        const NONE: [(&str, &str); 0] = [];
        let help = "When the SVID in use ends, in Unix seconds";
        page.gauge("tenon_svid_expiry_timestamp_seconds", help, [(NONE, self.0.svid().not_after())])
    }
}
