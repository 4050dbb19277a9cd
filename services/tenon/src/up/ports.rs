//! Are the addresses of a LocalMesh free? Asked before anything is started, so that the answer names the field.

use std::{
    io,
    net::{SocketAddr, TcpListener},
};

use mesh_config::{LocalMesh, Outbound};

/// An address that something is going to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub address: SocketAddr,
    /// As it stands in the LocalMesh document: `spec.instances[2].inbound of media in us-east`.
    pub field: String,
}

/// Every address that the mesh is going to listen on.
pub fn wanted(local: &LocalMesh) -> Vec<Wanted> {
    let plane = &local.control_plane;
    let mut wanted: Vec<_> = [("identity", plane.identity), ("tcs", plane.tcs), ("policy", plane.policy)]
        .map(|(name, address)| Wanted { address, field: format!("spec.controlPlane.{name}") })
        .into();
    for (index, instance) in local.instances.iter().enumerate() {
        let mut add = |name: &str, address: SocketAddr| {
            let field = format!("spec.instances[{index}].{name} of {} in {}", instance.service, instance.region);
            wanted.push(Wanted { address, field });
        };
        if let Outbound::Tcp(address) = instance.outbound {
            add("outbound", address);
        }
        add("inbound", instance.inbound);
        add("admin", instance.admin);
        // Without a command the app is somebody else's, and may run already.
        if let (Some(address), false) = (instance.app, instance.command.is_empty()) {
            add("app", address);
        }
    }
    wanted
}

/// Problems of the addresses that cannot be listened on. Empty: all are free.
pub fn problems(wanted: &[Wanted]) -> Vec<String> {
    wanted
        .iter()
        .filter_map(|wanted| TcpListener::bind(wanted.address).err().map(|error| describe(wanted, &error)))
        .collect()
}

fn describe(Wanted { address, field }: &Wanted, error: &io::Error) -> String {
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
        Wanted { address: address.parse().unwrap(), field: "spec.controlPlane.tcs".into() }
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
    fn free_ports_are_no_problem() {
        assert_eq!(problems(&[wanted("127.0.0.1:0")]), Vec::<String>::new());
    }
}
