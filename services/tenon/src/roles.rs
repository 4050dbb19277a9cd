//! `tenon identity serve`, `tenon tcs serve` and `tenon policy serve`: the control plane's processes.

use std::{
    fs, io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use journal::{Options, Store};
use mesh_config::names::TrustDomain;
use mesh_identity::{
    join::{self, Attestation, Joined, Membership},
    policy_signature::PublicKey,
};
use mesh_telemetry::Telemetry;
use replica::{FollowTrust, Trust};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::{
    cli::{IdentityServe, JoinArgs, PolicyServe, RoleArgs, TcsServe},
    failure::{Answer, Failure, chain},
    operator::Role,
    up::passphrase,
};

/// How often it is looked whether the identity service is back.
const LOOK: Duration = Duration::from_secs(1);

/// Runs the identity service until it is told to end.
///
/// # Errors
/// It cannot start, or had to end.
pub fn identity(args: IdentityServe) -> Result<Answer, Failure> {
    serve(Role::Identity, async move |shutdown| {
        let telemetry = observed(args.role.metrics, &shutdown);
        let key_repository = match args.key_repository {
            Some(address) => Some(bind_as("--key-repository", address).await?),
            None => None,
        };
        let config = identity::Config {
            listener: bind(args.listen).await?,
            ca_dir: args.ca,
            passphrase: passphrase(),
            data_dir: args.role.state_dir,
            trust_domain: trust_domain(&args.role.trust_domain)?,
            key_repository_names: repository_names(args.key_repository, args.key_repository_name),
            key_repository,
            policy: args.policy,
        };
        identity::serve_observed(config, telemetry, shutdown).await.map_err(|error| ended(Role::Identity, &error))
    })
}

/// Runs the TCS until it is told to end.
///
/// # Errors
/// It cannot join the mesh, cannot start, or had to end.
pub fn tcs(args: TcsServe) -> Result<Answer, Failure> {
    serve(Role::Tcs, async move |shutdown| {
        let telemetry = observed(args.role.metrics, &shutdown);
        let past = Options { retention: args.past.retention, retained_bytes: args.past.retained_bytes, ..tcs::PAST };
        let role = tcs_role(args.store, args.follow, past)?;
        let listener = bind(args.listen).await?;
        let joined = join(Role::Tcs, &args.join, &args.role, &shutdown).await?;
        let config = tcs::Config {
            listener,
            role,
            state_dir: args.role.state_dir,
            identity: joined.identity,
            instance: joined.instance,
            policy: args.policy,
        };
        tcs::serve_observed(config, telemetry, shutdown).await.map_err(|error| ended(Role::Tcs, &error))
    })
}

/// Runs the policy service until it is told to end.
///
/// # Errors
/// Wrong usage, or it cannot join the mesh, cannot start, or had to end.
pub fn policy(args: PolicyServe) -> Result<Answer, Failure> {
    // Not clap's to see: each of them may stand in the file of settings.
    if let (Some(folder), Some(keys)) = (&args.folder, &args.require_signed) {
        let (folder, keys) = (folder.display(), keys.display());
        return Err(Failure::usage(format!(
            "--folder {folder} with --require-signed {keys}: a watched folder has no signature, so that none of its policy would be taken"
        ))
        .next("leave out --folder and use `tenon policy apply --bundle FILE`, or leave out --require-signed"));
    }
    if let Some(address) = args.dashboard.filter(|address| !address.ip().is_loopback()) {
        return Err(Failure::usage(format!(
            "--dashboard {address}: expected an address of this machine alone, for the dashboard speaks plain HTTP"
        ))
        .next(format!(
            "give --dashboard 127.0.0.1:{}, and reach it from elsewhere through `ssh -L` or `kubectl port-forward`",
            address.port()
        )));
    }
    serve(Role::Policy, async move |shutdown| {
        let telemetry = observed(args.role.metrics, &shutdown);
        let listener = bind(args.listen).await?;
        let joined = join(Role::Policy, &args.join, &args.role, &shutdown).await?;
        let config = policy::Config {
            listener,
            store: in_a_folder(args.store)?,
            state_dir: args.role.state_dir,
            folder: args.folder,
            accept: args.require_signed.as_deref().map(accepted_keys).transpose()?.unwrap_or_default(),
            identity: joined.identity,
            dashboard: args.dashboard,
            tcs: args.tcs,
        };
        policy::serve_observed(config, telemetry, shutdown).await.map_err(|error| ended(Role::Policy, &error))
    })
}

/// The keys that policy must be signed with.
fn accepted_keys(path: &Path) -> Result<Vec<PublicKey>, Failure> {
    let wrong = |why: String| {
        Failure::new(format!("--require-signed {}: {why}", path.display()))
            .next("name a file of Ed25519 public keys, as `openssl pkey -in KEY.pem -pubout` writes them")
    };
    let pem = fs::read(path).map_err(|error| wrong(error.to_string()))?;
    PublicKey::all_from_pem(&pem).map_err(|error| wrong(error.to_string()))
}

/// Runs a role on a runtime with a thread a processor, with logs on standard error.
fn serve(role: Role, work: impl AsyncFnOnce(CancellationToken) -> Result<(), Failure>) -> Result<Answer, Failure> {
    use io::IsTerminal as _;

    let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let filter = EnvFilter::builder().with_default_directive(tracing::Level::INFO.into()).from_env_lossy();
    // What cannot be logged is dropped: complaining about it where it cannot be written either is a panic of whoever logs.
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(colour);
    logs.log_internal_errors(false).init();
    let runtime = tokio::runtime::Runtime::new().map_err(|error| {
        Failure::new(format!("cannot start: {error}")).next("free some memory and file descriptors")
    })?;
    runtime.block_on(async {
        let shutdown = CancellationToken::new();
        tokio::spawn(end_on_signal(shutdown.clone()));
        work(shutdown).await
    })?;
    tracing::info!(role = role.name(), "ended");
    Ok(Answer::Yes)
}

async fn end_on_signal(shutdown: CancellationToken) {
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        tracing::warn!("signals cannot be heard: only SIGKILL ends this process");
        return;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    shutdown.cancel();
}

/// What the process shows of itself, and where. A taken address keeps no service from its work: it is tried again.
fn observed(address: Option<SocketAddr>, shutdown: &CancellationToken) -> Arc<Telemetry> {
    let telemetry = Arc::new(Telemetry::default());
    if let Some(address) = address {
        tokio::spawn(show(Arc::clone(&telemetry), address, shutdown.clone()));
    }
    telemetry
}

async fn show(telemetry: Arc<Telemetry>, address: SocketAddr, shutdown: CancellationToken) {
    let mut said = false;
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) if !said => {
                tracing::error!(%address, %error, "cannot show metrics: end what listens there, or name another address with --metrics");
                said = true;
            }
            Err(_) => {}
        }
        tokio::time::sleep(LOOK).await;
    };
    if let Ok(address) = listener.local_addr() {
        tracing::info!(%address, "metrics are shown");
    }
    if let Err(error) = telemetry.listen(listener, shutdown).await {
        tracing::error!(%error, "metrics are no longer shown");
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener, Failure> {
    bind_as("--listen", address).await
}

async fn bind_as(flag: &str, address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|error| {
        Failure::new(format!("cannot listen on {address}: {error}"))
            .next(format!("end what listens there, or name another address with {flag}"))
    })
}

/// What the certificate of the key repository says when nobody says otherwise: how this machine reaches it.
fn repository_names(address: Option<SocketAddr>, named: Vec<String>) -> Vec<String> {
    let Some(address) = address.filter(|_| named.is_empty()) else { return named };
    let (ip, localhost) = (address.ip(), "localhost".to_owned());
    if ip.is_unspecified() {
        vec![localhost, Ipv4Addr::LOCALHOST.to_string(), Ipv6Addr::LOCALHOST.to_string()]
    } else if ip.is_loopback() {
        vec![localhost, ip.to_string()]
    } else {
        vec![ip.to_string()]
    }
}

fn trust_domain(name: &str) -> Result<TrustDomain, Failure> {
    TrustDomain::try_from(name).map_err(|error| Failure::usage(error.to_string()).next("correct --trust-domain"))
}

/// Where a TCS has its tenants from: exactly one of both is said.
fn tcs_role(store: Option<Store>, follow: Vec<SocketAddr>, past: Options) -> Result<tcs::Role, Failure> {
    match store {
        Some(_) if !follow.is_empty() => Err(Failure::usage("--store and --follow are both given").next(
            "a TCS with a store is followed by others, and one that follows has none: leave one of them out (TENON_STORE, TENON_FOLLOW and the file of --config count too)",
        )),
        None if follow.is_empty() => Err(Failure::usage("neither --store nor --follow is given")
            .next("say where tenants are kept (--store embedded:FILE) or whom to follow (--follow HOST:PORT)")),
        None => Ok(tcs::Role::Relay { parents: follow }),
        Some(store) => Ok(tcs::Role::Leader { store: in_a_folder(store)?, past }),
    }
}

/// The store, in a folder that exists where it is a file.
fn in_a_folder(store: Store) -> Result<Store, Failure> {
    if let Store::Embedded(file) = &store
        && let Some(folder) = file.parent()
    {
        fs::create_dir_all(folder).map_err(|error| {
            Failure::new(format!("cannot make {}: {error}", folder.display()))
                .next("make its parent writable, or name another file with --store embedded:PATH")
        })?;
    }
    Ok(store)
}

async fn join(role: Role, args: &JoinArgs, of: &RoleArgs, shutdown: &CancellationToken) -> Result<Joined, Failure> {
    let expected = trust_domain(&of.trust_domain)?;
    let config = join::Config {
        identity_address: args.identity,
        pin: args.trust_bundle_sha256.clone(),
        attestation: Attestation {
            join_token: None,
            join_token_file: args.join_token_file.clone(),
            oidc_token_file: args.oidc_token_file.clone(),
        },
        service: role.service_name(),
        state_dir: of.state_dir.clone(),
    };
    let joined = join::join(config.clone()).await.map_err(|error| Failure::new(chain(&error)))?;
    let found = joined.identity.id().trust_domain();
    if *found != expected {
        return Err(Failure::new(format!(
            "the mesh at {} has the trust domain {found}, not {expected}",
            args.identity
        ))
        .next("name the right one with --trust-domain, or the right identity service with --identity"));
    }
    // They end with the runtime.
    let from = FollowTrust::new(args.identity, &joined.identity, &joined.instance, of.state_dir.clone());
    let (trust, _following) = Trust::follow(from, &joined.identity, shutdown);
    let (membership, _staying) = Membership::start(&joined, config, shutdown);
    tokio::spawn(tell_when_back(trust, membership));
    Ok(joined)
}

/// Has the identity service hear of this process as soon as it is back, and when it begins a new history: it may have
/// forgotten all instances.
async fn tell_when_back(trust: Trust, membership: Arc<Membership>) {
    let mut tick = tokio::time::interval(LOOK);
    let mut before = (false, None);
    loop {
        tick.tick().await;
        let status = trust.bundle.status();
        let now = (status.connected, status.position.map(|position| position.epoch));
        let was = std::mem::replace(&mut before, now);
        if now.0 && now != was {
            membership.identity_service_heard();
        }
    }
}

fn ended(role: Role, error: &dyn std::error::Error) -> Failure {
    Failure::new(format!("the {} cannot run: {}", role.title(), chain(error)))
        .next("put right what it names and start it again")
}
