//! The folder of a CA: what it is made of, and how it is read and begun.

use std::path::Path;

use mesh_config::names::TrustDomain;
use mesh_identity::{Rotation, TrustBundle};
use rcgen::{Issuer, KeyPair};
use rustls_pki_types::CertificateDer;

use super::certificates::{self, Facts, ISSUING_LIFETIME, sha256};
use super::files::{FIRST_ROOT, Files, Pair};
use super::state::{Issuing, Root, State};
use super::{CaError, Current, Passphrase, hex};

/// How often files are read that another process changes meanwhile.
const ATTEMPTS: usize = 5;

/// Where a CA lies, whose it is, and what its keys are encrypted with.
pub(super) struct Folder {
    pub files: Files,
    pub trust_domain: TrustDomain,
    /// For the keys that are written; those that are read may be older than it.
    passphrase: Option<Passphrase>,
}

/// A root's certificate and key.
pub(super) struct OpenedRoot {
    certificate: CertificateDer<'static>,
    key: KeyPair,
    facts: Facts,
}

/// A hierarchy as it shall be, while its files are being written.
pub(super) struct Draft<'a> {
    folder: &'a Folder,
    pub state: State,
    /// What was written for it, to be taken back when it does not come to count.
    written: Vec<Pair>,
    pub now: u64,
}

impl Folder {
    pub(super) fn new(dir: &Path, trust_domain: &TrustDomain, passphrase: Option<&Passphrase>) -> Self {
        Self { files: Files::new(dir), trust_domain: trust_domain.clone(), passphrase: passphrase.cloned() }
    }

    /// Makes the first root.
    pub(super) fn create(&self, now: u64) -> Result<(), CaError> {
        self.files.must_be_absent()?;
        self.files.create_dir()?;
        let (root, key) = self.make_root(now)?;
        self.files.pair(FIRST_ROOT).write(&root.pem(), &self.key_pem(&key)?)
    }

    pub(super) fn state(&self) -> Result<Option<State>, CaError> {
        self.files.state()
    }

    /// Reads and checks all that counts, and makes an issuing CA when there is none that could sign `now`.
    pub(super) fn open(&self, now: u64) -> Result<Current, CaError> {
        self.settled(|state| {
            let name = state.as_ref().map_or(FIRST_ROOT, |state| &state.active);
            let root = self.open_root(name)?;
            root.facts.must_be_valid(&self.files.pair(name).certificate, now)?;
            let state = match state {
                Some(state) => state,
                None => self.begin(&root.certificate, now)?,
            };
            let (bundle, root_ends) = self.bundle(&state)?;
            match self.issuer(&state) {
                Ok(_) if now > state.signing().not_after => self.replace_issuing(state, now),
                Ok((issuing, issuer)) => Ok(Current { state, bundle, root_ends, issuing, issuer }),
                Err(error @ (CaError::File { .. } | CaError::Crypto)) => Err(error),
                Err(error) => {
                    tracing::warn!(%error, "the issuing CA cannot be used: a new one is made");
                    self.replace_issuing(state, now)
                }
            }
        })
    }

    /// Reads all that counts.
    pub(super) fn load(&self) -> Result<Current, CaError> {
        self.settled(|state| {
            let path = self.files.state_path();
            self.load_state(state.ok_or(CaError::Content { path, what: "it is gone: put it back from a backup" })?)
        })
    }

    pub(super) fn load_state(&self, state: State) -> Result<Current, CaError> {
        let (bundle, root_ends) = self.bundle(&state)?;
        let (issuing, issuer) = self.issuer(&state)?;
        Ok(Current { state, bundle, root_ends, issuing, issuer })
    }

    /// `state` as it shall be next, and room for its files.
    pub(super) fn draft(&self, state: State, now: u64) -> Draft<'_> {
        Draft { folder: self, state, written: Vec::new(), now }
    }

    /// Reads again when another process changed what is being read.
    fn settled<T>(&self, read: impl Fn(Option<State>) -> Result<T, CaError>) -> Result<T, CaError> {
        let mut attempt = 1;
        loop {
            let state = self.files.state()?;
            match read(state.clone()) {
                Err(_) if attempt < ATTEMPTS && self.files.state()? != state => attempt += 1,
                outcome => return outcome,
            }
        }
    }

    /// The first `ca.json` beside a root that has none, with an issuing CA. Somebody else may have been faster.
    fn begin(&self, root: &CertificateDer<'_>, now: u64) -> Result<State, CaError> {
        let _locked = self.files.lock()?;
        if let Some(state) = self.files.state()? {
            return Ok(state);
        }
        let state = State {
            sequence: 1,
            active: FIRST_ROOT.to_owned(),
            roots: vec![Root { name: FIRST_ROOT.to_owned(), sha256: hex(&sha256(root)) }],
            issuing: Vec::new(),
            rekey_created_before: 0,
            store_mark: None,
            recovering: false,
        };
        let mut draft = self.draft(state, now);
        draft.add_issuing()?;
        self.files.write_state(&draft.state)?;
        Ok(draft.state)
    }

    /// A new issuing CA in the place of one that cannot be used. Somebody else may have been faster.
    fn replace_issuing(&self, mut state: State, now: u64) -> Result<Current, CaError> {
        let _locked = self.files.lock()?;
        if let Some(newer) = self.files.state()?.filter(|newer| *newer != state) {
            return self.load_state(newer);
        }
        state.sequence += 1;
        let mut draft = self.draft(state, now);
        draft.add_issuing()?;
        let current = self.load_state(draft.state)?;
        self.files.write_state(&current.state)?;
        self.files.sweep(&current.state);
        Ok(current)
    }

    /// And the last second of the root that signs.
    fn bundle(&self, state: &State) -> Result<(TrustBundle, u64), CaError> {
        let mut roots = Vec::with_capacity(state.roots.len());
        let mut ends = 0;
        for Root { name, sha256 } in &state.roots {
            let pair = self.files.pair(name);
            let (certificate, _) = pair.read()?;
            let (certificate, facts) = self.certificate(&pair, &certificate, sha256)?;
            if *name == state.active {
                ends = facts.not_after;
            }
            roots.push(certificate);
        }
        let issuing = sha256_of(&state.signing().sha256);
        let rotation = Rotation {
            sequence: state.sequence,
            issuing_authority: issuing,
            rekey_created_before: state.rekey_created_before,
        };
        Ok((TrustBundle::new(self.trust_domain.clone(), roots)?.with_rotation(rotation), ends))
    }

    fn issuer(&self, state: &State) -> Result<(CertificateDer<'static>, Issuer<'static, KeyPair>), CaError> {
        let Issuing { name, sha256, .. } = state.signing();
        let pair = self.files.pair(name);
        let (certificate, key) = pair.read()?;
        let (certificate, _) = self.certificate(&pair, &certificate, sha256)?;
        let key = self.key(&pair, &certificate, &key)?.0;
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(CaError::Sign)?;
        Ok((certificate, issuer))
    }

    pub(super) fn open_root(&self, name: &str) -> Result<OpenedRoot, CaError> {
        let pair = self.files.pair(name);
        let (certificate, key) = pair.read()?;
        let certificate = certificates::read_certificate(&pair.certificate, &certificate)?;
        let (key, facts) = self.key(&pair, &certificate, &key)?;
        Ok(OpenedRoot { certificate, key, facts })
    }

    /// The certificate that `ca.json` means.
    fn certificate(&self, pair: &Pair, pem: &str, expected: &str) -> Result<(CertificateDer<'static>, Facts), CaError> {
        let certificate = certificates::read_certificate(&pair.certificate, pem)?;
        let facts = certificates::check_authority(&pair.certificate, &certificate, &self.trust_domain)?;
        if hex(&sha256(&certificate)) == expected {
            return Ok((certificate, facts));
        }
        let what = "not the certificate that ca.json names: put back the files that belong together";
        Err(CaError::Content { path: pair.certificate.clone(), what })
    }

    /// The key of `certificate`, if it is one of an authority of this mesh.
    fn key(&self, pair: &Pair, certificate: &CertificateDer<'_>, pem: &str) -> Result<(KeyPair, Facts), CaError> {
        let facts = certificates::check_authority(&pair.certificate, certificate, &self.trust_domain)?;
        let key = certificates::read_key(&pair.key, pem, self.passphrase.as_ref())?;
        if rcgen::PublicKeyData::subject_public_key_info(&key) != facts.spki {
            return Err(CaError::KeyOfAnother(pair.key.clone()));
        }
        Ok((key, facts))
    }

    fn make_root(&self, now: u64) -> Result<(rcgen::Certificate, KeyPair), CaError> {
        let make = || {
            let key = KeyPair::generate()?;
            Ok((certificates::root(&self.trust_domain, now)?.self_signed(&key)?, key))
        };
        make().map_err(CaError::Sign)
    }

    fn key_pem(&self, key: &KeyPair) -> Result<zeroize::Zeroizing<String>, CaError> {
        certificates::key_pem(key, self.passphrase.as_ref())
    }
}

impl Draft<'_> {
    /// A new root, trusted beside the present one.
    pub(super) fn add_root(&mut self) -> Result<(), CaError> {
        let (root, key) = self.folder.make_root(self.now)?;
        let name = format!("root-{}", self.state.sequence);
        self.write(&name, &root, &key)?;
        self.state.roots.push(Root { name, sha256: hex(&sha256(root.der())) });
        Ok(())
    }

    /// A new issuing CA below the active root, which signs from now on.
    pub(super) fn add_issuing(&mut self) -> Result<(), CaError> {
        let root = self.folder.open_root(&self.state.active)?;
        let not_after = (self.now + ISSUING_LIFETIME.as_secs()).min(root.facts.not_after);
        let number = self.state.sequence;
        let make = || {
            let key = KeyPair::generate()?;
            let params = certificates::issuing(&self.folder.trust_domain, number, self.now, not_after)?;
            let issuer = Issuer::from_ca_cert_der(&root.certificate, root.key)?;
            Ok((params.signed_by(&key, &issuer)?, key))
        };
        let (certificate, key) = make().map_err(CaError::Sign)?;
        let name = format!("issuing-{number}");
        self.write(&name, &certificate, &key)?;
        self.state.issuing.push(Issuing {
            name,
            sha256: hex(&sha256(certificate.der())),
            root: self.state.active.clone(),
            made: self.now,
            not_after,
        });
        Ok(())
    }

    /// Takes back what was written.
    pub(super) fn discard(self) {
        self.written.iter().for_each(Pair::remove);
    }

    fn write(&mut self, name: &str, certificate: &rcgen::Certificate, key: &KeyPair) -> Result<(), CaError> {
        let pair = self.folder.files.pair(name);
        pair.write(&certificate.pem(), &self.folder.key_pem(key)?)?;
        self.written.push(pair);
        Ok(())
    }
}

fn sha256_of(hexadecimal: &str) -> Option<[u8; 32]> {
    let bytes = hexadecimal.as_bytes().chunks_exact(2);
    let bytes = bytes.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
    bytes.collect::<Option<Vec<_>>>()?.try_into().ok()
}
