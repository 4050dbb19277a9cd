//! What tokio says of the runtimes of a process.

use std::{fmt, time::Duration};

use tokio::runtime::RuntimeMetrics;

use crate::Page;

/// Writes the metrics `tenon_runtime_*` of these runtimes together.
///
/// # Errors
/// As [`Page::gauge`].
pub fn runtime(page: &mut Page<'_, '_>, runtimes: &[RuntimeMetrics]) -> fmt::Result {
    const NONE: [(&str, &str); 0] = [];
    if runtimes.is_empty() {
        return Ok(());
    }
    let sum = |of: fn(&RuntimeMetrics) -> usize| runtimes.iter().map(|runtime| of(runtime) as u64).sum::<u64>();
    page.gauge("tenon_runtime_workers", "Threads of the runtime", [(NONE, sum(RuntimeMetrics::num_workers))])?;
    let tasks = sum(RuntimeMetrics::num_alive_tasks);
    page.gauge("tenon_runtime_tasks", "Tasks of the runtime that have not ended", [(NONE, tasks)])?;
    let waiting = sum(RuntimeMetrics::global_queue_depth);
    page.gauge("tenon_runtime_queued_tasks", "Tasks that wait for a thread of the runtime", [(NONE, waiting)])?;
    let busy = runtimes.iter().map(busy).sum::<Duration>().as_secs_f64();
    page.counter("tenon_runtime_busy_seconds", "Time that threads of the runtime were busy", [(NONE, busy)])
}

fn busy(metrics: &RuntimeMetrics) -> Duration {
    (0..metrics.num_workers()).map(|worker| metrics.worker_total_busy_duration(worker)).sum()
}
