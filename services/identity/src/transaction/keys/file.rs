//! A private key on the disk: a PEM block that `openssl pkey` reads, with what is known of the key above it.

use std::fs;
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use mesh_asap::{Kid, SigningKey, txn};
use tenon_proto::identity::v1::{Key, KeyUse};
use zeroize::Zeroizing;

use crate::ca::{CaError, ENCRYPTED_TAG, Passphrase};

/// What key ids begin with.
pub(crate) const KID_PREFIX: &str = "tenon-identity/txn-";
/// What the files' names end with.
const EXTENSION: &str = "pem";

/// Why a key of transaction tokens cannot be kept on the disk.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// A file could not be read or written.
    #[error("cannot {action} {}", path.display())]
    File {
        /// "create", "read", "write" or "remove".
        action: &'static str,
        /// Which file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{} is not a key of transaction tokens: restore it, or remove it and a new one is made", .0.display())]
    Content(PathBuf),
    /// The key is encrypted, and the passphrase is missing or another one.
    #[error("{} does not open: set TENON_CA_PASSPHRASE to what it was encrypted with, or remove it and a new one is made", .0.display())]
    Passphrase(PathBuf),
}

/// How far a key has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// Has signed from this second on, Unix time.
    Signing { since: u64 },
    /// Waits until everybody has its public half.
    Prepared,
}

/// The content of a file.
#[derive(Clone)]
pub(super) struct KeyFile {
    kid: Kid,
    /// Unix seconds.
    pub created: u64,
    pub stage: Stage,
    pem: Zeroizing<String>,
}

/// A new key with an id of its own.
pub(super) fn generate() -> SigningKey {
    let key = SigningKey::generate(txn::ISSUER).expect("a constant that can begin a key id");
    let id = key.kid().as_str().rsplit('/').next().unwrap_or_default();
    let kid = format!("{KID_PREFIX}{id}").parse().expect("hexadecimal digits keep the grammar of key ids");
    SigningKey::from_pkcs8(kid, &key.pkcs8()).expect("a key that was just made")
}

/// Whether a record of the repository is one of ours.
pub(super) fn is_transaction_key(key: &Key) -> bool {
    key.r#use() == KeyUse::Transaction && key.kid.starts_with(KID_PREFIX)
}

/// Every key in `dir`, which is made for its owner alone when it is not there.
pub(super) fn read_all(dir: &Path) -> Result<Vec<KeyFile>, KeyFileError> {
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |source| KeyFileError::File { action, path, source }
    };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed("create", dir))?;
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed("read", dir))? {
        let path = entry.map_err(failed("read", dir))?.path();
        if path.extension().is_some_and(|extension| extension == EXTENSION) {
            let text = Zeroizing::new(fs::read_to_string(&path).map_err(failed("read", &path))?);
            files.push(KeyFile::parse(&text).ok_or(KeyFileError::Content(path))?);
        }
    }
    Ok(files)
}

impl KeyFile {
    /// A key that was just made.
    pub(super) fn seal(key: &SigningKey, passphrase: Option<&Passphrase>, created: u64) -> Result<Self, CaError> {
        let pem = match passphrase {
            Some(passphrase) => passphrase.encrypt(&key.pkcs8())?,
            None => pem::encode(&pem::Pem::new("PRIVATE KEY", key.pkcs8().to_vec())),
        };
        Ok(Self { kid: key.kid().clone(), created, stage: Stage::Prepared, pem: Zeroizing::new(pem) })
    }

    fn parse(text: &str) -> Option<Self> {
        let (above, _) = text.split_once("-----BEGIN ")?;
        let field = |name: &str| above.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        let kid: Kid = field("kid")?.parse().ok()?;
        let created = field("created")?.parse().ok()?;
        let stage = match field("signing-since") {
            Some(since) => Stage::Signing { since: since.parse().ok()? },
            None => Stage::Prepared,
        };
        kid.as_str().starts_with(KID_PREFIX).then(|| {
            let pem = Zeroizing::new(text[above.len()..].to_owned());
            Self { kid, created, stage, pem }
        })
    }

    fn text(&self) -> Zeroizing<String> {
        let mut text = format!("kid: {}\ncreated: {}\n", self.kid, self.created);
        if let Stage::Signing { since } = self.stage {
            text += &format!("signing-since: {since}\n");
        }
        Zeroizing::new([&text, self.pem.as_str()].concat())
    }

    /// The key within.
    pub(super) fn open(&self, passphrase: Option<&Passphrase>) -> Result<SigningKey, KeyFileError> {
        let content = || KeyFileError::Content(self.name().into());
        let block = pem::parse(self.pem.as_bytes()).map_err(|_| content())?;
        let pkcs8 = if block.tag() == ENCRYPTED_TAG {
            let wrong = || KeyFileError::Passphrase(self.name().into());
            passphrase.ok_or_else(wrong)?.decrypt(block.contents()).map_err(|_| wrong())?
        } else {
            Zeroizing::new(block.into_contents())
        };
        SigningKey::from_pkcs8(self.kid.clone(), &pkcs8).map_err(|_| content())
    }

    /// The same key, put to use.
    pub(super) fn signing_since(self, since: u64) -> Self {
        Self { stage: Stage::Signing { since }, ..self }
    }

    /// On the disk when it returns, whole, for its owner alone.
    pub(super) fn write(&self, dir: &Path) -> Result<(), KeyFileError> {
        let path = dir.join(self.name());
        let new = path.with_extension("new");
        let write = || -> io::Result<()> {
            match fs::remove_file(&new) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
            file.write_all(self.text().as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            fs::File::open(dir)?.sync_all()
        };
        write().map_err(|source| KeyFileError::File { action: "write", path: path.clone(), source })
    }

    pub(super) fn remove(&self, dir: &Path) -> Result<(), KeyFileError> {
        let path = dir.join(self.name());
        match fs::remove_file(&path) {
            Err(source) if source.kind() != ErrorKind::NotFound => {
                Err(KeyFileError::File { action: "remove", path, source })
            }
            _ => Ok(()),
        }
    }

    fn name(&self) -> String {
        let id = self.kid.as_str().rsplit('/').next().unwrap_or_default();
        format!("{id}.{EXTENSION}")
    }
}
