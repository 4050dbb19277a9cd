//! The CA of a local mesh, and the operator's certificate that `tenon up` and the commands use.

use std::{cell::Cell, fs, rc::Rc, sync::Arc, time::Duration};

use identity::{Ca, CaError, OPERATOR_LIFETIME, Passphrase};
use mesh_config::names::{ServiceName, TrustDomain};
use mesh_identity::{Identity, Mismatch, Svid, TrustBundle, clock};
use tokio_util::sync::CancellationToken;

use super::printer::Printer;
use crate::{
    data::Data,
    failure::{Failure, chain},
    mesh_file::MeshFile,
    operator::{Role, files},
    output::rfc3339,
};

/// How long the operator's certificate lives; renewed at half of it.
const LIFETIME: Duration = OPERATOR_LIFETIME;
/// How often to look whether it is time, and whether the CA has changed. The machine may have slept, so no long timer is
/// trusted.
const LOOK: Duration = Duration::from_secs(1);
/// Opens an encrypted CA key.
pub const PASSPHRASE: &str = "TENON_CA_PASSPHRASE";

/// The CA in the data folder and the operator that it made. Cheap to clone.
#[derive(Clone)]
pub struct Credentials {
    ca: Rc<Ca>,
    data: Data,
    operator: String,
    identity: Arc<Identity>,
    /// What was begun when the CA changed is not done yet, or not on the disk.
    behind: Rc<Cell<bool>>,
}

impl Credentials {
    /// Opens the CA of the data folder, or makes one on the first start, and writes the operator's credentials.
    ///
    /// # Errors
    /// The CA is another mesh's, is not the one that the rest of the folder was made with, cannot be opened, or is not
    /// valid now.
    pub fn prepare(data: &Data, trust_domain: &TrustDomain) -> Result<Self, Failure> {
        let now = clock::unix_seconds();
        let passphrase = passphrase();
        let dir = data.ca();
        let opened = if Ca::exists(&dir) {
            Ca::open(&dir, trust_domain, passphrase.as_ref(), now)
        } else if has_run(data) {
            return Err(strangers(data, "is gone"));
        } else {
            Ca::create(&dir, trust_domain, passphrase.as_ref(), now)
        };
        let ca = opened.map_err(|error| ca_failure(&error))?;
        if !is_of(data, &ca) {
            return Err(strangers(data, "is not the one that this data folder was made with"));
        }
        let operator = operator_name();
        let svid = issue(&ca, &operator, now)?;
        let identity = Identity::new(svid, ca.bundle());
        let credentials = Self { ca: Rc::new(ca), data: data.clone(), operator, identity, behind: Rc::default() };
        credentials.write()?;
        Ok(credentials)
    }

    /// The operator as the control plane sees it; renewed while the mesh runs.
    pub fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    /// What processes that join pin the identity service by.
    pub fn pin(&self) -> String {
        self.ca.bundle().pin()
    }

    /// Renews the operator's certificate at half of its life, and follows rotations of the CA, here and in the data
    /// folder, until the end.
    pub async fn keep_renewed(self, printer: Printer, shutdown: CancellationToken) {
        let mut said = None;
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = shutdown.cancelled() => return,
            }
            // The same problem each second is said once.
            match self.follow(clock::unix_seconds()) {
                Ok(()) => said = None,
                Err(failure) if said.as_ref() == Some(&failure) => {}
                Err(failure) => {
                    printer.warn(&format!("the operator's certificate was not renewed: {failure}"));
                    said = Some(failure);
                }
            }
        }
    }

    /// Takes over what the identity service has made of the CA, and renews the operator's certificate when it is time.
    fn follow(&self, now: u64) -> Result<(), Failure> {
        self.ca.reload().map_err(|error| ca_failure(&error))?;
        let (bundle, svid) = (self.ca.bundle(), self.identity.svid());
        let changed = *self.identity.bundle() != bundle;
        let old = now + LIFETIME.as_secs() / 2 >= svid.not_after();
        if !changed && !old && !self.behind.get() {
            return Ok(());
        }
        self.behind.set(true);
        let mismatch = |error: Mismatch| Failure::new(error.to_string());
        let authority = bundle.rotation().issuing_authority;
        self.identity.set_bundle(bundle).map_err(mismatch)?;
        if old || svid.issuing_authority() != authority {
            self.identity.set_svid(issue(&self.ca, &self.operator, now)?).map_err(mismatch)?;
        }
        self.write()?;
        self.behind.set(false);
        Ok(())
    }

    fn write(&self) -> Result<(), Failure> {
        files::write(&self.data, &self.identity)
    }
}

/// Whether a mesh has run on this folder: what is in it trusts the CA of then, and no other.
fn has_run(data: &Data) -> bool {
    data.trust_bundle().exists() || data.role(Role::Identity.name()).exists()
}

/// Whether the CA is the one that the folder was made with, as far as the folder still tells: a root of then is trusted
/// still. While roots are rotated, the bundle in the folder may be older than the CA by one step.
fn is_of(data: &Data, ca: &Ca) -> bool {
    let bundle = ca.bundle();
    let before = fs::read_to_string(data.trust_bundle()).ok();
    match before.and_then(|text| TrustBundle::from_pem(ca.trust_domain().clone(), &text).ok()) {
        Some(before) => before.roots().iter().any(|root| bundle.roots().contains(root)),
        None => MeshFile::read(data).map_or(true, |file| file.trust_bundle_sha256 == bundle.pin()),
    }
}

/// With another CA no process of the folder would believe another, and the mesh would never become ready.
fn strangers(data: &Data, what: &str) -> Failure {
    let dir = data.dir().display();
    Failure::new(format!("the CA in {} {what}: the identities in {dir} would be strangers to it", data.ca().display()))
        .next(format!(
            "put the old folder ca back; or name a new data folder with --data; or, to give up all state of this mesh, \
             its tenants too, remove identity, tcs, policy, sidecars, operator, trust-bundle.pem and mesh.json in {dir}"
        ))
}

/// `TENON_CA_PASSPHRASE`, when it is set and not empty.
pub fn passphrase() -> Option<Passphrase> {
    std::env::var(PASSPHRASE).ok().and_then(Passphrase::new)
}

fn issue(ca: &Ca, operator: &str, now: u64) -> Result<Svid, Failure> {
    ca.issue_operator(operator, mesh_identity::OperatorRole::Admin, LIFETIME, now).map_err(|error| ca_failure(&error))
}

/// The user, so that the policy service can say who applied what; `operator` when the name cannot stand in an SVID.
pub fn operator_name() -> String {
    let user = std::env::var("USER").unwrap_or_default().to_lowercase();
    ServiceName::try_from(user.as_str()).map_or_else(|_| "operator".to_owned(), |name| name.to_string())
}

/// A failure of the CA, with what to do.
pub fn ca_failure(error: &CaError) -> Failure {
    match error {
        CaError::NotYetValid { path, not_before, now } => Failure::new(format!(
            "the clock of this machine is wrong: it says {}, but {} was made after that and is valid from {} on",
            rfc3339(*now),
            path.display(),
            rfc3339(*not_before)
        ))
        .next("set the clock (`timedatectl set-ntp true`) and start again"),
        CaError::Expired { path, not_after, now } => Failure::new(format!(
            "{} expired at {}, and the clock of this machine says {}",
            path.display(),
            rfc3339(*not_after),
            rfc3339(*now)
        ))
        .next("set the clock if it is wrong, else start a new mesh in another folder: name it with --data"),
        CaError::TrustDomain { path, found, expected } => Failure::new(format!(
            "{} is the CA of another mesh: its trust domain is {found}, and the policy folder says {expected}",
            path.display()
        ))
        .next("name the data folder of this mesh, or a new one, with --data"),
        CaError::Encrypted(path) => Failure::new(format!("{} is encrypted", path.display()))
            .next("set TENON_CA_PASSPHRASE to what it was encrypted with"),
        CaError::File { .. } => {
            Failure::new(chain(error)).next("make the folder readable and writable for this user, or name another one")
        }
        CaError::Missing(_)
        | CaError::Half { .. }
        | CaError::Content { .. }
        | CaError::KeyOfAnother(_)
        | CaError::Bundle(_) => {
            Failure::new(chain(error)).next("put the CA's files back as they were, or name another folder")
        }
        CaError::Exists(_) => Failure::new(chain(error)).next("a CA is never overwritten"),
        CaError::Passphrase(_) => {
            Failure::new(chain(error)).next("set TENON_CA_PASSPHRASE to what the key was encrypted with")
        }
        CaError::Crypto | CaError::Sign(_) | CaError::Issue(_) => {
            Failure::new(chain(error)).next("see that this machine has randomness to give and its clock is right")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain(name: &str) -> TrustDomain {
        TrustDomain::try_from(name).unwrap()
    }

    #[test]
    fn the_second_start_keeps_the_ca_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let data = Data::new(dir.path());
        let first = Credentials::prepare(&data, &domain("demo.example")).unwrap();
        let second = Credentials::prepare(&data, &domain("demo.example")).unwrap();
        assert_eq!(first.pin(), second.pin());
        let read = crate::operator::credentials(&data, "demo.example").unwrap();
        assert_eq!(read.svid().serial(), second.identity().svid().serial());
        assert_eq!(read.bundle().pin(), second.pin());
    }

    #[test]
    fn a_ca_of_another_mesh_is_refused_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let data = Data::new(dir.path());
        Credentials::prepare(&data, &domain("demo.example")).unwrap();
        let failure = Credentials::prepare(&data, &domain("other.example")).err().unwrap().to_string();
        assert!(
            failure.contains("its trust domain is demo.example, and the policy folder says other.example"),
            "{failure}"
        );
        assert!(failure.contains("--data"), "{failure}");
    }

    #[test]
    fn a_ca_that_was_replaced_or_removed_is_refused_and_nothing_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let data = Data::new(dir.path());
        let first = Credentials::prepare(&data, &domain("demo.example")).unwrap();
        let bundle = fs::read(data.trust_bundle()).unwrap();
        fs::rename(data.ca(), dir.path().join("kept")).unwrap();

        let gone = Credentials::prepare(&data, &domain("demo.example")).err().unwrap().to_string();
        assert!(gone.contains("is gone") && gone.contains("put the old folder ca back"), "{gone}");
        assert!(!data.ca().exists(), "no new CA is made in its place");

        Ca::create(&data.ca(), &domain("demo.example"), None, clock::unix_seconds()).unwrap();
        let other = Credentials::prepare(&data, &domain("demo.example")).err().unwrap().to_string();
        assert!(other.contains("is not the one that this data folder was made with"), "{other}");
        assert_eq!(fs::read(data.trust_bundle()).unwrap(), bundle);

        fs::remove_dir_all(data.ca()).unwrap();
        fs::rename(dir.path().join("kept"), data.ca()).unwrap();
        assert_eq!(Credentials::prepare(&data, &domain("demo.example")).unwrap().pin(), first.pin());
        // A backup of the CA alone is enough to begin with.
        fs::remove_file(data.trust_bundle()).unwrap();
        Credentials::prepare(&data, &domain("demo.example")).unwrap();
    }

    #[test]
    fn credentials_that_could_not_be_written_when_the_root_was_rotated_are_written_once_that_works() {
        let dir = tempfile::tempdir().unwrap();
        let data = Data::new(dir.path());
        let credentials = Credentials::prepare(&data, &domain("demo.example")).unwrap();
        let now = clock::unix_seconds();
        credentials.ca.prepare_root(now).unwrap();
        credentials.ca.activate_root(now).unwrap();
        let bundle = data.trust_bundle();
        fs::remove_file(&bundle).unwrap();
        fs::create_dir_all(bundle.join("in the way")).unwrap();
        assert!(credentials.follow(now).is_err());
        assert!(credentials.follow(now).is_err(), "it is tried again");
        fs::remove_dir_all(&bundle).unwrap();
        credentials.follow(now).unwrap();
        let read = crate::operator::credentials(&data, "demo.example").unwrap();
        assert_eq!(read.bundle().roots().len(), 2);
        assert_eq!(read.svid().issuing_authority(), credentials.ca.bundle().rotation().issuing_authority);
    }

    #[test]
    fn a_clock_that_is_behind_is_named_with_both_times() {
        let error = CaError::NotYetValid { path: "ca/root.pem".into(), not_before: 1_800_000_000, now: 1_700_000_000 };
        let failure = ca_failure(&error).to_string();
        assert!(failure.contains("it says 2023-11-14T22:13:20Z"), "{failure}");
        assert!(failure.contains("valid from 2027-01-15T08:00:00Z on"), "{failure}");
        assert!(failure.contains("set the clock"), "{failure}");
    }
}
