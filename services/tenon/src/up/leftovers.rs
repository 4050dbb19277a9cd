//! What apps of a killed `tenon up` started, and left.
//!
//! The kernel ends the children of a killed `tenon up`, but not what an app's shell or wrapper had started in turn:
//! that keeps ports and runs beside the next mesh. Apps carry a mark in their environment, which they hand on.

use std::{
    ffi::{OsStr, OsString},
    fs,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::PathBuf,
};

use rustix::process::{Pid, PidfdFlags, Signal, getuid, pidfd_open, pidfd_send_signal};

use crate::data::Data;

/// Name of the variable that says in every app which data folder's mesh it belongs to.
pub const MARK: &str = "TENON_DATA_FOLDER";

/// The value of [`MARK`]: the data folder, absolute and without links, so that each start writes it alike.
pub fn mark(data: &Data) -> OsString {
    fs::canonicalize(data.dir()).unwrap_or_else(|_| data.dir().to_owned()).into()
}

/// Kills every process of this user that carries the mark of this data folder, and says how many. Must be called with
/// the folder's lock held, before anything is started. Never kills this process, nor one that it runs in.
pub fn kill(data: &Data) -> usize {
    let mut entry = OsString::from(MARK);
    entry.push("=");
    entry.push(mark(data));
    let above = ancestors();
    let pids = fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    let pids = pids.filter_map(|process| process.file_name().to_str()?.parse().ok());
    pids.filter(|pid| !above.contains(pid)).filter(|pid| kill_marked(*pid, &entry).is_some()).count()
}

fn kill_marked(pid: i32, entry: &OsStr) -> Option<()> {
    // Held before the process is looked at, so that no other process of the same number can be hit.
    let process = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    let dir = PathBuf::from(format!("/proc/{pid}"));
    if fs::metadata(&dir).ok()?.uid() != getuid().as_raw() {
        return None;
    }
    let environment = fs::read(dir.join("environ")).ok()?;
    environment.split(|byte| *byte == 0).find(|variable| *variable == entry.as_bytes())?;
    pidfd_send_signal(process, Signal::KILL).ok()
}

/// This process, its parent, and so on.
fn ancestors() -> Vec<i32> {
    let mut found = Vec::new();
    let mut next = i32::try_from(std::process::id()).ok();
    while let Some(pid) = next.filter(|pid| *pid > 0 && !found.contains(pid)) {
        found.push(pid);
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        next = status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok());
    }
    found
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt as _, process::Command};

    use super::*;

    #[test]
    fn exactly_the_processes_with_the_mark_of_this_folder_are_killed() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (data, other) = (Data::new(dir.path()), Data::new(other.path()));
        let start = |mark: OsString| {
            let started = Command::new("sleep").arg("1000").env(MARK, mark).spawn().unwrap();
            // The kernel lets the parent go on a moment before it has laid out the new program's environment.
            while fs::read(format!("/proc/{}/environ", started.id())).unwrap().is_empty() {
                std::thread::yield_now();
            }
            started
        };
        let mut longer = mark(&data);
        longer.push("-2");
        let (mut marked, mut similar) = (start(mark(&data)), start(longer));
        assert_eq!(kill(&other), 0);
        assert_eq!(kill(&data), 1);
        assert_eq!(marked.wait().unwrap().signal(), Some(9));
        assert!(similar.try_wait().unwrap().is_none(), "another folder's goes on");
        similar.kill().unwrap();
        similar.wait().unwrap();
    }

    #[test]
    fn a_process_is_among_its_own_ancestors_and_so_is_its_parent() {
        let found = ancestors();
        assert_eq!(found[0], i32::try_from(std::process::id()).unwrap());
        assert_eq!(found[1], i32::try_from(std::os::unix::process::parent_id()).unwrap());
    }
}
