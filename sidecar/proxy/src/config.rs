//! Configuration of one sidecar: a YAML file, `TENON_*` variables over it, flags over both.

mod tcs;

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use clap::Parser;
use mesh_config::names::{RegionName, ServiceName, TrustDomain, ZoneName};
use mesh_identity::{join::Attestation, policy_signature::PublicKey, workload::Socket};
use serde::{Deserialize, Serialize};

pub use self::tcs::{HeldTenants, ReplicaAddress};

/// The command line of `tenon-sidecar`. Every flag is also a key of `--config FILE` and a `TENON_*` variable.
#[derive(Debug, Default, Parser, Deserialize)]
#[command(
    name = "tenon-sidecar",
    version,
    about = "The data plane of Tenon: one process beside each instance of a service",
    after_help = "Example:\n  tenon-sidecar --service media --trust-domain demo.example --region us-east --app 127.0.0.1:9002 \\\n    \
                  --identity 127.0.0.1:15010 --tcs 127.0.0.1:15020 --policy 127.0.0.1:15030 \\\n    \
                  --trust-bundle-sha256 \"$PIN\" --join-token-file join-token --state-dir state\n\n\
                  `tenon identity join-token --service media` prints a join token; the pin is\n\
                  trustBundleSha256 in mesh.json in the data folder of the mesh. Where the platform attests its\n\
                  processes, its token does instead, once an Attestor document accepts it:\n  \
                  --oidc-token-file /var/run/secrets/tokens/tenon\n\n\
                  Two replicas of the TCS in two zones, and only those tenants in memory that are asked for:\n  \
                  --tcs a=10.0.0.1:15020 --tcs b=10.0.1.1:15020 --tenants on-demand --tenant-cache-bytes 64MiB\n\n\
                  A flag wins over its TENON_* variable, and a variable over the file."
)]
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
    /// Where the app listens, plaintext HTTP/2; absent for a service that only calls
    #[arg(long, env = "TENON_APP", value_name = "HOST:PORT")]
    pub app: Option<String>,
    /// Listener for the app's own calls: a loopback address or unix:PATH [default: 127.0.0.1:15001]
    #[arg(long, env = "TENON_OUTBOUND", value_name = "ADDRESS")]
    pub outbound: Option<String>,
    /// Listener for other sidecars, TLS 1.3 with client certificates [default: 0.0.0.0:15006]
    #[arg(long, env = "TENON_INBOUND", value_name = "ADDRESS")]
    pub inbound: Option<String>,
    /// Listener for /metrics, /live, /ready, /config and gRPC health and reflection [default: 127.0.0.1:15000]
    #[arg(long, env = "TENON_ADMIN", value_name = "ADDRESS")]
    pub admin: Option<String>,
    /// Address of the identity service [default: 127.0.0.1:15010]
    #[arg(long, env = "TENON_IDENTITY", value_name = "HOST:PORT")]
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
    /// How long open calls may go on after SIGTERM, in seconds [default: 10]
    #[arg(long, env = "TENON_DRAIN_SECONDS", value_name = "SECONDS")]
    pub drain_seconds: Option<u64>,
    /// Write one log line for every call, not only for refused ones
    #[arg(long, env = "TENON_ACCESS_LOG", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub access_log: Option<bool>,
}

/// Where the outbound listener is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(into = "String")]
pub enum OutboundAddress {
    /// A loopback address.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for OutboundAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl From<OutboundAddress> for String {
    fn from(address: OutboundAddress) -> Self {
        address.to_string()
    }
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
    pub app: Option<SocketAddr>,
    /// The app's own calls.
    pub outbound: OutboundAddress,
    /// Other sidecars' calls.
    pub inbound: SocketAddr,
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
    /// Bound on the end of open calls after a signal.
    pub drain: Duration,
    /// One line a call.
    pub access_log: bool,
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
            outbound: self.outbound.or(file.outbound),
            inbound: self.inbound.or(file.inbound),
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
            drain_seconds: self.drain_seconds.or(file.drain_seconds),
            access_log: self.access_log.or(file.access_log),
        }
    }

    fn check(self) -> Result<Config, ConfigError> {
        let mut problems = Problems(Vec::new());
        let service = problems.required("service", self.service.as_deref());
        let trust_domain = problems.required("trust-domain", self.trust_domain.as_deref());
        let region = problems.optional("region", self.region.as_deref());
        let zone = problems.optional("zone", self.zone.as_deref());
        let app = problems.optional("app", self.app.as_deref());
        let outbound = problems.outbound(self.outbound.as_deref().unwrap_or("127.0.0.1:15001"));
        let inbound = problems.optional("inbound", Some(self.inbound.as_deref().unwrap_or("0.0.0.0:15006")));
        let admin = problems.optional("admin", Some(self.admin.as_deref().unwrap_or("127.0.0.1:15000")));
        let identity = problems.optional("identity", Some(self.identity.as_deref().unwrap_or("127.0.0.1:15010")));
        let tcs = problems.replicas("tcs", &self.tcs, "127.0.0.1:15020");
        let tenants = problems.tenants(self.tenants.as_deref(), self.tenant_cache_bytes.as_deref());
        let require_signed = self.require_signed.map(|path| problems.public_keys(&path)).unwrap_or_default();
        let policy = problems.replicas("policy", &self.policy, "127.0.0.1:15030");
        let attestation = Attestation {
            join_token: None,
            join_token_file: self.join_token_file,
            oidc_token_file: self.oidc_token_file,
        };
        let svid_from = problems.svid_from(self.workload_api, self.trust_bundle_sha256, attestation);
        if self.state_dir.is_none() {
            problems.0.push("--state-dir is missing: name a folder that outlives restarts".into());
        }
        let workers = problems.workers(self.workers);
        match (service, trust_domain, outbound, inbound, admin, identity, tcs, policy, svid_from, self.state_dir) {
            (
                Some(service),
                Some(trust_domain),
                Some(outbound),
                Some(inbound),
                Some(admin),
                Some(identity),
                Some(tcs),
                Some(policy),
                Some(svid_from),
                Some(state_dir),
            ) if problems.0.is_empty() => Ok(Config {
                tcs: tcs::parents(&tcs, zone.as_ref()),
                policy: tcs::parents(&policy, zone.as_ref()),
                require_signed,
                tenants: tenants.unwrap_or_default(),
                service,
                trust_domain,
                region,
                zone,
                app,
                outbound,
                inbound,
                admin,
                identity,
                svid_from,
                serve_workload_api: self.serve_workload_api,
                state_dir,
                workers,
                drain: Duration::from_secs(self.drain_seconds.unwrap_or(10)),
                access_log: self.access_log.unwrap_or(false),
            }),
            _ => Err(ConfigError(problems.0)),
        }
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

struct Problems(Vec<String>);

impl Problems {
    fn workers(&mut self, workers: Option<usize>) -> usize {
        let workers = workers.unwrap_or_else(default_workers);
        if workers == 0 || workers > 256 {
            self.0.push(format!("--workers {workers}: expected 1 to 256"));
        }
        workers
    }

    fn required<T: FromStr<Err: fmt::Display>>(&mut self, option: &str, value: Option<&str>) -> Option<T> {
        if value.is_none() {
            self.0.push(format!("--{option} is missing"));
        }
        self.optional(option, value)
    }

    fn optional<T: FromStr<Err: fmt::Display>>(&mut self, option: &str, value: Option<&str>) -> Option<T> {
        match value?.parse() {
            Ok(parsed) => Some(parsed),
            Err(error) => {
                self.0.push(format!("--{option} {}: {error}", value.unwrap_or_default()));
                None
            }
        }
    }

    fn replicas(&mut self, name: &str, given: &[String], default: &str) -> Option<Vec<ReplicaAddress>> {
        let default = [default.to_owned()];
        let given = if given.is_empty() { &default[..] } else { given };
        // All of them, so that all problems are told.
        let parsed: Vec<_> = given.iter().map(|address| self.optional(name, Some(address))).collect();
        parsed.into_iter().collect()
    }

    fn public_keys(&mut self, path: &Path) -> Vec<PublicKey> {
        let read = std::fs::read(path).map_err(|error| error.to_string());
        let keys = read.and_then(|pem| PublicKey::all_from_pem(&pem).map_err(|error| error.to_string()));
        keys.unwrap_or_else(|why| {
            self.0.push(format!("--require-signed {}: {why}", path.display()));
            Vec::new()
        })
    }

    fn tenants(&mut self, tenants: Option<&str>, cache_bytes: Option<&str>) -> Option<HeldTenants> {
        HeldTenants::read(tenants, cache_bytes).map_err(|problem| self.0.push(problem)).ok()
    }

    /// Calls of the app carry no credential of their own, so nobody else may reach this listener.
    fn outbound(&mut self, value: &str) -> Option<OutboundAddress> {
        if let Some(path) = value.strip_prefix("unix:") {
            if path.is_empty() {
                self.0.push("--outbound unix: needs a path".into());
                return None;
            }
            return Some(OutboundAddress::Unix(PathBuf::from(path)));
        }
        let address: SocketAddr = self.optional("outbound", Some(value))?;
        if !address.ip().is_loopback() {
            self.0.push(format!(
                "--outbound {value}: expected a loopback address or unix:PATH, since calls here carry no credential"
            ));
            return None;
        }
        Some(OutboundAddress::Tcp(address))
    }

    /// One of the two, and nothing that only the other would look at.
    fn svid_from(
        &mut self,
        workload_api: Option<String>,
        pin: Option<String>,
        attestation: Attestation,
    ) -> Option<SvidFrom> {
        let Some(socket) = workload_api else {
            return self.pin(pin).map(|pin| SvidFrom::IdentityService { pin, attestation });
        };
        let beside = [
            ("--trust-bundle-sha256", pin.is_some()),
            ("--join-token-file", attestation.join_token_file.is_some()),
            ("--oidc-token-file", attestation.oidc_token_file.is_some()),
        ];
        for (option, given) in beside {
            if given {
                self.0.push(format!("{option} has no use beside --workload-api, which gives SVID and trust bundle"));
            }
        }
        self.optional("workload-api", Some(&socket)).map(SvidFrom::WorkloadApi)
    }

    fn pin(&mut self, value: Option<String>) -> Option<String> {
        let Some(value) = value else {
            self.0.push(
                "--trust-bundle-sha256 is missing: it stands in the data folder of the mesh, as trustBundleSha256 in mesh.json"
                    .into(),
            );
            return None;
        };
        let pin = value.to_ascii_lowercase();
        if pin.len() != 64 || !pin.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            self.0.push(format!("--trust-bundle-sha256 {value}: expected 64 hexadecimal digits"));
            return None;
        }
        Some(pin)
    }
}

#[cfg(test)]
mod tests;
