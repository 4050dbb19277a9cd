//! Are the addresses of a LocalMesh free? Asked before anything is started, so that the answer names the field.

use std::{
    fs, io,
    net::{SocketAddr, TcpListener},
    os::unix::{ffi::OsStrExt as _, fs::FileTypeExt as _, net::UnixStream},
    path::Path,
};

use mesh_config::{LocalMesh, Outbound};

/// Bytes that the path of a Unix socket may have: `sun_path` of Linux less its closing zero.
const LONGEST_PATH: usize = 107;

/// An address that something is going to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub address: Outbound,
    /// As it stands in the LocalMesh document: `spec.instances[2].inbound of media in us-east`.
    pub field: String,
}

/// Every address that the mesh is going to listen on.
pub fn wanted(local: &LocalMesh) -> Vec<Wanted> {
    let plane = &local.control_plane;
    let addresses =
        [("identity", plane.identity), ("keyRepository", plane.key_repository), ("dashboard", plane.dashboard)];
    let mut wanted: Vec<_> = addresses
        .map(|(name, address)| Wanted { address: Outbound::Tcp(address), field: format!("spec.controlPlane.{name}") })
        .into();
    for (name, replicas) in [("policy", &plane.policy), ("tcs", &plane.tcs)] {
        for (index, replica) in replicas.iter().enumerate() {
            let number = if replicas.len() == 1 { String::new() } else { format!("[{index}]") };
            let field = format!("spec.controlPlane.{name}{number}");
            wanted.push(Wanted { address: Outbound::Tcp(replica.address), field });
        }
    }
    for (index, instance) in local.instances.iter().enumerate() {
        let mut add = |name: &str, address: Outbound| {
            let field = format!("spec.instances[{index}].{name} of {} in {}", instance.service, instance.region);
            wanted.push(Wanted { address, field });
        };
        add("outbound", instance.outbound.clone());
        add("inbound", Outbound::Tcp(instance.inbound));
        add("admin", Outbound::Tcp(instance.admin));
        // Without a command the app is somebody else's, and may run already.
        if let (Some(address), false) = (instance.app, instance.command.is_empty()) {
            add("app", Outbound::Tcp(address));
        }
    }
    wanted
}

/// Problems of the addresses that cannot be listened on. Empty: all are free.
pub fn problems(wanted: &[Wanted]) -> Vec<String> {
    let problem = |Wanted { address, field }: &Wanted| match address {
        Outbound::Tcp(address) => TcpListener::bind(address).err().map(|error| describe(*address, field, &error)),
        Outbound::Unix(path) => socket(path).err().map(|why| format!("{why}: {field} is {address}")),
    };
    wanted.iter().filter_map(problem).collect()
}

/// As the sidecar is going to see it, which takes the place of a socket that nobody answers at.
fn socket(path: &Path) -> Result<(), String> {
    let length = path.as_os_str().as_bytes().len();
    if length > LONGEST_PATH {
        return Err(format!("the path has {length} bytes, and a socket's may have {LONGEST_PATH}"));
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        return Err(format!("there is no folder {}: make it", folder.display()));
    }
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(format!("the path cannot be used: {error}")),
        Ok(file) if !file.file_type().is_socket() => {
            Err("a file that is no socket stands there, and is not removed".to_owned())
        }
        Ok(_) if UnixStream::connect(path).is_ok() => Err("another process listens there".to_owned()),
        Ok(_) => Ok(()),
    }
}

fn describe(address: SocketAddr, field: &str, error: &io::Error) -> String {
    let port = address.port();
    let kind = error.kind();
    if kind == io::ErrorKind::AddrInUse {
        format!("port {port} is taken: {field} is {address}")
    } else if kind == io::ErrorKind::PermissionDenied {
        format!("port {port} is not this user's to listen on: {field} is {address}; write one above 1023")
    } else if kind == io::ErrorKind::AddrNotAvailable {
        format!("{} is no address of this machine: {field} is {address}; write one that is, as 127.0.0.1", address.ip())
    } else {
        format!("cannot listen on {address}, which is {field}: {error}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(address: &str) -> Wanted {
        Wanted { address: Outbound::Tcp(address.parse().unwrap()), field: "spec.controlPlane.tcs".into() }
    }

    #[test]
    fn a_taken_port_is_named_with_its_field() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let problems = problems(&[wanted(&address.to_string())]);
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0], format!("port {} is taken: spec.controlPlane.tcs is {address}", address.port()));
    }

    #[test]
    fn an_address_of_another_machine_is_said_to_be_one() {
        let problems = problems(&[wanted("192.0.2.1:15020")]);
        assert!(problems[0].contains("is no address of this machine"), "{}", problems[0]);
    }

    #[test]
    fn a_socket_that_cannot_be_listened_on_is_named_with_its_field_and_why() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let _listening = std::os::unix::net::UnixListener::bind(path("taken")).unwrap();
        drop(std::os::unix::net::UnixListener::bind(path("stale")).unwrap());
        fs::write(path("file"), "kept").unwrap();
        let long = "x".repeat(LONGEST_PATH);
        for (name, says) in [
            ("taken", "another process listens there"),
            ("file", "a file that is no socket stands there"),
            ("none/sock", "there is no folder"),
            (long.as_str(), "bytes, and a socket's may have 107"),
        ] {
            let field = "spec.instances[0].outbound of media in us-east";
            let found = problems(&[Wanted { address: Outbound::Unix(path(name)), field: field.into() }]);
            assert!(found[0].contains(says), "{found:?}");
            assert!(found[0].ends_with(&format!("{field} is unix:{}", path(name).display())), "{found:?}");
        }
        assert_eq!(fs::read_to_string(path("file")).unwrap(), "kept");
        assert_eq!((socket(&path("stale")), socket(&path("new"))), (Ok(()), Ok(())));
    }

    #[test]
    fn free_ports_are_no_problem() {
        assert_eq!(problems(&[wanted("127.0.0.1:0")]), Vec::<String>::new());
    }
}
