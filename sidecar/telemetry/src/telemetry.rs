//! Everything that one process of the control plane shows of itself.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{Format, Page, Rpcs, page, process, runtime};

/// A part of a process that has something to show.
pub trait Observed: Send + Sync + 'static {
    /// Writes its families, each once. Comes back at once: never waits, and reads no more than a file's length.
    ///
    /// # Errors
    /// Those of the page.
    fn show(&self, page: &mut Page<'_, '_>) -> fmt::Result;

    /// Why it does not do its work yet, or no longer; empty when it does. For people.
    fn missing(&self) -> Vec<String> {
        Vec::new()
    }
}

/// What a process shows. It answers from the first moment on; parts join as they begin.
#[derive(Default)]
pub struct Telemetry {
    parts: Mutex<Parts>,
}

#[derive(Default)]
struct Parts {
    observed: Vec<Arc<dyn Observed>>,
    /// Whether the service is served; until then nothing is ready.
    serves: bool,
    ends: bool,
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Telemetry").finish_non_exhaustive()
    }
}

impl Telemetry {
    /// Another part, whose families no other part has.
    pub fn add(&self, part: impl Observed) {
        self.parts().observed.push(Arc::new(part));
    }

    /// Everything has begun: the service is served, by a server that counts the calls of `methods`.
    #[must_use]
    pub fn serves(&self, methods: impl IntoIterator<Item = &'static str>) -> Arc<Rpcs> {
        let rpcs = Arc::new(Rpcs::new(methods));
        let mut parts = self.parts();
        parts.observed.push(Arc::clone(&rpcs) as Arc<dyn Observed>);
        parts.serves = true;
        rpcs
    }

    /// Not ready from now on.
    pub fn ends(&self) {
        self.parts().ends = true;
    }

    /// Why the process is not ready; empty when it is.
    #[must_use]
    pub fn missing(&self) -> Vec<String> {
        let (observed, serves, ends) = {
            let parts = self.parts();
            (parts.observed.clone(), parts.serves, parts.ends)
        };
        let mut missing: Vec<_> = observed.iter().flat_map(|part| part.missing()).collect();
        if !serves {
            missing.push("the service has not begun to serve: its log says what it waits for".to_owned());
        }
        if ends {
            missing.push("the service ends".to_owned());
        }
        missing
    }

    /// All metrics. Called on the process's runtime, whose numbers are among them.
    #[must_use]
    pub fn text(&self, format: Format) -> String {
        // One after the other: each takes the lock.
        let observed = self.parts().observed.clone();
        let ready = self.missing().is_empty();
        page::text(format, move |page| {
            const NONE: [(&str, &str); 0] = [];
            let build = [("version", env!("CARGO_PKG_VERSION"))];
            page.gauge("tenon_build_info", "Version of this binary", [(build, 1u64)])?;
            page.gauge("tenon_ready", "1 when /ready answers 200", [(NONE, u64::from(ready))])?;
            process(page)?;
            let own = tokio::runtime::Handle::try_current().ok().map(|runtime| runtime.metrics());
            runtime(page, own.as_slice())?;
            observed.iter().try_for_each(|part| part.show(page))
        })
    }

    fn parts(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::documented::{emitted, listed};

    struct Late;

    impl Observed for Late {
        fn show(&self, _: &mut Page<'_, '_>) -> fmt::Result {
            Ok(())
        }

        fn missing(&self) -> Vec<String> {
            vec!["late".to_owned()]
        }
    }

    #[test]
    fn it_is_ready_when_it_serves_and_no_part_misses_anything_until_it_ends() {
        let telemetry = Telemetry::default();
        assert_eq!(telemetry.missing().len(), 1);
        let _rpcs = telemetry.serves(["/a.B/C"]);
        assert_eq!(telemetry.missing(), Vec::<String>::new());
        assert!(telemetry.text(Format::Prometheus).contains("\ntenon_ready 1\n"));
        telemetry.add(Late);
        assert_eq!(telemetry.missing(), ["late"]);
        telemetry.ends();
        assert_eq!(telemetry.missing().len(), 2);
        assert!(telemetry.text(Format::Prometheus).contains("\ntenon_ready 0\n"));
    }

    #[tokio::test]
    async fn the_document_lists_what_every_process_shows() {
        let telemetry = Telemetry::default();
        let rpcs = telemetry.serves(["/a.B/C"]);
        rpcs.once();
        let docs = include_str!("../../../docs/telemetry.md");
        let sections = ["Every process", "RPCs of the control plane"];
        assert_eq!(emitted(&telemetry.text(Format::OpenMetrics)), listed(docs, &sections));
    }
}
