//! Reading the files of a policy folder.

use std::path::Path;

use crate::Problems;

/// The largest policy file that is read. A million rules fit into several of them; anything larger is a mistake.
pub const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;

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
/// # Errors
/// Everything that could not be read; each problem names its file as the user can open it.
pub fn read_folder(dir: &Path) -> Result<Vec<SourceFile>, Problems> {
    Err(Problems::of_file(dir.display().to_string(), "not read yet"))
}
