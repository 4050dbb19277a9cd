//! Reading the files of a policy folder.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;

use crate::{Problem, Problems, parse::check_beside};

/// The largest policy file that is read. A million rules fit into several of them; anything larger is a mistake.
pub const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;

/// The largest policy, all its files together. It fits into one request to the policy service.
pub const MAX_FOLDER_BYTES: u64 = 48 * 1024 * 1024;

/// How deep folders may stand in one another.
const MAX_FOLDERS: usize = 32;

/// What a folder may take of this process.
struct Limits {
    /// Bytes of one file.
    file: u64,
    /// Bytes of all files.
    folder: u64,
    /// Files and folders that are looked at, also such as are no policy: a link to the root of the machine is a mistake.
    entries: usize,
}

const LIMITS: Limits = Limits { file: MAX_FILE_BYTES, folder: MAX_FOLDER_BYTES, entries: 50_000 };

/// One policy file as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// Below the folder, with `/`.
    pub path: String,
    /// Its content.
    pub text: String,
}

/// Reads every `*.yaml` below the folder, in the byte order of their paths.
///
/// Symbolic links are followed, as Kubernetes mounts every file by one. Files and folders whose name begins with `.` are
/// passed over: among them are the generations of such a mount and the backups of editors. A `*.yml` is a problem: it was
/// meant to be policy, and a quarantine in it would do nothing. A link to nowhere may have
/// been a folder of policy files, so it is a problem whatever its name. Nothing in the folder makes this wait, or take
/// more memory than the limits say: pipes and devices are not opened, and no more is read than is allowed.
///
/// # Errors
/// When anything could not be read: that, and everything that is wrong in the files that could be, so that nobody
/// corrects a folder twice. Each problem names its file as the user can open it.
pub fn read_folder(dir: &Path) -> Result<Vec<SourceFile>, Problems> {
    read_within(dir, &LIMITS)
}

fn read_within(dir: &Path, limits: &Limits) -> Result<Vec<SourceFile>, Problems> {
    let mut walk = Walk::through(dir, limits);
    let mut files = Vec::with_capacity(walk.found.len());
    let mut bytes = 0;
    for (path, file) in std::mem::take(&mut walk.found) {
        match read_file(&file, limits.file) {
            Ok(text) if bytes + text.len() as u64 > limits.folder => {
                let most = limits.folder >> 20;
                let message =
                    format!("the files up to this one are larger than {most} MiB together, expected a smaller policy");
                walk.problems.push(Problem { file: path, line: 1, column: 1, message });
                break;
            }
            Ok(text) => {
                bytes += text.len() as u64;
                files.push(SourceFile { path, text });
            }
            Err((line, column, message)) => walk.problems.push(Problem { file: path, line, column, message }),
        }
    }
    match walk.problems.is_empty() {
        true => Ok(files),
        false => Err(check_beside(&files, walk.problems).below(dir)),
    }
}

/// What a folder looks like without opening its files: two looks that are equal found, very likely, the same content.
///
/// Not proof: a file that is written twice within the file system's clock tick may look the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprint {
    files: Vec<(String, Option<Look>)>,
    problems: Vec<Problem>,
}

/// One file, its symbolic links resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Look {
    real: PathBuf,
    device: u64,
    inode: u64,
    bytes: u64,
    /// Of the content and of the inode: the latter changes when a file takes another's place with its old time.
    times: [(i64, i64); 2],
}

/// Looks at every file that [`read_folder`] would read, and opens none.
pub fn fingerprint(dir: &Path) -> Fingerprint {
    let walk = Walk::through(dir, &LIMITS);
    let look = |path: &Path| {
        let real = path.canonicalize().ok()?;
        let metadata = fs::metadata(&real).ok()?;
        let times = [(metadata.mtime(), metadata.mtime_nsec()), (metadata.ctime(), metadata.ctime_nsec())];
        Some(Look { real, device: metadata.dev(), inode: metadata.ino(), bytes: metadata.len(), times })
    };
    let files = walk.found.into_iter().map(|(below, path)| (below, look(&path))).collect();
    Fingerprint { files, problems: walk.problems }
}

/// What there is below a folder.
struct Walk {
    /// Path below the folder, and how it is opened.
    found: Vec<(String, PathBuf)>,
    /// They name what they are about by its path below the folder.
    problems: Vec<Problem>,
    /// The folders that the walk stands in, links resolved: one that comes again is a loop.
    above: Vec<PathBuf>,
    /// Files and folders that it may still come by.
    left: usize,
}

impl Walk {
    fn through(dir: &Path, limits: &Limits) -> Self {
        let mut walk = Self { found: Vec::new(), problems: Vec::new(), above: Vec::new(), left: limits.entries };
        walk.folder(dir, "");
        walk.found.sort_unstable();
        walk.problems.sort_unstable();
        walk
    }

    fn folder(&mut self, dir: &Path, below: &str) {
        let entries = match dir.canonicalize().and_then(|real| Ok((fs::read_dir(dir)?, real))) {
            Ok((_, real)) if self.above.contains(&real) => {
                let message = "a folder that contains itself by a symbolic link, expected a tree of folders";
                return self.problem(below, message.to_owned());
            }
            Ok(_) if self.above.len() >= MAX_FOLDERS => {
                let message = format!("folders stand in one another too deep, expected at most {MAX_FOLDERS} levels");
                return self.problem(below, message);
            }
            Ok((entries, real)) => {
                self.above.push(real);
                entries
            }
            Err(error) => {
                return self.problem(below, format!("cannot read this folder: {error}, expected policy files in it"));
            }
        };
        for entry in entries {
            if self.left == 0 {
                let message = "too many files and folders up to here, expected a folder of policy files alone";
                self.problem(below, message.to_owned());
                break;
            }
            self.left -= 1;
            match entry {
                Ok(entry) => self.entry(&entry, below),
                Err(error) => {
                    self.problem(below, format!("cannot read this folder: {error}, expected policy files in it"))
                }
            }
        }
        self.above.pop();
    }

    fn entry(&mut self, entry: &fs::DirEntry, below: &str) {
        let path = entry.path();
        let name = entry.file_name();
        let Some(name) = name.to_str() else {
            if path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml") {
                let below = join(below, &name.to_string_lossy());
                self.problem(&below, "a file name that is not UTF-8, expected one that is".to_owned());
            }
            return;
        };
        if name.starts_with('.') {
            return;
        }
        let below = join(below, name);
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => self.folder(&path, &below),
            Ok(metadata) if name.ends_with(".yaml") => {
                if !metadata.is_file() {
                    self.problem(&below, NO_FILE.to_owned());
                } else {
                    self.found.push((below, path));
                }
            }
            Ok(_) if name.ends_with(".yml") => {
                self.problem(&below, "policy files end in .yaml: rename it".to_owned());
            }
            Ok(_) => {}
            Err(error) if name.ends_with(".yaml") => {
                self.problem(&below, format!("cannot read this file: {error}, expected a policy file"));
            }
            Err(error) => {
                self.problem(&below, format!("cannot tell what this is: {error}, expected a file or a folder"));
            }
        }
    }

    fn problem(&mut self, below: &str, message: String) {
        self.problems.push(Problem { file: below.to_owned(), line: 1, column: 1, message });
    }
}

fn join(below: &str, name: &str) -> String {
    if below.is_empty() { name.to_owned() } else { format!("{below}/{name}") }
}

const NO_FILE: &str = "neither a file nor a folder, expected a policy file";

/// The text of a file, or the line and column of what is wrong with it.
fn read_file(path: &Path, most: u64) -> Result<String, (u32, u32, String)> {
    let unreadable = |error: io::Error| (1, 1, format!("cannot read this file: {error}, expected a policy file"));
    // Whatever takes the file's place between two looks, opening it neither waits for a writer nor takes a terminal.
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
    let file = fs::OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err((1, 1, NO_FILE.to_owned()));
    }
    let too_large = || (1, 1, format!("the file is larger than {} MiB, expected smaller files: split it", most >> 20));
    if metadata.len() > most {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    // One byte more than allowed tells a file that is too large, also one that grows meanwhile.
    io::Read::read_to_end(&mut io::Read::take(file, most + 1), &mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > most {
        return Err(too_large());
    }
    String::from_utf8(bytes).map_err(|error| {
        let good =
            String::from_utf8_lossy(error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or_default());
        let line = good.matches('\n').count() + 1;
        let column = good.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        (number(line), number(column), "a byte that is not UTF-8, expected text in UTF-8".to_owned())
    })
}

#[cfg(test)]
mod tests;
