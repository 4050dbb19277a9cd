//! Do certificates last? The operator's own, and what each process shows in a handshake.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use futures_util::future::join_all;
use mesh_config::names::ServiceName;
use mesh_identity::{clock, tls};
use tokio::{net::TcpStream, time::timeout};

use super::{Finding, catalogue};
use crate::{
    failure::chain,
    mesh_file::Sidecar,
    operator::{Mesh, Process, Role},
    output::rfc3339,
};

/// Certificates are renewed at half of their hour, or up to six minutes later: less than this left means that renewing
/// fails.
const LEAST_SECONDS: u64 = 15 * 60;
/// When nothing can be renewed, the half of it that is left is what there is to act in.
const HALF_SECONDS: u64 = 30 * 60;
/// A new root is begun with this long before the old one ends.
const ROOT_DAYS: u64 = 60;

/// Checks them all. Who was not reached shows none, which is reported already.
pub async fn check(mesh: &Mesh, reached: &[Process], ready: &[&Sidecar]) -> Vec<Finding> {
    let now = clock::unix_seconds();
    let renewing = reached.iter().any(|process| process.role == Role::Identity);
    // The operator's own comes from the CA in the data folder.
    let mut findings = vec![lasts("operator", mesh.identity().svid().not_after(), now, true)];
    findings.extend(mesh.identity().bundle().ends().enumerate().map(|(index, end)| root(index + 1, end, now)));
    let roles = reached.iter().map(|one| (one.title.clone(), one.address, one.role.service_name().to_string()));
    let sidecars = ready.iter().map(|s| (s.name.clone(), s.inbound, s.service.clone()));
    let each = roles.chain(sidecars).map(|(name, address, service)| async move {
        match shown(mesh, address, &service).await {
            Ok(not_after) => lasts(&name, not_after, now, renewing),
            Err(problem) => Finding::bad(
                catalogue::PORT,
                &name,
                format!("{address}: {problem}"),
                format!("exactly {service} of this mesh must answer there: see what listens on the port"),
            ),
        }
    });
    findings.extend(join_all(each).await);
    findings
}

/// The end of the certificate that is shown there; an error when it is not that service's.
pub(super) async fn shown(mesh: &Mesh, address: SocketAddr, service: &str) -> Result<u64, String> {
    let service = ServiceName::try_from(service).map_err(|error| error.to_string())?;
    let connecting = TcpStream::connect(reachable(address));
    let stream = timeout(tls::CONNECT_DEADLINE, connecting)
        .await
        .map_err(|_| "no connection in time".to_owned())?
        .map_err(|error| error.to_string())?;
    let config = tls::client_config(mesh.identity(), &service);
    let stream = tls::connect(&config, stream).await.map_err(|error| chain(&error))?;
    let peer = tls::peer(stream.get_ref().1).ok_or("no certificate was shown")?;
    Ok(peer.not_after)
}

/// A listener on all addresses is reached over loopback.
pub fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        });
    }
    address
}

/// `renewing`: whether the identity service answers.
fn lasts(name: &str, not_after: u64, now: u64, renewing: bool) -> Finding {
    let until = rfc3339(not_after);
    let left = not_after.saturating_sub(now);
    if left < LEAST_SECONDS {
        return Finding::bad(
            catalogue::CERTIFICATE,
            name,
            format!("ends at {until}, {} min from now: it should have been renewed by now", left / 60),
            "see that the identity service is reachable, and why renewing fails in the log of whose certificate it is",
        );
    }
    let valid = format!("valid until {until}, {} min", left / 60);
    if renewing {
        return Finding::ok(catalogue::CERTIFICATE, name, valid);
    }
    if left >= HALF_SECONDS {
        return Finding::ok(
            catalogue::CERTIFICATE,
            name,
            format!("{valid}; nothing renews it while the identity service is away"),
        );
    }
    Finding::bad(
        catalogue::CERTIFICATE,
        name,
        format!("{valid}, and nothing renews it while the identity service is away"),
        format!("make the identity service reachable before {until}: calls of {name} fail from then on"),
    )
}

/// The `number`th of the trust bundle.
fn root(number: usize, not_after: u64, now: u64) -> Finding {
    let (name, days) = (format!("root {number}"), not_after.saturating_sub(now) / 86_400);
    let told = format!("ends at {}, {days} days from now", rfc3339(not_after));
    if days >= ROOT_DAYS {
        return Finding::ok(catalogue::ROOT, name, told);
    }
    Finding::bad(
        catalogue::ROOT,
        name,
        told,
        "put a new root beside it and have it sign before this one ends: `tenon identity rotate --help`, docs/identity.md; \
         where a newer root signs already, retire this one",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_is_told_of_sixty_days_before_its_end() {
        assert!(root(1, 60 * 86_400 + 5, 5).ok);
        let soon = root(2, 60 * 86_400 + 4, 5);
        assert!(!soon.ok && soon.detail.contains("59 days from now"), "{soon:?}");
        assert!(!root(1, 3, 5).ok);
    }

    #[test]
    fn a_certificate_that_should_have_been_renewed_is_a_failure_before_it_ends() {
        assert!(lasts("media", 10_000 + 15 * 60, 10_000, true).ok);
        assert!(!lasts("media", 10_000 + 15 * 60 - 1, 10_000, true).ok);
        assert!(!lasts("media", 9_000, 10_000, true).ok);
    }

    #[test]
    fn without_the_identity_service_half_an_hour_before_the_end_is_a_failure_and_earlier_is_told() {
        let early = lasts("media", 10_000 + 30 * 60, 10_000, false);
        assert!(early.ok && early.detail.contains("nothing renews it"), "{}", early.detail);
        let late = lasts("media", 10_000 + 30 * 60 - 1, 10_000, false);
        assert!(!late.ok && late.next.unwrap().contains("before 1970-01-01T03:16:39Z"));
        assert!(lasts("media", 10_000 + 30 * 60 - 1, 10_000, true).ok, "it is about to be renewed");
    }

    #[test]
    fn a_listener_on_all_addresses_is_asked_over_loopback() {
        assert_eq!(reachable("0.0.0.0:7".parse().unwrap()), "127.0.0.1:7".parse().unwrap());
        assert_eq!(reachable("[::]:7".parse().unwrap()), "[::1]:7".parse().unwrap());
        assert_eq!(reachable("127.0.0.2:7".parse().unwrap()), "127.0.0.2:7".parse().unwrap());
    }
}
