//! Where a service keeps its truth, as it stands on the command line.

use std::{fmt, path::PathBuf, str::FromStr};

/// `--store embedded:PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Store {
    /// A file of the embedded store; for `tenon up`, the folder of the files of all services.
    Embedded(PathBuf),
}

impl Store {
    /// The path of the embedded store.
    pub fn path(&self) -> &std::path::Path {
        match self {
            Self::Embedded(path) => path,
        }
    }
}

impl FromStr for Store {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("embedded", path)) if !path.is_empty() => Ok(Self::Embedded(path.into())),
            Some(("embedded", _)) => Err("no path given: write embedded:PATH".into()),
            _ => Err("unknown kind of store: write embedded:PATH".into()),
        }
    }
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded(path) => write!(f, "embedded:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_read_and_written_back() {
        let store: Store = "embedded:a/b.redb".parse().unwrap();
        assert_eq!(store.path(), std::path::Path::new("a/b.redb"));
        assert_eq!(store.to_string(), "embedded:a/b.redb");
    }

    #[test]
    fn other_kinds_and_missing_paths_are_refused_with_what_to_write() {
        for text in ["", "embedded", "embedded:", "nats://host:4222", "/path"] {
            let problem = text.parse::<Store>().unwrap_err();
            assert!(problem.ends_with("write embedded:PATH"), "{text}: {problem}");
        }
    }
}
