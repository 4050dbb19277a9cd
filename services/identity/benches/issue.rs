//! How many SVIDs the identity service issues in a second, and how long the slowest hundredth takes: signing alone, and
//! renewals through the front door, with everything that is written down for them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use identity::{Ca, Csr, SVID_LIFETIME};
use mesh_asap::SigningKey;
use mesh_config::names::{ServiceName, TrustDomain, control_plane};
use mesh_identity::{Identity, SpiffeId, clock, grpc, testing};
use tenon_proto::identity::v1::identity_client::IdentityClient;
use tenon_proto::identity::v1::{AsapKey, GetTrustBundleRequest, RenewRequest};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Certificates that are signed alone.
const SIGNED: usize = 5_000;
/// Services that renew at the same time, each on a connection of its own.
const SERVICES: usize = 8;
/// Renewals of each: fewer than what one service may ask for at once.
const RENEWALS: usize = 500;

fn main() {
    let dir = tempfile::tempdir().expect("a folder");
    println!("{:<44} {:>10} {:>10} {:>10}", "SVIDs issued", "a second", "p50", "p99");
    signing(&dir.path().join("signing"));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(renewing(dir.path()));
}

fn report(what: &str, whole: Duration, mut each: Vec<Duration>) {
    each.sort_unstable();
    let at = |share: f64| each[((each.len() - 1) as f64 * share) as usize];
    let per_second = each.len() as f64 / whole.as_secs_f64();
    let milliseconds = |time: Duration| format!("{:.3} ms", time.as_secs_f64() * 1e3);
    println!("{what:<44} {per_second:>10.0} {:>10} {:>10}", milliseconds(at(0.5)), milliseconds(at(0.99)));
}

fn domain() -> TrustDomain {
    testing::trust_domain("bench.example")
}

/// A request is read and its signature checked, a certificate is signed: one thread.
fn signing(dir: &std::path::Path) {
    let now = clock::unix_seconds();
    let ca = Ca::create(dir, &domain(), None, now).expect("a CA");
    let (csr, id) = (testing::csr(), SpiffeId::service(domain(), testing::service("media")));
    let began = Instant::now();
    let each = (0..SIGNED).map(|_| {
        let began = Instant::now();
        let csr = Csr::parse(&csr).expect("a request");
        std::hint::black_box(ca.issue(&csr, &id, SVID_LIFETIME, now).expect("a certificate"));
        began.elapsed()
    });
    let each = each.collect();
    report("signing, one thread", began.elapsed(), each);
}

/// Over mTLS, with the audit log, the key and the instance on the disk before the answer.
async fn renewing(dir: &std::path::Path) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let config = identity::Config {
        listener,
        ca_dir: dir.join("ca"),
        passphrase: None,
        data_dir: dir.join("identity"),
        trust_domain: domain(),
        key_repository: None,
        key_repository_names: Vec::new(),
        policy: Vec::new(),
    };
    let ca = Ca::create(&dir.join("ca"), &domain(), None, clock::unix_seconds()).expect("a CA");
    let shutdown = CancellationToken::new();
    let serving = tokio::spawn(identity::serve(config, shutdown.clone()));

    let services = (0..SERVICES).map(|n| testing::service(&format!("service-{n}")));
    let members: Vec<_> = services.map(|service| Member::new(&ca, address, &service)).collect();
    for member in &members {
        member.client().get_trust_bundle(GetTrustBundleRequest {}).await.expect("it serves");
    }
    let began = Instant::now();
    let renewals: Vec<_> = members.into_iter().map(|member| tokio::spawn(member.renew())).collect();
    let mut each = Vec::new();
    for renewal in renewals {
        each.extend(renewal.await.expect("no panic"));
    }
    report(&format!("renewals over mTLS, {SERVICES} services at once"), began.elapsed(), each);
    shutdown.cancel();
    serving.await.expect("no panic").expect("it served");
}

struct Member {
    channel: tonic::transport::Channel,
    asap_key: AsapKey,
    instance: String,
}

impl Member {
    fn new(ca: &Ca, address: SocketAddr, service: &ServiceName) -> Self {
        let svid = ca.issue_service(service, SVID_LIFETIME, clock::unix_seconds()).expect("a certificate");
        let identity: Arc<Identity> = Identity::new(svid, ca.bundle());
        let channel = grpc::channel(address, &identity, &testing::service(control_plane::IDENTITY));
        let key = SigningKey::generate(service.as_str()).expect("a key");
        let asap_key = AsapKey { kid: key.kid().to_string(), spki: key.public_spki().into() };
        Self { channel, asap_key, instance: format!("{service}-1") }
    }

    fn client(&self) -> IdentityClient<tonic::transport::Channel> {
        IdentityClient::new(self.channel.clone())
    }

    async fn renew(self) -> Vec<Duration> {
        let (csr, mut client) = (bytes::Bytes::from(testing::csr()), self.client());
        let mut each = Vec::with_capacity(RENEWALS);
        for _ in 0..RENEWALS {
            let (asap_key, instance) = (Some(self.asap_key.clone()), self.instance.clone());
            let request = RenewRequest { csr: csr.clone(), asap_key, instance };
            let began = Instant::now();
            client.renew(request).await.expect("a certificate");
            each.push(began.elapsed());
        }
        each
    }
}
