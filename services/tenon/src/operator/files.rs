//! The operator's credentials and the trust bundle, as they lie in a data folder.
//!
//! `tenon up` writes them, and `tenon identity rotate` does, maybe at the same time: who writes holds a lock, so that a
//! certificate never stays beside the key of another.

use std::{
    ffi::OsStr,
    fs, io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::PathBuf,
};

use mesh_identity::{Identity, Svid, SvidError};

use crate::{
    data::Data,
    failure::Failure,
    mesh_file::{MeshFile, write_private},
};

/// The flag of every process that joins, whose value is the pin.
const PIN_FLAG: &str = "--trust-bundle-sha256";

/// Writes what `identity` has now, and the pin of its bundle where `mesh.json` has one.
///
/// # Errors
/// The folder cannot be written to.
pub fn write(data: &Data, identity: &Identity) -> Result<(), Failure> {
    let certificate = data.operator_certificate();
    if let Some(folder) = certificate.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|error| {
            Failure::new(format!("cannot make {}: {error}", folder.display()))
                .next("make the data folder writable, or name another one with --data")
        })?;
    }
    let path = data.operator_lock();
    let open = fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let _lock = open.and_then(|file| file.lock().map(|()| file)).map_err(|error| {
        Failure::new(format!("cannot write {}: {error}", path.display()))
            .next("make the data folder writable, or name another one with --data")
    })?;
    let (svid, bundle) = (identity.svid(), identity.bundle());
    // First the roots: a certificate below a root that is not in the bundle is of no use.
    write_private(&data.trust_bundle(), bundle.to_pem().as_bytes())?;
    write_private(&data.operator_key(), svid.key_pem().as_bytes())?;
    write_private(&certificate, svid.chain_pem().as_bytes())?;
    // None before the first start has come that far.
    if let Ok(mut file) = MeshFile::read(data)
        && file.trust_bundle_sha256 != bundle.pin()
    {
        file.trust_bundle_sha256 = bundle.pin();
        // Sidecars that are started by hand from it are given the present one.
        for sidecar in &mut file.sidecars {
            repin(&mut sidecar.command, &file.trust_bundle_sha256);
        }
        file.write(data)?;
    }
    Ok(())
}

/// A command line with another pin, if it has one.
pub fn repin<W: AsRef<OsStr> + From<String>>(line: &mut [W], pin: &str) {
    let at = line.iter().position(|word| word.as_ref() == PIN_FLAG);
    if let Some(word) = at.and_then(|at| line.get_mut(at + 1)) {
        *word = W::from(pin.to_owned());
    }
}

/// Certificate chain and key of the operator, read while nobody writes them.
///
/// # Errors
/// As those of reading a file, with the file's path; or they do not belong together.
pub fn read(data: &Data) -> Result<Svid, ReadError> {
    // Not made when it is not there: whoever reads may not be allowed to write.
    let lock = fs::File::open(data.operator_lock());
    let _shared = lock.and_then(|file| file.lock_shared().map(|()| file));
    let read =
        |path: PathBuf| fs::read_to_string(&path).map_err(|source| ReadError::File { path: path.clone(), source });
    let (chain, key) = (read(data.operator_certificate())?, read(data.operator_key())?);
    Svid::from_pem(&chain, &key).map_err(ReadError::Damaged)
}

/// Why there are no credentials.
#[derive(Debug)]
pub enum ReadError {
    /// A file cannot be read.
    File { path: PathBuf, source: io::Error },
    /// What is in them is no certificate with its key.
    Damaged(SvidError),
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::*;

    fn made(data: &Data) -> (identity::Ca, Arc<Identity>) {
        let now = mesh_identity::clock::unix_seconds();
        let ca = identity::Ca::create(&data.ca(), &"demo.example".parse().unwrap(), None, now).unwrap();
        let svid = ca.issue_operator("ann", mesh_identity::OperatorRole::Admin, Duration::from_secs(600), now).unwrap();
        let identity = Identity::new(svid, ca.bundle());
        (ca, identity)
    }

    #[test]
    fn whoever_reads_while_others_write_gets_a_certificate_with_its_key() {
        let dir = tempfile::tempdir().unwrap();
        let data = Data::new(dir.path());
        let (ca, identity) = made(&data);
        write(&data, &identity).unwrap();
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|threads| {
            for _ in 0..2 {
                threads.spawn(|| {
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        let now = mesh_identity::clock::unix_seconds();
                        let svid = ca
                            .issue_operator("ann", mesh_identity::OperatorRole::Admin, Duration::from_secs(600), now)
                            .unwrap();
                        write(&data, &Identity::new(svid, ca.bundle())).unwrap();
                    }
                });
            }
            let outcomes: Vec<_> = (0..200).map(|_| read(&data).map(|_| ())).collect();
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            for outcome in outcomes {
                outcome.unwrap();
            }
        });
    }

    #[test]
    fn mesh_json_and_the_command_lines_in_it_get_the_new_pin() {
        let dir = tempfile::tempdir().unwrap();
        let data = Data::new(dir.path());
        let (ca, identity) = made(&data);
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
        let command = ["tenon-sidecar", PIN_FLAG, &ca.bundle().pin(), "--region", "x"].map(str::to_owned).to_vec();
        let sidecar = crate::mesh_file::Sidecar {
            name: "media-x".into(),
            service: "media".into(),
            region: "x".into(),
            zone: None,
            app: None,
            outbound: String::new(),
            inbound: address,
            admin: address,
            state_dir: "state".into(),
            command,
        };
        let file = MeshFile {
            mesh: "demo".into(),
            trust_domain: "demo.example".into(),
            trust_bundle_sha256: ca.bundle().pin(),
            control_plane: crate::mesh_file::ControlPlane {
                identity: address,
                key_repository: address,
                tcs: address,
                tcs_replicas: Vec::new(),
                policy: address,
                policy_replicas: Vec::new(),
                dashboard: None,
                metrics: std::collections::BTreeMap::new(),
            },
            sidecars: vec![sidecar],
        };
        file.write(&data).unwrap();
        ca.prepare_root(mesh_identity::clock::unix_seconds()).unwrap();
        identity.set_bundle(ca.bundle()).unwrap();
        write(&data, &identity).unwrap();
        let file = MeshFile::read(&data).unwrap();
        assert_eq!(file.trust_bundle_sha256, ca.bundle().pin());
        assert_eq!(file.sidecars[0].command[2], ca.bundle().pin());
        assert_eq!(crate::operator::credentials(&data, "demo.example").unwrap().bundle().roots().len(), 2);
    }
}
