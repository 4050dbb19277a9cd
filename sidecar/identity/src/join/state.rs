//! What a process keeps of its identity on disk. Each file is replaced as a whole: written aside, synced, renamed.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;

use mesh_config::names::ServiceName;
use zeroize::Zeroizing;

pub(super) use asap_key::{AsapKey, discard_next, load_key, load_next, promote_next, store_key, store_next};

pub(super) use attempt::{Attempt, attempt, forget_attempt};

use super::{Config, JoinError};
use crate::{Rotation, Svid, TrustBundle};

mod asap_key;
mod attempt;

/// Private key and chain in one file, so that no crash leaves a key beside the certificate of another.
const SVID: &str = "svid.pem";
/// The roots, below lines that say how far rotations are.
const BUNDLE: &str = "bundle.pem";
/// What this mesh was pinned by, one pin a line, the first start's first: the bundle's own hash changes when a root is
/// rotated, and the arguments of the process need not.
const PINS: &str = "bundle.pin";
/// Pins that are kept beside the first.
const LATEST_PINS: usize = 16;

/// What a start without the network begins with.
#[derive(Debug)]
pub(super) struct Stored {
    pub svid: Svid,
    pub bundle: TrustBundle,
    pub asap_key: AsapKey,
}

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
    NotYetValid { not_before: u64, now: u64 },
}

impl Unusable {
    /// What is missing when there is nothing to attest the process either.
    pub(super) fn without_proof(self, config: Config) -> JoinError {
        let Config { state_dir: dir, service, .. } = config;
        match self {
            Self::NotYetValid { not_before, now } => JoinError::NotYetValid { dir, not_before, now },
            Self::Absent | Self::Damaged(_) | Self::OtherMesh | Self::OtherService(_) | Self::Expired => {
                JoinError::NoToken { why: self.to_string(), dir, service }
            }
        }
    }
}

pub(super) fn load(dir: &Path, service: &ServiceName, pin: &str, now: u64) -> Result<Stored, Unusable> {
    let pins = read(dir, PINS)?;
    let svid = svid_from_pem(&read(dir, SVID)?).ok_or(Unusable::Damaged("certificate or its key"))?;
    let bundle = bundle_from_pem(&svid, &read(dir, BUNDLE)?).ok_or(Unusable::Damaged("trust bundle"))?;
    if !is_right(pin, &pins, &bundle) {
        return Err(Unusable::OtherMesh);
    }
    if svid.id().service_name() != Some(service) {
        return Err(Unusable::OtherService(svid.id().to_string()));
    }
    if now > svid.not_after() {
        return Err(Unusable::Expired);
    }
    if now < svid.not_before() {
        return Err(Unusable::NotYetValid { not_before: svid.not_before(), now });
    }
    Ok(Stored { svid, bundle, asap_key: load_key(dir, service)? })
}

/// The bundle of the last run, if it is of the mesh with this pin: for a process whose SVID has ended while the roots
/// were rotated.
pub(super) fn known_bundle(dir: &Path, pin: &str) -> Option<TrustBundle> {
    let (_, bundle) = on_disk(dir)?;
    is_right(pin, &read(dir, PINS).ok()?, &bundle).then_some(bundle)
}

/// The serial of the stored SVID, and the stored bundle.
pub(super) fn on_disk(dir: &Path) -> Option<(String, TrustBundle)> {
    let svid = svid_from_pem(&read(dir, SVID).ok()?)?;
    let bundle = bundle_from_pem(&svid, &read(dir, BUNDLE).ok()?)?;
    Some((svid.serial().to_owned(), bundle))
}

/// A pin is right when this mesh was pinned by it before, or when it is the SHA-256 of the bundle or of a root in it.
fn is_right(pin: &str, pins: &str, bundle: &TrustBundle) -> bool {
    pins.lines().any(|known| known.trim() == pin) || bundle.pinned_by(pin).is_some()
}

/// The pins go last: state without them counts as absent.
pub(super) fn store_all(
    dir: &Path,
    pin: &str,
    svid: &Svid,
    bundle: &TrustBundle,
    asap_key: &AsapKey,
) -> Result<(), JoinError> {
    create(dir)?;
    let pins = known_bundle(dir, pin).and_then(|_| read(dir, PINS).ok());
    remove(dir, PINS)?;
    discard_next(dir)?;
    store_key(dir, asap_key)?;
    write_svid(dir, svid, bundle)?;
    write(dir, PINS, with_pins(pins.as_deref().map_or("", String::as_str), &[pin, &bundle.pin()]).as_bytes())?;
    forget_attempt(dir)
}

/// What was replaced while the process ran. The pins come first, so that a mesh whose roots have changed twice is still
/// known by each of them.
pub(super) fn store_svid(dir: &Path, svid: &Svid, bundle: &TrustBundle) -> Result<(), JoinError> {
    add_pin(dir, &bundle.pin())?;
    write_svid(dir, svid, bundle)
}

/// Notes a pin that was found to be right by the stored bundle, which may change.
pub(super) fn remember_pin(dir: &Path, pin: &str) {
    if let Err(error) = add_pin(dir, pin) {
        tracing::warn!(%error, "the pin could not be noted: it is right for as long as the stored trust bundle lasts");
    }
}

fn add_pin(dir: &Path, pin: &str) -> Result<(), JoinError> {
    let Ok(pins) = read(dir, PINS) else { return Ok(()) };
    if pins.lines().any(|known| known.trim() == pin) {
        return Ok(());
    }
    write(dir, PINS, with_pins(&pins, &[pin]).as_bytes())
}

fn with_pins(pins: &str, more: &[&str]) -> String {
    let mut all: Vec<&str> = pins.lines().map(str::trim).filter(|pin| !pin.is_empty()).collect();
    for pin in more {
        if !all.contains(pin) {
            all.push(pin);
        }
    }
    if all.len() > LATEST_PINS + 1 {
        all.drain(1..all.len() - LATEST_PINS);
    }
    all.join("\n") + "\n"
}

/// The bundle first: an SVID of a new root is of no use beside an old bundle, the other way round nothing is lost.
fn write_svid(dir: &Path, svid: &Svid, bundle: &TrustBundle) -> Result<(), JoinError> {
    write(dir, BUNDLE, bundle_to_pem(bundle).as_bytes())?;
    let both = Zeroizing::new(format!("{}{}", svid.key_pem().as_str(), svid.chain_pem()));
    write(dir, SVID, both.as_bytes())
}

fn svid_from_pem(text: &str) -> Option<Svid> {
    let end = "-----END PRIVATE KEY-----";
    let (key, chain) = text.split_at(text.find(end)? + end.len());
    Svid::from_pem(chain, key).ok()
}

/// Explanatory text before the first block (RFC 7468 §5.2).
fn bundle_to_pem(bundle: &TrustBundle) -> String {
    let Rotation { sequence, issuing_authority, rekey_created_before } = bundle.rotation();
    let authority = issuing_authority.map(|hash| crate::svid::hex(&hash)).unwrap_or_default();
    let roots = bundle.to_pem();
    format!(
        "sequence: {sequence}\nissuing-authority: {authority}\nrekey-created-before: {rekey_created_before}\n{roots}"
    )
}

fn bundle_from_pem(svid: &Svid, text: &str) -> Option<TrustBundle> {
    let bundle = TrustBundle::from_pem(svid.id().trust_domain().clone(), text).ok()?;
    let line = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let number = |name| line(name).and_then(|value| value.trim().parse().ok()).unwrap_or_default();
    Some(bundle.with_rotation(Rotation {
        sequence: number("sequence"),
        issuing_authority: line("issuing-authority").and_then(|hash| crate::svid::unhex(hash.trim())),
        rekey_created_before: number("rekey-created-before"),
    }))
}

pub(super) fn read(dir: &Path, name: &str) -> Result<Zeroizing<String>, Unusable> {
    match fs::read(dir.join(name)) {
        Ok(bytes) => match String::from_utf8(bytes) {
            Ok(text) => Ok(Zeroizing::new(text)),
            Err(_) => Err(Unusable::Damaged("not text")),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(Unusable::Absent),
        Err(_) => Err(Unusable::Damaged("not readable")),
    }
}

pub(super) fn create(dir: &Path) -> Result<(), JoinError> {
    let mut folder = fs::DirBuilder::new();
    folder.recursive(true).mode(0o700);
    folder.create(dir).map_err(|source| JoinError::State { path: dir.to_owned(), source })
}

pub(super) fn write(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), JoinError> {
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

fn remove(dir: &Path, name: &str) -> Result<(), JoinError> {
    match fs::remove_file(dir.join(name)) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(JoinError::State { path: dir.join(name), source })
        }
        _ => Ok(()),
    }
}
