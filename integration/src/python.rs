//! The Python packages that tests use as real peers: `make deps` puts them into `target/python`.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};

use crate::mesh::target_profile_dir;

/// A program of the virtual environment: `python`, `grpcurl`.
///
/// # Errors
/// It is not installed; the message says how to install it.
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    let profile = target_profile_dir()?;
    let path = profile.parent().unwrap_or(&profile).join("python/bin").join(name);
    ensure!(path.exists(), "{} is missing: run `make deps`", path.display());
    Ok(path)
}

/// A file that a package brought: a path below `site-packages`.
///
/// # Errors
/// It is not installed; the message says how to install it.
pub fn file(path: &str) -> anyhow::Result<PathBuf> {
    let profile = target_profile_dir()?;
    let environment = profile.parent().unwrap_or(&profile).join("python/lib");
    let versions = std::fs::read_dir(&environment).into_iter().flatten().flatten();
    let found = versions.map(|version| version.path().join("site-packages").join(path)).find(|path| path.exists());
    found.with_context(|| format!("{path} is missing below {}: run `make deps`", environment.display()))
}
