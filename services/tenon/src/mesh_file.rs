//! `mesh.json` in the data folder: how commands and people find a mesh that `tenon up` runs.

use std::{
    collections::BTreeMap,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{data::Data, failure::Failure};

/// What `tenon up` started, and where it listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MeshFile {
    /// Name of the mesh.
    pub mesh: String,
    pub trust_domain: String,
    /// Lower-case hexadecimal; what sidecars pin the identity service by.
    pub trust_bundle_sha256: String,
    pub control_plane: ControlPlane,
    /// In the order of the LocalMesh document.
    pub sidecars: Vec<Sidecar>,
}

/// Addresses of the control plane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ControlPlane {
    pub identity: SocketAddr,
    /// Keys and trust bundle over HTTPS.
    pub key_repository: SocketAddr,
    /// The first TCS, which takes writes.
    pub tcs: SocketAddr,
    /// The others, in the order of the LocalMesh document.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tcs_replicas: Vec<TcsReplica>,
    /// The first policy service.
    pub policy: SocketAddr,
    /// The others, in the order of the LocalMesh document.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policy_replicas: Vec<PolicyReplica>,
    /// The first policy service's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dashboard: Option<SocketAddr>,
    /// Where each process shows its metrics, by its name: `identity`, `tcs`, `tcs-2`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics: BTreeMap<String, SocketAddr>,
}

/// A policy service beside the first one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyReplica {
    /// Unique in the mesh: `policy-2`.
    pub name: String,
    pub address: SocketAddr,
}

/// A TCS beside the first one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TcsReplica {
    /// Unique in the mesh: `tcs-2`.
    pub name: String,
    pub address: SocketAddr,
    pub zone: Option<String>,
    /// Whether it takes writes too; else it follows the first.
    pub writes: bool,
}

impl ControlPlane {
    /// Every TCS, those that take writes and those that do not, with the first one first.
    pub fn every_tcs(&self) -> Vec<SocketAddr> {
        [self.tcs].into_iter().chain(self.tcs_replicas.iter().map(|replica| replica.address)).collect()
    }

    /// Every policy service, the first one first.
    pub fn every_policy(&self) -> Vec<SocketAddr> {
        [self.policy].into_iter().chain(self.policy_replicas.iter().map(|replica| replica.address)).collect()
    }

    /// Those that take writes, the first one first.
    pub fn writing_tcs(&self) -> Vec<SocketAddr> {
        let peers = self.tcs_replicas.iter().filter(|replica| replica.writes).map(|replica| replica.address);
        [self.tcs].into_iter().chain(peers).collect()
    }
}

/// One sidecar.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sidecar {
    /// Unique in the mesh: `media-us-east`.
    pub name: String,
    pub service: String,
    pub region: String,
    pub zone: Option<String>,
    /// Where the app listens.
    pub app: Option<SocketAddr>,
    /// `HOST:PORT` or `unix:PATH`.
    pub outbound: String,
    pub inbound: SocketAddr,
    pub admin: SocketAddr,
    pub state_dir: PathBuf,
    /// The command line that starts it again.
    pub command: Vec<String>,
}

impl MeshFile {
    /// Reads the file of a data folder.
    ///
    /// # Errors
    /// There is none, or it is not one; both say what to do.
    pub fn read(data: &Data) -> Result<Self, Failure> {
        let path = data.mesh_file();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Failure::new(format!("no running mesh found in {}", data.dir().display()))
                    .next("start one with `tenon up -f DIR` or name its folder with --data"));
            }
            Err(error) => {
                return Err(Failure::new(format!("cannot read {}: {error}", path.display()))
                    .next("run as the user who started the mesh, or name another folder with --data"));
            }
        };
        serde_json::from_str(&text).map_err(|error| {
            Failure::new(format!("{} is damaged: {error}", path.display()))
                .next("start the mesh again with `tenon up -f DIR`: it writes the file anew")
        })
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// The data folder cannot be written to.
    pub fn write(&self, data: &Data) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(self)
            .map_err(|error| Failure::new(format!("cannot describe the mesh: {error}")))?;
        write_private(&data.mesh_file(), format!("{text}\n").as_bytes())
    }
}

/// Writes a file that only its owner can read: whole or not at all, also when the machine stops meanwhile.
///
/// # Errors
/// The folder cannot be written to, or the disk is full.
pub fn write_private(path: &Path, content: &[u8]) -> Result<(), Failure> {
    use io::Write as _;

    let folder = path.parent().unwrap_or(Path::new("."));
    let write = || -> io::Result<()> {
        // Made with mode 0600.
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(content)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        fs::File::open(folder)?.sync_all()
    };
    write().map_err(|error| {
        Failure::new(format!("cannot write {}: {error}", path.display()))
            .next("make the folder writable and free some space, or choose another with --data")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> MeshFile {
        MeshFile {
            mesh: "demo".into(),
            trust_domain: "demo.example".into(),
            trust_bundle_sha256: "00".into(),
            control_plane: ControlPlane {
                identity: ([127, 0, 0, 1], 1).into(),
                key_repository: ([127, 0, 0, 1], 4).into(),
                tcs: ([127, 0, 0, 1], 2).into(),
                tcs_replicas: Vec::new(),
                policy: ([127, 0, 0, 1], 3).into(),
                policy_replicas: Vec::new(),
                dashboard: None,
                metrics: BTreeMap::new(),
            },
            sidecars: Vec::new(),
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let data = Data::new(dir.path());
        example().write(&data).unwrap();
        assert_eq!(MeshFile::read(&data).unwrap(), example());
    }

    #[test]
    fn writes_go_where_they_are_taken_and_reads_anywhere() {
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let replica = |port, writes| TcsReplica { name: "tcs-2".into(), address: address(port), zone: None, writes };
        let mut plane = example().control_plane;
        plane.tcs_replicas = vec![replica(7, false), replica(8, true)];
        assert_eq!(plane.every_tcs(), [address(2), address(7), address(8)]);
        assert_eq!(plane.writing_tcs(), [address(2), address(8)]);
    }

    #[test]
    fn a_file_of_a_mesh_with_one_tcs_says_nothing_of_others() {
        let text = serde_json::to_string(&example()).unwrap();
        assert!(!text.contains("tcsReplicas"), "{text}");
        assert_eq!(serde_json::from_str::<MeshFile>(&text).unwrap(), example());
    }

    #[test]
    fn a_folder_without_a_mesh_says_how_to_start_one() {
        let failure = MeshFile::read(&Data::new(Path::new("/nonexistent/.tenon"))).unwrap_err();
        assert_eq!(
            failure.to_string(),
            "no running mesh found in /nonexistent/.tenon\n  start one with `tenon up -f DIR` or name its folder with --data"
        );
    }

    #[test]
    fn a_damaged_file_says_how_to_get_a_new_one() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("mesh.json"), "{").unwrap();
        let failure = MeshFile::read(&Data::new(dir.path())).unwrap_err().to_string();
        assert!(failure.contains("is damaged") && failure.contains("tenon up -f DIR"), "{failure}");
    }

    #[test]
    fn private_files_are_for_their_owner_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("join-token");
        write_private(&path, b"secret").unwrap();
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
