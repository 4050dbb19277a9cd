//! Configuration of one sidecar: a YAML file, `TENON_*` variables over it, flags over both.

mod address;
mod problems;
mod tcs;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use mesh_config::names::{RegionName, ServiceName, TrustDomain, ZoneName};
use mesh_identity::{join::Attestation, policy_signature::PublicKey, workload::Socket};
use serde::Deserialize;

use self::problems::Problems;
pub(crate) use self::problems::duration;
pub use self::{
    address::LocalAddress,
    tcs::{HeldTenants, ReplicaAddress},
};
use crate::access::Logged;

/// The command line of `tenon-sidecar`. Every flag is also a key of `--config FILE` and a `TENON_*` variable.
#[derive(Debug, Default, Args, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Flags {
    /// YAML file with any of the options below, in camelCase (trustDomain: demo.example)
    #[arg(long, env = "TENON_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Name of the service whose sidecar this is
    #[arg(long, env = "TENON_SERVICE", value_name = "NAME")]
    pub service: Option<String>,
    /// Trust domain of the mesh
    #[arg(long, env = "TENON_TRUST_DOMAIN", value_name = "DOMAIN")]
    pub trust_domain: Option<String>,
    /// Region of this instance
    #[arg(long, env = "TENON_REGION", value_name = "REGION")]
    pub region: Option<String>,
    /// Zone of this instance, within its region
    #[arg(long, env = "TENON_ZONE", value_name = "ZONE")]
    pub zone: Option<String>,
    /// Where the app listens, plaintext HTTP/2: IP:PORT or unix:PATH; absent for a service that only calls
    #[arg(long, env = "TENON_APP", value_name = "ADDRESS")]
    pub app: Option<String>,
    /// User ids that may connect to an outbound listener on a Unix socket [default: whoever may open its file]
    #[arg(long, env = "TENON_APP_UID", value_name = "UID", value_delimiter = ',')]
    #[serde(deserialize_with = "addresses")]
    pub app_uid: Vec<String>,
    /// Listener for the app's own calls: a loopback address or unix:PATH [default: 127.0.0.1:15001]
    #[arg(long, env = "TENON_OUTBOUND", value_name = "ADDRESS")]
    pub outbound: Option<String>,
    /// Listener for other sidecars, TLS 1.3 with client certificates [default: 0.0.0.0:15006]
    #[arg(long, env = "TENON_INBOUND", value_name = "ADDRESS")]
    pub inbound: Option<String>,
    /// Address at which other sidecars reach the inbound listener [default: where it listens; on all addresses: that from
    /// which the policy service is reached]
    #[arg(long, env = "TENON_ADVERTISE", value_name = "IP:PORT")]
    pub advertise: Option<String>,
    /// Register this instance for callers while its app accepts connections [default: true]
    #[arg(long, env = "TENON_REGISTER", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub register: Option<bool>,
    /// Listener for /metrics, /live, /ready, /config, and over gRPC tenon.admin.v1, health and reflection [default: 127.0.0.1:15000]
    #[arg(long, env = "TENON_ADMIN", value_name = "ADDRESS")]
    pub admin: Option<String>,
    /// Address of the identity service [default: 127.0.0.1:15010]
    #[arg(long, env = "TENON_IDENTITY", value_name = "IP:PORT")]
    pub identity: Option<String>,
    /// Address of a replica of the Tenant Context Service, with its zone if it has one; given several times, two of
    /// different zones are followed at once [default: 127.0.0.1:15020]
    #[arg(long, env = "TENON_TCS", value_name = "[ZONE=]IP:PORT", value_delimiter = ',')]
    #[serde(deserialize_with = "addresses")]
    pub tcs: Vec<String>,
    /// Hold all tenants, or on-demand: those that are asked for [default: full]
    #[arg(long, env = "TENON_TENANTS", value_name = "full|on-demand")]
    pub tenants: Option<String>,
    /// With --tenants on-demand: the most memory that tenants may take [default: 64MiB]
    #[arg(long, env = "TENON_TENANT_CACHE_BYTES", value_name = "SIZE")]
    pub tenant_cache_bytes: Option<String>,
    /// Address of a process of the policy service, as for --tcs [default: 127.0.0.1:15030]
    #[arg(long, env = "TENON_POLICY", value_name = "[ZONE=]IP:PORT", value_delimiter = ',')]
    #[serde(deserialize_with = "addresses")]
    pub policy: Vec<String>,
    /// Accept only policy that is signed with one of these keys: Ed25519 public keys, PEM [default: any]
    #[arg(long, env = "TENON_REQUIRE_SIGNED", value_name = "PATH")]
    pub require_signed: Option<PathBuf>,
    /// SHA-256 of the mesh's trust bundle, in hexadecimal: what the identity service is pinned by
    #[arg(long, env = "TENON_TRUST_BUNDLE_SHA256", value_name = "HEX")]
    pub trust_bundle_sha256: Option<String>,
    /// File with a one-time join token; needed once, until the state folder holds an SVID
    #[arg(long, env = "TENON_JOIN_TOKEN_FILE", value_name = "PATH")]
    pub join_token_file: Option<PathBuf>,
    /// File with a token of the platform (OIDC), read anew each time; used where there is no join token
    #[arg(long, env = "TENON_OIDC_TOKEN_FILE", value_name = "PATH")]
    pub oidc_token_file: Option<PathBuf>,
    /// Take SVID and trust bundle from this SPIFFE Workload API instead of the identity service: unix:///PATH
    #[arg(long, env = "TENON_WORKLOAD_API", value_name = "SOCKET")]
    pub workload_api: Option<String>,
    /// Serve the SPIFFE Workload API to the app on this Unix socket: whoever may open it gets the SVID's key
    #[arg(long, env = "TENON_SERVE_WORKLOAD_API", value_name = "PATH")]
    pub serve_workload_api: Option<PathBuf>,
    /// Folder for what must outlive a restart: SVID, keys, replicated state
    #[arg(long, env = "TENON_STATE_DIR", value_name = "PATH")]
    pub state_dir: Option<PathBuf>,
    /// Threads that forward calls [default: the number of processors, at most 4]
    #[arg(long, env = "TENON_WORKERS", value_name = "N")]
    pub workers: Option<usize>,
    /// How long calls are still taken after SIGTERM, once this instance is off the list of those that take calls, so that
    /// callers hear of it [default: 500ms]
    #[arg(long, env = "TENON_SETTLE", value_name = "DURATION")]
    pub settle: Option<String>,
    /// Take the listeners over from the sidecar that runs with this state folder, if there is one: no connection is
    /// refused, and that one ends when its calls have ended
    #[arg(long, env = "TENON_TAKE_OVER", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub take_over: Option<bool>,
    /// How long open calls may go on after SIGTERM, in seconds [default: 10]
    #[arg(long, env = "TENON_DRAIN_SECONDS", value_name = "SECONDS")]
    pub drain_seconds: Option<u64>,
    /// Memory above which new calls are refused, and streams that nobody reads are ended: 512MiB [default: four fifths of
    /// what the control group may use, else 1GiB]
    #[arg(long, env = "TENON_MEMORY_LIMIT", value_name = "SIZE")]
    pub memory_limit: Option<String>,
    /// Write a line of JSON to standard output for every call (on), or for a share of them (1%) [default: off]
    #[arg(long, env = "TENON_ACCESS_LOG", num_args = 0..=1, default_missing_value = "on", value_name = "on|off|SHARE")]
    #[serde(deserialize_with = "text")]
    pub access_log: Option<String>,
    /// Collector that takes spans of calls, OTLP over gRPC without TLS: http://HOST:4317 [default: no spans]
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp: Option<String>,
    /// With --otlp: the share of calls that come without a trace and begin one, from 0 to 1. Those whose trace is recorded
    /// by who calls are recorded always [default: 0]
    #[arg(long, env = "OTEL_TRACES_SAMPLER_ARG", value_name = "SHARE")]
    pub trace_share: Option<f64>,
    /// Show in /metrics the calls of so many tenants, those that are called for most, and of all others together. Whoever may
    /// read the metrics then reads which tenants these are [default: 0]
    #[arg(long, env = "TENON_TENANT_METRICS", value_name = "N")]
    pub tenant_metrics: Option<usize>,
    /// Forward every call without looking at who makes it and for which tenant: what the checks cost is measured by this
    #[cfg(feature = "bench-no-checks")]
    // Not TENON_..: `tenon up` keeps variables of that name from its sidecars.
    #[arg(long, env = "BENCH_NO_CHECKS", hide = true)]
    pub no_checks: bool,
}

/// Where SVID and trust bundle come from.
#[derive(Debug, Clone)]
pub enum SvidFrom {
    /// The identity service of the mesh.
    IdentityService {
        /// Lower-case hexadecimal SHA-256 of the trust bundle.
        pin: String,
        /// Files, read at each attempt to join, since whoever starts the sidecar may renew them.
        attestation: Attestation,
    },
    /// A SPIFFE Workload API, such as that of SPIRE's agent.
    WorkloadApi(Socket),
}

/// What of calls is told to a collector.
#[derive(Debug, Clone, PartialEq)]
pub struct Spans {
    /// An http URL, without TLS.
    pub collector: String,
    /// Of calls that come without a trace so many begin one, from 0 to 1.
    pub share: f64,
}

/// A configuration that is complete and consistent.
#[derive(Debug, Clone)]
pub struct Config {
    /// Whose sidecar this is.
    pub service: ServiceName,
    /// The only trust domain whose SVIDs are accepted.
    pub trust_domain: TrustDomain,
    /// Decides `residency: home` and the nearness of endpoints.
    pub region: Option<RegionName>,
    /// Refines the nearness of endpoints.
    pub zone: Option<ZoneName>,
    /// Absent for a service that only calls.
    pub app: Option<LocalAddress>,
    /// Who may connect to an outbound listener on a Unix socket; empty: whoever may open its file.
    pub app_uids: Vec<u32>,
    /// The app's own calls.
    pub outbound: LocalAddress,
    /// Other sidecars' calls.
    pub inbound: SocketAddr,
    /// Where other sidecars are told that the inbound listener is.
    pub advertise: Option<SocketAddr>,
    /// Whether an instance with an app is registered for callers.
    pub register: bool,
    /// Operators and scrapers.
    pub admin: SocketAddr,
    /// Identity service.
    pub identity: SocketAddr,
    /// The replicas of the Tenant Context Service that are followed: one or two.
    pub tcs: Vec<ReplicaAddress>,
    /// How much of their map is held.
    pub tenants: HeldTenants,
    /// The processes of the policy service that are followed: one or two.
    pub policy: Vec<ReplicaAddress>,
    /// Where there are any: one of these keys must have signed the policy.
    pub require_signed: Vec<PublicKey>,
    /// Who says which certificate is this sidecar's.
    pub svid_from: SvidFrom,
    /// The app's own Workload API.
    pub serve_workload_api: Option<PathBuf>,
    /// What must outlive a restart.
    pub state_dir: PathBuf,
    /// Forwarding threads.
    pub workers: usize,
    /// How long calls are taken on after the instance has left the list of those that take them.
    pub settle: Duration,
    /// Whether the listeners of a sidecar with the same state folder are taken over.
    pub take_over: bool,
    /// Bound on the end of open calls after a signal.
    pub drain: Duration,
    /// Bytes of memory above which nothing new is taken.
    pub memory_limit: u64,
    /// Of which calls a line is written.
    pub access_log: Logged,
    /// Who takes spans, and of which calls.
    pub spans: Option<Spans>,
    /// Tenants that are shown in metrics.
    pub tenant_metrics: usize,
    /// Only the benchmark's own build has it.
    #[cfg(feature = "bench-no-checks")]
    pub no_checks: bool,
}

impl Config {
    /// Whether calls are checked. Always, but in the build that the benchmark compares with.
    #[cfg(not(feature = "bench-no-checks"))]
    #[must_use]
    pub const fn checks(&self) -> bool {
        true
    }

    /// Whether calls are checked: `--no-checks` of the benchmark's own build.
    #[cfg(feature = "bench-no-checks")]
    #[must_use]
    pub const fn checks(&self) -> bool {
        !self.no_checks
    }
}

/// Everything that is wrong with a configuration, one problem a line.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigError(pub Vec<String>);

impl Flags {
    /// Reads `--config`, lays flags and variables over it and checks the whole.
    ///
    /// # Errors
    /// Every problem at once, each naming the option.
    pub fn into_config(self) -> Result<Config, ConfigError> {
        let file = match &self.config {
            Some(path) => read_file(path).map_err(|problem| ConfigError(vec![problem]))?,
            None => Self::default(),
        };
        self.over(file).check()
    }

    fn over(self, file: Self) -> Self {
        Self {
            config: self.config,
            service: self.service.or(file.service),
            trust_domain: self.trust_domain.or(file.trust_domain),
            region: self.region.or(file.region),
            zone: self.zone.or(file.zone),
            app: self.app.or(file.app),
            app_uid: if self.app_uid.is_empty() { file.app_uid } else { self.app_uid },
            outbound: self.outbound.or(file.outbound),
            inbound: self.inbound.or(file.inbound),
            advertise: self.advertise.or(file.advertise),
            register: self.register.or(file.register),
            admin: self.admin.or(file.admin),
            identity: self.identity.or(file.identity),
            tcs: if self.tcs.is_empty() { file.tcs } else { self.tcs },
            tenants: self.tenants.or(file.tenants),
            tenant_cache_bytes: self.tenant_cache_bytes.or(file.tenant_cache_bytes),
            policy: if self.policy.is_empty() { file.policy } else { self.policy },
            require_signed: self.require_signed.or(file.require_signed),
            trust_bundle_sha256: self.trust_bundle_sha256.or(file.trust_bundle_sha256),
            join_token_file: self.join_token_file.or(file.join_token_file),
            oidc_token_file: self.oidc_token_file.or(file.oidc_token_file),
            workload_api: self.workload_api.or(file.workload_api),
            serve_workload_api: self.serve_workload_api.or(file.serve_workload_api),
            state_dir: self.state_dir.or(file.state_dir),
            workers: self.workers.or(file.workers),
            settle: self.settle.or(file.settle),
            take_over: self.take_over.or(file.take_over),
            drain_seconds: self.drain_seconds.or(file.drain_seconds),
            memory_limit: self.memory_limit.or(file.memory_limit),
            access_log: self.access_log.or(file.access_log),
            otlp: self.otlp.or(file.otlp),
            trace_share: self.trace_share.or(file.trace_share),
            tenant_metrics: self.tenant_metrics.or(file.tenant_metrics),
            #[cfg(feature = "bench-no-checks")]
            no_checks: self.no_checks || file.no_checks,
        }
    }

    fn check(self) -> Result<Config, ConfigError> {
        let mut problems = Problems(Vec::new());
        let (spans, access_log, tenant_metrics) = problems.told(&self);
        let service = problems.required("service", self.service.as_deref());
        let trust_domain = problems.required("trust-domain", self.trust_domain.as_deref());
        let (region, zone) = problems.place(self.region.as_deref(), self.zone.as_deref());
        let app = problems.optional("app", self.app.as_deref());
        let (outbound, app_uids) = problems.app_side(self.outbound.as_deref(), &self.app_uid);
        let settle = problems.settle(self.settle.as_deref().unwrap_or("500ms")).unwrap_or_default();
        let inbound = problems.address("inbound", self.inbound.as_deref().unwrap_or("0.0.0.0:15006"));
        let advertise = problems.advertise(self.advertise.as_deref());
        let admin = problems.address("admin", self.admin.as_deref().unwrap_or("127.0.0.1:15000"));
        let identity = problems.address("identity", self.identity.as_deref().unwrap_or("127.0.0.1:15010"));
        let tcs = problems.replicas("tcs", &self.tcs, "127.0.0.1:15020");
        let tenants = problems.tenants(self.tenants.as_deref(), self.tenant_cache_bytes.as_deref());
        let require_signed = self.require_signed.map(|path| problems.public_keys(&path)).unwrap_or_default();
        let policy = problems.replicas("policy", &self.policy, "127.0.0.1:15030");
        let proofs = (self.join_token_file, self.oidc_token_file);
        let svid_from = problems.svid_from(self.workload_api, self.trust_bundle_sha256, proofs);
        let state_dir = problems.state_dir(self.state_dir);
        let (workers, memory_limit) = problems.bounds(self.workers, self.memory_limit.as_deref());
        let listeners = (service, trust_domain, outbound, inbound, admin);
        let others = (identity, tcs, policy, svid_from, state_dir);
        let (Some(service), Some(trust_domain), Some(outbound), Some(inbound), Some(admin)) = listeners else {
            return Err(ConfigError(problems.0));
        };
        let (Some(identity), Some(tcs), Some(policy), Some(svid_from), Some(state_dir)) = others else {
            return Err(ConfigError(problems.0));
        };
        problems.none()?;
        Ok(Config {
            tcs: tcs::parents(&tcs, zone.as_ref()),
            policy: tcs::parents(&policy, zone.as_ref()),
            require_signed,
            tenants: tenants.unwrap_or_default(),
            service,
            trust_domain,
            region,
            zone,
            app,
            app_uids,
            outbound,
            inbound,
            advertise,
            register: self.register.unwrap_or(true),
            admin,
            identity,
            svid_from,
            serve_workload_api: self.serve_workload_api,
            state_dir,
            workers,
            settle,
            take_over: self.take_over.unwrap_or(false),
            drain: Duration::from_secs(self.drain_seconds.unwrap_or(10)),
            memory_limit,
            access_log,
            spans,
            tenant_metrics,
            #[cfg(feature = "bench-no-checks")]
            no_checks: self.no_checks,
        })
    }
}

/// More than four forwarding threads are worth it only on hosts that ask for them.
fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(4)
}

fn read_file(path: &Path) -> Result<Flags, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("--config {}: {error}", path.display()))?;
    yaml(&text).map_err(|problem| format!("{}:{problem}", path.display()))
}

/// The file is one flat mapping of scalars, or of lists of them.
fn yaml(text: &str) -> Result<Flags, String> {
    use saphyr::{LoadableYamlNode as _, Yaml};
    let documents = Yaml::load_from_str(text)
        .map_err(|error| format!("{}:{}: {error}", error.marker().line(), error.marker().col() + 1))?;
    let [document] = documents.as_slice() else {
        return if documents.is_empty() { Ok(Flags::default()) } else { Err("1:1: expected one document".into()) };
    };
    let mapping = document.as_mapping().ok_or("1:1: expected a mapping of options to values")?;
    let mut object = serde_json::Map::new();
    for (key, value) in mapping {
        let key = key.as_str().ok_or("1:1: expected option names as keys")?;
        let list = || value.as_sequence().and_then(|items| items.iter().map(scalar).collect::<Option<Vec<_>>>());
        let Some(value) = scalar(value).or_else(|| list().map(serde_json::Value::from)) else {
            return Err(format!("1:1: {key}: expected a string, a number, a boolean or a list of them"));
        };
        object.insert(key.to_owned(), value);
    }
    serde_json::from_value(serde_json::Value::Object(object)).map_err(|error| format!("1:1: {error}"))
}

fn scalar(value: &saphyr::Yaml<'_>) -> Option<serde_json::Value> {
    let text = value.as_str().map(serde_json::Value::from);
    let number = || value.as_integer().map(serde_json::Value::from);
    let truth = || value.as_bool().map(serde_json::Value::from);
    text.or_else(number).or_else(truth)
}

/// Text, or a boolean, which YAML makes of `on` and `off` in some of its versions.
fn text<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Text {
        Text(String),
        Truth(bool),
    }
    Ok(Some(match Text::deserialize(deserializer)? {
        Text::Text(text) => text,
        Text::Truth(truth) => truth.to_string(),
    }))
}

/// One address, several with commas between them as in the variable, or a list.
fn addresses<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Addresses {
        Text(String),
        List(Vec<String>),
    }
    Ok(match Addresses::deserialize(deserializer)? {
        Addresses::Text(text) => text.split(',').map(str::to_owned).collect(),
        Addresses::List(list) => list,
    })
}

#[cfg(test)]
mod tests;
