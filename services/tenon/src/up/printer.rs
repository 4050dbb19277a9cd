//! The output of `tenon up`: its own lines, and what its children say.
//!
//! A thread of its own does the writing, so that a reader who stops reading holds up nothing: what does not fit into
//! the queue is dropped here (the log files have it) and counted.

use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::Duration,
};

/// How many lines may wait for a slow reader.
const QUEUE: usize = 4096;

enum Line {
    Out(String),
    Err(String),
}

/// Writes lines to standard output and standard error. Clones write to the same place.
#[derive(Clone)]
pub struct Printer {
    lines: mpsc::SyncSender<Line>,
    /// Lines of children dropped since the last one that was written.
    dropped: Arc<AtomicU64>,
}

/// Waits for the last lines when it is finished.
pub struct Written {
    thread: JoinHandle<()>,
    done: mpsc::Receiver<()>,
}

impl Printer {
    /// A printer to the process' own streams.
    pub fn start() -> (Self, Written) {
        Self::to(io::stdout(), io::stderr())
    }

    fn to(mut out: impl Write + Send + 'static, mut err: impl Write + Send + 'static) -> (Self, Written) {
        let (lines, queue) = mpsc::sync_channel(QUEUE);
        let (finished, done) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            for line in queue {
                // A closed pipe is not an error: whoever reads has seen enough, and the mesh runs on.
                let _ = match line {
                    Line::Out(text) => writeln!(out, "{text}").and_then(|()| out.flush()),
                    Line::Err(text) => writeln!(err, "{text}"),
                };
            }
            let _ = finished.send(());
        });
        (Self { lines, dropped: Arc::default() }, Written { thread, done })
    }

    /// A line of `tenon up` itself, on standard output.
    pub fn progress(&self, text: impl Into<String>) {
        self.send(Line::Out(text.into()));
    }

    /// A line that an operator should see, on standard error.
    pub fn warn(&self, text: &str) {
        self.send(Line::Err(format!("tenon up: {text}")));
    }

    /// A line that a child wrote, on standard error, with the child's name.
    pub fn child(&self, name: &str, text: &str) {
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            let note = format!("tenon up: {dropped} lines of children are in the log files only");
            if self.lines.try_send(Line::Err(note)).is_err() {
                self.dropped.fetch_add(dropped, Ordering::Relaxed);
            }
        }
        if self.lines.try_send(Line::Err(format!("{name} | {text}"))).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn send(&self, line: Line) {
        let _ = self.lines.try_send(line);
    }
}

impl Written {
    /// Waits until everything is written, but not long for a reader who does not read. All printers must be gone.
    pub fn wait(self) {
        if self.done.recv_timeout(Duration::from_secs(1)).is_ok() {
            let _ = self.thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Shared {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn progress_goes_to_standard_output_and_children_to_standard_error() {
        let (out, err) = (Shared::default(), Shared::default());
        let (printer, written) = Printer::to(out.clone(), err.clone());
        printer.child("media", "hello");
        printer.progress("ready");
        drop(printer);
        written.wait();
        assert_eq!(out.text(), "ready\n");
        assert_eq!(err.text(), "media | hello\n");
    }

    #[test]
    fn a_reader_who_does_not_read_holds_up_nobody() {
        /// Blocks until the test lets go of the lock.
        struct Stuck(Arc<Mutex<()>>);
        impl Write for Stuck {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                drop(self.0.lock().unwrap());
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let stuck = Arc::new(Mutex::new(()));
        let held = stuck.lock().unwrap();
        let (printer, written) = Printer::to(io::sink(), Stuck(Arc::clone(&stuck)));
        for _ in 0..QUEUE * 2 {
            printer.child("noisy", "line");
        }
        assert!(printer.dropped.load(Ordering::Relaxed) > 0);
        drop(held);
        drop(printer);
        written.wait();
    }
}
