//! What the policy service shows of itself besides its stores and publishers: `docs/telemetry.md`.

use std::{fmt, sync::Arc};

use mesh_telemetry::{Observed, Page};

use crate::engine::Engine;

/// How the watched folder is.
pub struct Folder(pub Arc<Engine>);

impl Observed for Folder {
    fn show(&self, page: &mut Page<'_, '_>) -> fmt::Result {
        const NONE: [(&str, &str); 0] = [];
        let help = "Mistakes in the policy folder: what was in force before stays so";
        let problems = self.0.in_force().problems.len() as u64;
        page.gauge("tenon_policy_folder_problems", help, [(NONE, problems)])
    }
}
