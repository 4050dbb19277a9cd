//! What tokio says of the runtime that a scrape is answered on.

use std::{fmt, time::Duration};

use tokio::runtime::{Handle, RuntimeMetrics};

use crate::Page;

/// Writes the metrics `tenon_runtime_*` of the runtime that this is called on.
///
/// # Errors
/// As [`Page::gauge`].
pub fn runtime(page: &mut Page<'_, '_>) -> fmt::Result {
    const NONE: [(&str, &str); 0] = [];
    let Ok(handle) = Handle::try_current() else { return Ok(()) };
    let metrics = handle.metrics();
    page.gauge("tenon_runtime_workers", "Threads of the runtime", [(NONE, metrics.num_workers() as u64)])?;
    let tasks = metrics.num_alive_tasks() as u64;
    page.gauge("tenon_runtime_tasks", "Tasks of the runtime that have not ended", [(NONE, tasks)])?;
    let waiting = metrics.global_queue_depth() as u64;
    page.gauge("tenon_runtime_queued_tasks", "Tasks that wait for a thread of the runtime", [(NONE, waiting)])?;
    let busy = busy(&metrics).as_secs_f64();
    page.counter("tenon_runtime_busy_seconds", "Time that threads of the runtime were busy", [(NONE, busy)])
}

fn busy(metrics: &RuntimeMetrics) -> Duration {
    (0..metrics.num_workers()).map(|worker| metrics.worker_total_busy_duration(worker)).sum()
}
