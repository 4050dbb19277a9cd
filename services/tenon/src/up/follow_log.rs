//! Prints what a child writes to its log file, as it is written.
//!
//! Children write to their files themselves: when `tenon up` is stopped or held up by a slow terminal, no pipe fills up
//! and no child waits for it.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::Path,
    time::Duration,
};

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::printer::Printer;

/// How often the file is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// The longest piece of a line that is printed as one.
const LINE: usize = 64 * 1024;
/// Bytes read at a look, so that one talkative child does not hold up the others.
const CHUNK: u64 = 1 << 20;

/// Follows the file at `path` from byte `from` on until `ended` is cancelled, and then to its end.
pub(super) async fn follow(
    path: impl AsRef<Path>,
    from: u64,
    name: String,
    printer: Printer,
    ended: CancellationToken,
) {
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut lines = Lines { name, printer, rest: Vec::new() };
    let Ok(mut file) = open(path.as_ref(), from) else { return };
    loop {
        let last = tokio::select! {
            () = ended.cancelled() => true,
            _ = looks.tick() => false,
        };
        // A file that cannot be read is no reason to end the child: its log is where it should be.
        while lines.read(&mut file).unwrap_or(0) > 0 && last {}
        if last {
            return lines.finish();
        }
    }
}

fn open(path: &Path, from: u64) -> io::Result<File> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(from))?;
    Ok(file)
}

struct Lines {
    name: String,
    printer: Printer,
    /// The beginning of a line whose end is not there yet.
    rest: Vec<u8>,
}

impl Lines {
    fn read(&mut self, file: &mut File) -> io::Result<usize> {
        let read = file.take(CHUNK).read_to_end(&mut self.rest)?;
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            self.print(&line);
        }
        while self.rest.len() > LINE {
            let piece: Vec<u8> = self.rest.drain(..LINE).collect();
            self.print(&piece);
        }
        Ok(read)
    }

    fn finish(mut self) {
        let rest = std::mem::take(&mut self.rest);
        if !rest.is_empty() {
            self.print(&rest);
        }
    }

    fn print(&self, line: &[u8]) {
        self.printer.child(&self.name, String::from_utf8_lossy(line).trim_end());
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[tokio::test]
    async fn everything_behind_the_beginning_is_read_to_the_end() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().write_all(b"before\n").unwrap();
        let (printer, _written) = Printer::start();
        let mut lines = Lines { name: "child".into(), printer, rest: Vec::new() };
        let mut reader = open(file.path(), 7).unwrap();
        file.as_file().write_all(b"one\ntw").unwrap();
        assert_eq!(lines.read(&mut reader).unwrap(), 6);
        assert_eq!(lines.rest, b"tw", "a line is printed when its end is there");
        file.as_file().write_all(&[b'x'; LINE + 10]).unwrap();
        lines.read(&mut reader).unwrap();
        assert!(lines.rest.len() <= LINE, "a line without an end does not grow for ever");
        assert_eq!(lines.read(&mut reader).unwrap(), 0);
    }
}
