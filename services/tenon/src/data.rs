//! The data folder of a mesh: what lies where in it.

use std::path::{Path, PathBuf};

/// Paths below the folder that `--data` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Data {
    dir: PathBuf,
}

impl Data {
    /// The folder need not exist.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// The folder itself.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Addresses of the running mesh, and its sidecars.
    pub fn mesh_file(&self) -> PathBuf {
        self.dir.join("mesh.json")
    }

    /// Held by the one `tenon up` that runs on this folder.
    pub fn lock(&self) -> PathBuf {
        self.dir.join("lock")
    }

    /// Root certificate and key.
    pub fn ca(&self) -> PathBuf {
        self.dir.join("ca")
    }

    /// The operator's certificate chain.
    pub fn operator_certificate(&self) -> PathBuf {
        self.dir.join("operator/svid.pem")
    }

    /// The operator's private key.
    pub fn operator_key(&self) -> PathBuf {
        self.dir.join("operator/key.pem")
    }

    /// Held by who reads or writes the operator's certificate and key.
    pub fn operator_lock(&self) -> PathBuf {
        self.dir.join("operator/lock")
    }

    /// The mesh's roots.
    pub fn trust_bundle(&self) -> PathBuf {
        self.dir.join("trust-bundle.pem")
    }

    /// State of a service of the control plane: `identity`, `tcs` or `policy`.
    pub fn role(&self, role: &str) -> PathBuf {
        self.dir.join(role)
    }

    /// State of a sidecar.
    pub fn sidecar(&self, name: &str) -> PathBuf {
        self.dir.join("sidecars").join(name)
    }

    /// What a child printed.
    pub fn log(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.log"))
    }
}
