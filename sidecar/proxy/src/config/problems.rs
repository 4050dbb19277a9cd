//! Checking the values of options, and collecting what is wrong with them.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use mesh_config::names::{RegionName, ZoneName};
use mesh_identity::{join::Attestation, policy_signature::PublicKey};

use super::{
    ConfigError, Flags, HeldTenants, LocalAddress, ReplicaAddress, Spans, SvidFrom, default_workers, tcs::size,
};
use crate::{access::Logged, limits::default_budget};

/// A sidecar needs as much with nothing to do.
const SMALLEST_MEMORY: u64 = 16 << 20;

/// Callers hear of it within a second.
const LONGEST_SETTLE: Duration = Duration::from_secs(600);

/// All problems of a configuration, so that they are told at once.
pub(super) struct Problems(pub(super) Vec<String>);

/// Of which there may be metrics.
const MOST_TENANTS: usize = 100;

impl Problems {
    /// What is told of calls: spans, lines of the access log, and of how many tenants there are metrics.
    pub(super) fn told(&mut self, flags: &Flags) -> (Option<Spans>, Logged, usize) {
        let tenants = flags.tenant_metrics.unwrap_or_default();
        if tenants > MOST_TENANTS {
            self.0.push(format!(
                "--tenant-metrics {tenants}: expected 0 to {MOST_TENANTS}: each is some series of the metrics"
            ));
        }
        let access_log = self.optional("access-log", flags.access_log.as_deref()).unwrap_or_default();
        (self.spans(flags.otlp.clone(), flags.trace_share), access_log, tenants)
    }

    /// Who takes spans, at an URL without TLS, and of which share of calls.
    fn spans(&mut self, url: Option<String>, share: Option<f64>) -> Option<Spans> {
        let share = share.unwrap_or_default();
        if !(0.0..=1.0).contains(&share) {
            self.0.push(format!("--trace-share {share}: expected a share from 0 to 1: 0.01 is one of a hundred"));
        }
        let collector = url?;
        let fits = collector.parse::<http::Uri>().is_ok_and(|uri| {
            // A password in it would be shown by `/config`.
            let host = uri.authority().is_some_and(|authority| !authority.as_str().contains('@'));
            uri.scheme_str() == Some("http") && host && matches!(uri.path(), "" | "/")
        });
        if !fits {
            self.0.push(format!(
                "--otlp {collector}: expected http://HOST:PORT of a collector that takes OTLP over gRPC"
            ));
        }
        Some(Spans { collector, share })
    }

    /// Threads, and bytes of memory.
    pub(super) fn bounds(&mut self, workers: Option<usize>, memory: Option<&str>) -> (usize, u64) {
        (self.workers(workers), self.memory_limit(memory))
    }

    /// Where this instance runs.
    pub(super) fn place(&mut self, region: Option<&str>, zone: Option<&str>) -> (Option<RegionName>, Option<ZoneName>) {
        (self.optional("region", region), self.optional("zone", zone))
    }

    fn workers(&mut self, workers: Option<usize>) -> usize {
        let workers = workers.unwrap_or_else(default_workers);
        if workers == 0 || workers > 256 {
            self.0.push(format!("--workers {workers}: expected 1 to 256"));
        }
        workers
    }

    pub(super) fn required<T: FromStr<Err: fmt::Display>>(&mut self, option: &str, value: Option<&str>) -> Option<T> {
        if value.is_none() {
            self.0.push(format!("--{option} is missing"));
        }
        self.optional(option, value)
    }

    pub(super) fn optional<T: FromStr<Err: fmt::Display>>(&mut self, option: &str, value: Option<&str>) -> Option<T> {
        match value?.parse() {
            Ok(parsed) => Some(parsed),
            Err(error) => {
                self.0.push(format!("--{option} {}: {error}", value.unwrap_or_default()));
                None
            }
        }
    }

    /// Of a listener, or of a process: names are not looked up.
    pub(super) fn address(&mut self, option: &str, value: &str) -> Option<SocketAddr> {
        let parsed = value.parse().ok();
        if parsed.is_none() {
            self.0.push(format!("--{option} {value}: expected IP:PORT or [IPv6]:PORT, and no name of a host"));
        }
        parsed
    }

    /// Where nobody can connect to nobody can be told to.
    pub(super) fn advertise(&mut self, value: Option<&str>) -> Option<SocketAddr> {
        let address = self.address("advertise", value?)?;
        if address.ip().is_unspecified() || address.port() == 0 {
            self.0.push(format!("--advertise {address}: expected the address and port that other sidecars connect to"));
            return None;
        }
        Some(address)
    }

    pub(super) fn replicas(&mut self, name: &str, given: &[String], default: &str) -> Option<Vec<ReplicaAddress>> {
        let default = [default.to_owned()];
        let given = if given.is_empty() { &default[..] } else { given };
        // All of them, so that all problems are told.
        let parsed: Vec<_> = given.iter().map(|address| self.optional(name, Some(address))).collect();
        parsed.into_iter().collect()
    }

    pub(super) fn public_keys(&mut self, path: &Path) -> Vec<PublicKey> {
        let read = std::fs::read(path).map_err(|error| error.to_string());
        let keys = read.and_then(|pem| PublicKey::all_from_pem(&pem).map_err(|error| error.to_string()));
        keys.unwrap_or_else(|why| {
            self.0.push(format!("--require-signed {}: {why}", path.display()));
            Vec::new()
        })
    }

    fn memory_limit(&mut self, given: Option<&str>) -> u64 {
        let Some(text) = given else { return default_budget() };
        size(text).filter(|bytes| *bytes >= SMALLEST_MEMORY).unwrap_or_else(|| {
            self.0.push(format!("--memory-limit {text}: expected a number of KiB, MiB or GiB, 16MiB at least: 512MiB"));
            SMALLEST_MEMORY
        })
    }

    pub(super) fn tenants(&mut self, tenants: Option<&str>, cache_bytes: Option<&str>) -> Option<HeldTenants> {
        HeldTenants::read(tenants, cache_bytes).map_err(|problem| self.0.push(problem)).ok()
    }

    /// Where the app calls, and which users may.
    pub(super) fn app_side(&mut self, outbound: Option<&str>, uids: &[String]) -> (Option<LocalAddress>, Vec<u32>) {
        let address = self.outbound(outbound.unwrap_or("127.0.0.1:15001"));
        let uids = self.app_uids(uids, address.as_ref());
        (address, uids)
    }

    /// Calls of the app carry no credential of their own, so nobody else may reach this listener.
    fn outbound(&mut self, value: &str) -> Option<LocalAddress> {
        let address: LocalAddress = self.optional("outbound", Some(value))?;
        if matches!(&address, LocalAddress::Tcp(address) if !address.ip().is_loopback()) {
            self.0.push(format!(
                "--outbound {value}: expected a loopback address or unix:PATH, since calls here carry no credential"
            ));
            return None;
        }
        Some(address)
    }

    /// The kernel tells who connects to a Unix socket, and to no other.
    fn app_uids(&mut self, given: &[String], outbound: Option<&LocalAddress>) -> Vec<u32> {
        if !given.is_empty() && matches!(outbound, Some(LocalAddress::Tcp(_))) {
            self.0
                .push("--app-uid: expected --outbound unix:PATH beside it, where the kernel tells who connects".into());
        }
        let mut uid = |text: &String| {
            let parsed = text.parse().ok();
            if parsed.is_none() {
                self.0.push(format!("--app-uid {text}: expected numbers of users, as `id -u` prints them: 1000,1001"));
            }
            parsed
        };
        given.iter().filter_map(&mut uid).collect()
    }

    pub(super) fn state_dir(&mut self, given: Option<PathBuf>) -> Option<PathBuf> {
        if given.is_none() {
            self.0.push("--state-dir is missing: name a folder that outlives restarts".into());
        }
        given
    }

    /// # Errors
    /// There are some.
    pub(super) fn none(self) -> Result<(), ConfigError> {
        if self.0.is_empty() { Ok(()) } else { Err(ConfigError(self.0)) }
    }

    /// Whoever ends a process waits for it, and kills it after a while.
    pub(super) fn settle(&mut self, value: &str) -> Option<Duration> {
        let settle = self.duration("settle", value)?;
        if settle > LONGEST_SETTLE {
            self.0.push(format!(
                "--settle {value}: expected 10m at most: for so long each stop of the sidecar takes longer"
            ));
            return None;
        }
        Some(settle)
    }

    fn duration(&mut self, option: &str, value: &str) -> Option<Duration> {
        let parsed = duration(value);
        if parsed.is_none() {
            self.0.push(format!("--{option} {value}: expected a number with its unit: 500ms, 2s or 1m"));
        }
        parsed
    }

    /// One of the two, and nothing that only the other would look at.
    pub(super) fn svid_from(
        &mut self,
        workload_api: Option<String>,
        pin: Option<String>,
        (join_token_file, oidc_token_file): (Option<PathBuf>, Option<PathBuf>),
    ) -> Option<SvidFrom> {
        let attestation = Attestation { join_token: None, join_token_file, oidc_token_file };
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

    pub(super) fn pin(&mut self, value: Option<String>) -> Option<String> {
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

/// `500ms`, `2s`, `1m`.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    let unit = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(unit);
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(milliseconds).map(Duration::from_millis)
}
