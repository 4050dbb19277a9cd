//! Reading the files of a policy folder.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use crate::{Problem, Problems, parse::check_beside};

/// The largest policy file that is read. A million rules fit into several of them; anything larger is a mistake.
pub const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;

/// How deep folders may stand in one another.
const MAX_FOLDERS: usize = 32;

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
/// passed over: among them are the generations of such a mount and the backups of editors.
///
/// # Errors
/// When anything could not be read: that, and everything that is wrong in the files that could be, so that nobody
/// corrects a folder twice. Each problem names its file as the user can open it.
pub fn read_folder(dir: &Path) -> Result<Vec<SourceFile>, Problems> {
    let mut walk = Walk::through(dir);
    let mut files = Vec::with_capacity(walk.found.len());
    for (path, file) in std::mem::take(&mut walk.found) {
        match read_file(&file) {
            Ok(text) => files.push(SourceFile { path, text }),
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
    let walk = Walk::through(dir);
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
}

impl Walk {
    fn through(dir: &Path) -> Self {
        let mut walk = Self { found: Vec::new(), problems: Vec::new(), above: Vec::new() };
        walk.folder(dir, "");
        walk.found.sort_unstable();
        walk.problems.sort_unstable();
        walk
    }

    fn folder(&mut self, dir: &Path, below: &str) {
        let entries = match dir.canonicalize().and_then(|real| Ok((fs::read_dir(dir)?, real))) {
            Ok((_, real)) if self.above.contains(&real) || self.above.len() >= MAX_FOLDERS => {
                let message = "a folder that contains itself by a symbolic link, expected a tree of folders";
                return self.problem(below, message.to_owned());
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
            if path.extension().is_some_and(|extension| extension == "yaml") {
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
                    self.problem(&below, "neither a file nor a folder, expected a policy file".to_owned());
                } else {
                    self.found.push((below, path));
                }
            }
            Ok(_) => {}
            Err(error) if name.ends_with(".yaml") => {
                self.problem(&below, format!("cannot read this file: {error}, expected a policy file"));
            }
            // A link to nowhere that claims to be no policy.
            Err(_) => {}
        }
    }

    fn problem(&mut self, below: &str, message: String) {
        self.problems.push(Problem { file: below.to_owned(), line: 1, column: 1, message });
    }
}

fn join(below: &str, name: &str) -> String {
    if below.is_empty() { name.to_owned() } else { format!("{below}/{name}") }
}

/// The text of a file, or the line and column of what is wrong with it.
fn read_file(path: &Path) -> Result<String, (u32, u32, String)> {
    let unreadable = |error: io::Error| (1, 1, format!("cannot read this file: {error}, expected a policy file"));
    let file = fs::File::open(path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    // One byte more than allowed tells a file that is too large, also one that grows meanwhile.
    io::Read::read_to_end(&mut io::Read::take(file, MAX_FILE_BYTES + 1), &mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err((1, 1, "the file is larger than 4 MiB, expected smaller files: split it".to_owned()));
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
