//! What the identity service shows of its CA. `docs/telemetry.md` lists it, and a test compares.

use std::{fmt, sync::Arc};

use mesh_telemetry::{Observed, Page};

use crate::Ca;

/// The CA.
pub struct Authorities(pub Arc<Ca>);

impl Observed for Authorities {
    fn show(&self, page: &mut Page<'_, '_>) -> fmt::Result {
        const NONE: [(&str, &str); 0] = [];
        let help = "When the issuing CA that signs ends, in Unix seconds";
        page.gauge("tenon_issuing_ca_expiry_timestamp_seconds", help, [(NONE, self.0.issuing_ends())])?;
        let help = "When the root that signs ends, in Unix seconds";
        page.gauge("tenon_root_expiry_timestamp_seconds", help, [(NONE, self.0.root_ends())])
    }
}

#[cfg(test)]
mod tests {
    use mesh_telemetry::{
        Format, Telemetry,
        documented::{emitted, listed},
    };

    use super::*;

    #[test]
    fn the_end_of_the_issuing_ca_is_shown_and_listed() {
        let dir = tempfile::tempdir().unwrap();
        let now = mesh_identity::clock::unix_seconds();
        let ca = Ca::create(dir.path(), &"demo.example".try_into().unwrap(), None, now).unwrap();
        let (ends, root_ends) = (ca.issuing_ends(), ca.root_ends());
        let telemetry = Telemetry::default();
        telemetry.add(Authorities(Arc::new(ca)));
        let listed = listed(include_str!("../../../docs/telemetry.md"), &["Identity service"]);
        assert!(ends > now && listed.iter().all(|it| emitted(&telemetry.text(Format::OpenMetrics)).contains(it)));
        let text = telemetry.text(Format::Prometheus);
        assert!(text.contains(&format!("\ntenon_issuing_ca_expiry_timestamp_seconds {ends}\n")), "{text}");
        // Ten years, which the issuing CA below it has not.
        assert!(root_ends > ends + 9 * 365 * 86_400, "{root_ends}");
        assert!(text.contains(&format!("\ntenon_root_expiry_timestamp_seconds {root_ends}\n")), "{text}");
    }
}
