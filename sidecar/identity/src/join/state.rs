//! What a process keeps of its identity on disk. Each file is replaced as a whole: written aside, synced, renamed.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;

use mesh_asap::SigningKey;
use mesh_config::names::ServiceName;
use zeroize::Zeroizing;

use super::{JoinError, Joined};
use crate::{Identity, Svid, TrustBundle};

/// Private key and chain in one file, so that no crash leaves a key beside the certificate of another.
const SVID: &str = "svid.pem";
/// A data URI (A17): the key with its id.
const ASAP_KEY: &str = "asap.key";
const BUNDLE: &str = "bundle.pem";
/// The pin of the mesh that this state is of: the bundle's own hash changes when a root is rotated.
const PIN: &str = "bundle.pin";

/// Why the stored state is of no use.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    #[error("there is no stored identity")]
    Absent,
    #[error("the stored identity is damaged ({0})")]
    Damaged(&'static str),
    #[error("the stored identity is of another mesh")]
    OtherMesh,
    #[error("the stored identity is of {0}")]
    OtherService(String),
    #[error("the stored certificate has expired")]
    Expired,
    #[error("the stored certificate is not valid yet (is the clock right?)")]
    NotYetValid,
}

pub(super) fn load(dir: &Path, service: &ServiceName, pin: &str, now: u64) -> Result<Joined, Unusable> {
    let stored_pin = read(dir, PIN)?;
    if stored_pin.trim() != pin {
        return Err(Unusable::OtherMesh);
    }
    let svid = svid_from_pem(&read(dir, SVID)?).ok_or(Unusable::Damaged("certificate or its key"))?;
    if svid.id().service_name() != Some(service) {
        return Err(Unusable::OtherService(svid.id().to_string()));
    }
    if now > svid.not_after() {
        return Err(Unusable::Expired);
    }
    if now < svid.not_before() {
        return Err(Unusable::NotYetValid);
    }
    let bundle = TrustBundle::from_pem(svid.id().trust_domain().clone(), &read(dir, BUNDLE)?)
        .map_err(|_| Unusable::Damaged("trust bundle"))?;
    let asap_key = SigningKey::from_data_uri(read(dir, ASAP_KEY)?.trim()).map_err(|_| Unusable::Damaged("ASAP key"))?;
    if asap_key.issuer() != service.as_str() {
        return Err(Unusable::Damaged("ASAP key"));
    }
    Ok(Joined { identity: Identity::new(svid, bundle), asap_key: Arc::new(asap_key), key_position: None })
}

/// The pin goes last: state without it counts as absent.
pub(super) fn store_all(
    dir: &Path,
    pin: &str,
    svid: &Svid,
    bundle: &TrustBundle,
    asap_key: &SigningKey,
) -> Result<(), JoinError> {
    let mut folder = fs::DirBuilder::new();
    folder.recursive(true).mode(0o700);
    folder.create(dir).map_err(|source| JoinError::State { path: dir.to_owned(), source })?;
    match fs::remove_file(dir.join(PIN)) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            return Err(JoinError::State { path: dir.join(PIN), source });
        }
        _ => {}
    }
    write(dir, ASAP_KEY, asap_key.to_data_uri().as_bytes())?;
    store_svid(dir, svid, bundle)?;
    write(dir, PIN, pin.as_bytes())
}

/// The bundle first: an SVID of a new root is of no use beside an old bundle, the other way round nothing is lost.
pub(super) fn store_svid(dir: &Path, svid: &Svid, bundle: &TrustBundle) -> Result<(), JoinError> {
    write(dir, BUNDLE, bundle.to_pem().as_bytes())?;
    let both = Zeroizing::new(format!("{}{}", svid.key_pem().as_str(), svid.chain_pem()));
    write(dir, SVID, both.as_bytes())
}

fn svid_from_pem(text: &str) -> Option<Svid> {
    let end = "-----END PRIVATE KEY-----";
    let (key, chain) = text.split_at(text.find(end)? + end.len());
    Svid::from_pem(chain, key).ok()
}

fn read(dir: &Path, name: &str) -> Result<Zeroizing<String>, Unusable> {
    match fs::read(dir.join(name)) {
        Ok(bytes) => match String::from_utf8(bytes) {
            Ok(text) => Ok(Zeroizing::new(text)),
            Err(_) => Err(Unusable::Damaged("not text")),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(Unusable::Absent),
        Err(_) => Err(Unusable::Damaged("not readable")),
    }
}

fn write(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), JoinError> {
    let attempt = || -> std::io::Result<()> {
        let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(dir)?;
        file.as_file().set_permissions(fs::Permissions::from_mode(0o600))?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(dir.join(name)).map_err(|error| error.error)?;
        fs::File::open(dir)?.sync_all()
    };
    attempt().map_err(|source| JoinError::State { path: dir.join(name), source })
}
