//! What the system says of this process, under the names that every Prometheus client library uses.
//!
//! Read from `/proc` at each scrape. Where there is none, or it does not say something, that is left out.

use std::{fmt, fs};

use crate::Page;

const NONE: [(&str, &str); 0] = [];

/// Writes the metrics `process_*`.
///
/// # Errors
/// As [`Page::gauge`].
pub fn process(page: &mut Page<'_, '_>) -> fmt::Result {
    let stat = Stat::read();
    let (page_size, ticks) = (rustix::param::page_size() as u64, rustix::param::clock_ticks_per_second());
    #[expect(clippy::cast_precision_loss, reason = "seconds for people")]
    let seconds = |in_ticks: u64| in_ticks as f64 / ticks as f64;
    if let Some(stat) = &stat {
        page.counter("process_cpu_seconds", "CPU time spent, of user and system", [(NONE, seconds(stat.cpu_ticks))])?;
        let resident = stat.resident_pages * page_size;
        page.gauge("process_resident_memory_bytes", "Memory in RAM", [(NONE, resident)])?;
        page.gauge("process_virtual_memory_bytes", "Address space", [(NONE, stat.virtual_bytes)])?;
        page.gauge("process_threads", "Threads", [(NONE, stat.threads)])?;
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        // One of them is the folder itself.
        page.gauge("process_open_fds", "Open file descriptors", [(NONE, open.count().saturating_sub(1) as u64)])?;
    }
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    page.gauge("process_max_fds", "File descriptors that may be open", most.map(|most| (NONE, most)))?;
    if let (Some(stat), Some(boot)) = (&stat, boot_seconds()) {
        #[expect(clippy::cast_precision_loss, reason = "a time for people")]
        let start = boot as f64 + seconds(stat.start_ticks);
        page.gauge("process_start_time_seconds", "When the process began, in Unix seconds", [(NONE, start)])?;
    }
    Ok(())
}

/// Of `/proc/self/stat`; proc(5) numbers the fields.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    cpu_ticks: u64,
    threads: u64,
    /// Since the machine booted.
    start_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Stat {
    fn read() -> Option<Self> {
        Self::parse(&fs::read_to_string("/proc/self/stat").ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        // The second field is the program's name in parentheses, which may hold anything; the third is the first here.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            cpu_ticks: field(14)?.saturating_add(field(15)?),
            threads: field(20)?,
            start_ticks: field(22)?,
            virtual_bytes: field(23)?,
            resident_pages: field(24)?,
        })
    }
}

/// When the machine booted.
fn boot_seconds() -> Option<u64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Format, page};

    #[test]
    fn a_program_may_have_any_name() {
        let line = "7 (a) b) (c) S 1 2 3 4 5 6 7 8 9 10 11 12 0 0 20 0 3 0 1000 4096 17 18446744073709551615 1";
        let stat = Stat { cpu_ticks: 23, threads: 3, start_ticks: 1000, virtual_bytes: 4096, resident_pages: 17 };
        assert_eq!(Stat::parse(line), Some(stat));
        assert_eq!(Stat::parse("7 (a"), None);
        assert_eq!(Stat::parse("7 (a) S 1"), None);
    }

    #[test]
    fn this_process_says_all_of_it() {
        let text = page::text(Format::Prometheus, process);
        for name in [
            "cpu_seconds_total",
            "resident_memory_bytes",
            "virtual_memory_bytes",
            "threads",
            "open_fds",
            "max_fds",
            "start_time_seconds",
        ] {
            let sample = text.lines().find_map(|line| line.strip_prefix(&format!("process_{name} ")));
            let value: f64 = sample.unwrap_or_else(|| panic!("{name} in {text}")).parse().expect("a number");
            assert!(value > 0.0 || name == "cpu_seconds_total", "{name} {value}");
        }
    }
}
