//! Where `tenon asap verify` finds public keys: folders and key repositories, asked in order (A15).

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use mesh_asap::{Kid, Lookup, PublicKey};
use mesh_identity::repository::{self, Settings, SettingsError};
use serde::Serialize;

use super::Surroundings;
use crate::{cli, failure::Failure};

/// What one repository may take: a person waits for it.
const DEADLINE: Duration = Duration::from_secs(5);
/// Longest file, in bytes, as of a repository's answer.
const MAX_FILE: u64 = 16 * 1024;
const VARIABLES: [&str; 2] = ["ASAP_PUBLIC_KEY_REPOSITORY_URL", "ASAP_PUBLIC_KEY_FALLBACK_REPOSITORY_URL"];

/// All places, in order.
pub(super) struct Sources(Vec<Source>);

enum Source {
    Folder(PathBuf),
    Repository(Settings),
}

/// What one place said.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Asked {
    keys: String,
    answer: String,
}

/// Why a place gave no key.
enum Miss {
    /// It has none.
    Absent(String),
    /// It cannot say.
    Failed(String),
}

impl Sources {
    /// # Errors
    /// No place is named, a URL is none, or the certificates cannot be read.
    pub(super) fn of(args: &cli::Verify, surroundings: &Surroundings) -> Result<Self, Failure> {
        let named: Vec<String> = if args.keys.is_empty() {
            surroundings.environment(&VARIABLES)?.repositories.into_iter().map(String::from).collect()
        } else {
            args.keys.clone()
        };
        if named.is_empty() {
            return Err(
                Failure::usage("nowhere to find public keys").next(format!("give --keys, or set {}", VARIABLES[0]))
            );
        }
        let roots = args.ca.as_deref().map(certificates).transpose()?;
        let source = |name: &String| {
            if !name.contains("://") {
                return Ok(Source::Folder(name.into()));
            }
            let settings =
                Settings { roots: roots.clone(), fetch_deadline: DEADLINE, ..Settings::new([name.as_str()]) };
            settings.check().map_err(|error| unusable(&error))?;
            Ok(Source::Repository(settings))
        };
        named.iter().map(source).collect::<Result<_, _>>().map(Self)
    }

    /// The first key that one of them has, and what each said that was asked. Unknown only when all say that there is
    /// none.
    pub(super) async fn ask(self, kid: &Kid) -> (Lookup, Vec<Asked>) {
        let mut asked = Vec::new();
        let mut absent = true;
        for source in self.0 {
            let keys = source.to_string();
            let (found, answer) = match source.ask(kid).await {
                Ok(key) => (Some(key), "it has the key".to_owned()),
                Err(Miss::Absent(answer)) => (None, answer),
                Err(Miss::Failed(answer)) => {
                    absent = false;
                    (None, answer)
                }
            };
            asked.push(Asked { keys, answer });
            if let Some(key) = found {
                return (Lookup::Found(Arc::new(key)), asked);
            }
        }
        (if absent { Lookup::Unknown } else { Lookup::Unavailable }, asked)
    }
}

impl Source {
    async fn ask(self, kid: &Kid) -> Result<PublicKey, Miss> {
        match self {
            Self::Folder(folder) => of_folder(&folder, kid),
            Self::Repository(settings) => {
                let answer =
                    repository::ask_once(settings, kid).await.map_err(|error| Miss::Failed(error.to_string()))?;
                // One base URL: one miss.
                answer.map_err(|misses| match misses.first() {
                    Some(miss) if miss.is_absent() => Miss::Absent(miss.to_string()),
                    Some(miss) => Miss::Failed(miss.to_string()),
                    None => Miss::Failed("it was not asked".into()),
                })
            }
        }
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Folder(folder) => write!(out, "{}", folder.display()),
            Self::Repository(settings) => out.write_str(&settings.bases.join(" ")),
        }
    }
}

fn unusable(error: &SettingsError) -> Failure {
    match error {
        SettingsError::Roots(_) => Failure::new(error.to_string()).next("name a PEM file of CA certificates with --ca"),
        SettingsError::NoBase | SettingsError::Base(_) => {
            Failure::usage(error.to_string()).next("name a folder or an https URL")
        }
    }
}

/// `DIR/<kid>`, whose segments the grammar of key ids keeps below the folder.
fn of_folder(folder: &Path, kid: &Kid) -> Result<PublicKey, Miss> {
    if !folder.is_dir() {
        return Err(Miss::Failed("there is no such folder".into()));
    }
    let file = kid.segments().fold(folder.to_owned(), |path, segment| path.join(segment));
    let bytes = match fs::metadata(&file) {
        Ok(about) if about.len() > MAX_FILE => Err(Miss::Failed(format!("the file is longer than {MAX_FILE} bytes"))),
        Ok(about) if about.is_dir() => Err(Miss::Absent("there is a folder of this name, and no key".into())),
        Ok(_) => fs::read_to_string(&file).map_err(|error| Miss::Failed(format!("the file cannot be read: {error}"))),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Err(Miss::Absent("it has no such file".into()))
        }
        Err(error) => Err(Miss::Failed(format!("the file cannot be read: {error}"))),
    }?;
    PublicKey::from_pem(&bytes).map_err(|error| Miss::Failed(format!("the file is no key: {error}")))
}

fn certificates(file: &Path) -> Result<Vec<rustls_pki_types::CertificateDer<'static>>, Failure> {
    use rustls_pki_types::pem::PemObject as _;
    let problem = |what: String| {
        Failure::new(format!("{}: {what}", file.display())).next("name a PEM file of CA certificates with --ca")
    };
    let text = fs::read(file).map_err(|error| problem(format!("cannot be read: {error}")))?;
    let certificates = rustls_pki_types::CertificateDer::pem_slice_iter(&text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| problem(error.to_string()))?;
    if certificates.is_empty() { Err(problem("has no certificate".into())) } else { Ok(certificates) }
}
