//! The control plane's own commands: `tenon identity serve`, `tenon policy serve`, `tenon tcs serve`.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::Args;
use journal::Store;

/// What each service of the control plane is told about itself.
#[derive(Debug, Args)]
pub struct RoleArgs {
    /// YAML file with the same settings: `listen: 127.0.0.1:15020`. Flags and TENON_* variables override it.
    #[arg(long, value_name = "FILE", env = "TENON_CONFIG")]
    pub config: Option<PathBuf>,
    /// Trust domain of the mesh.
    #[arg(long, value_name = "NAME", env = "TENON_TRUST_DOMAIN")]
    pub trust_domain: String,
    /// Folder for what the service keeps between two starts.
    #[arg(long, value_name = "DIR", env = "TENON_STATE_DIR")]
    pub state_dir: PathBuf,
    /// Address of /metrics, /live and /ready over HTTP, to whoever reaches it; without it they are not served.
    #[arg(long, value_name = "HOST:PORT", env = "TENON_METRICS")]
    pub metrics: Option<SocketAddr>,
}

/// How a service of the control plane gets its certificate.
#[derive(Debug, Args)]
pub struct JoinArgs {
    /// Address of the identity service.
    #[arg(long, value_name = "HOST:PORT", env = "TENON_IDENTITY", default_value = "127.0.0.1:15010")]
    pub identity: SocketAddr,
    /// SHA-256 of the trust bundle, in hexadecimal: pins the identity service.
    #[arg(long, value_name = "HEX", env = "TENON_TRUST_BUNDLE_SHA256")]
    pub trust_bundle_sha256: String,
    /// File with a join token; needed until the service has its first certificate.
    #[arg(long, value_name = "PATH", env = "TENON_JOIN_TOKEN_FILE")]
    pub join_token_file: Option<PathBuf>,
    /// File with a token of the platform (OIDC), read anew each time; used where there is no join token.
    #[arg(long, value_name = "PATH", env = "TENON_OIDC_TOKEN_FILE")]
    pub oidc_token_file: Option<PathBuf>,
}

/// What the TCS keeps of past changes.
#[derive(Debug, Clone, Args)]
pub struct PastArgs {
    /// For how long past changes are kept, in days or hours: how far back a backup can be restored.
    #[arg(long, value_name = "TIME", env = "TENON_RETENTION", default_value = "30d", value_parser = retention)]
    pub retention: Duration,
    /// How much room past changes may take at most, in MiB or GiB; then the oldest go earlier.
    #[arg(long, value_name = "SIZE", env = "TENON_RETAINED_BYTES", default_value = "16GiB", value_parser = size)]
    pub retained_bytes: u64,
}

impl PastArgs {
    /// The flags that say the same.
    pub fn flags(&self) -> [(&'static str, String); 2] {
        let (hours, mebibytes) = (self.retention.as_secs() / 3600, self.retained_bytes >> 20);
        // In the larger unit where that is exact: what was typed fits, and must fit again.
        let retention = if hours % 24 == 0 { format!("{}d", hours / 24) } else { format!("{hours}h") };
        let size = if mebibytes % 1024 == 0 { format!("{}GiB", mebibytes >> 10) } else { format!("{mebibytes}MiB") };
        [("--retention", retention), ("--retained-bytes", size)]
    }
}

/// Run the identity service: the mesh's CA and the key repository.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  tenon identity serve --trust-domain demo.example --ca ca --state-dir identity \\\n      --listen 127.0.0.1:15010 --key-repository 0.0.0.0:15011 \\\n      --key-repository-name keys.demo.example"
)]
pub struct IdentityServe {
    /// Address to listen on.
    #[arg(long, value_name = "HOST:PORT", env = "TENON_LISTEN", default_value = "127.0.0.1:15010")]
    pub listen: SocketAddr,
    /// Address of the key repository and trust bundle over HTTPS; without it they are not served.
    #[arg(long, value_name = "HOST:PORT", env = "TENON_KEY_REPOSITORY")]
    pub key_repository: Option<SocketAddr>,
    /// DNS name or IP address by which clients reach the key repository; once for each. [default: the address itself, and
    /// localhost where that reaches it]
    #[arg(long, value_name = "NAME", env = "TENON_KEY_REPOSITORY_NAMES", value_delimiter = ',')]
    pub key_repository_name: Vec<String>,
    /// Address of the policy service: says whose tokens attest services, and which services may ask for transaction
    /// tokens. Without it nobody's do, and none may. Of several processes, two.
    #[arg(long, value_name = "HOST:PORT", env = "TENON_POLICY", value_delimiter = ',')]
    pub policy: Vec<SocketAddr>,
    /// Folder of the CA; made there when it is empty. TENON_CA_PASSPHRASE opens an encrypted key.
    #[arg(long, value_name = "DIR", env = "TENON_CA")]
    pub ca: PathBuf,
    #[command(flatten)]
    pub role: RoleArgs,
}

/// Run the policy service.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  tenon policy serve -f mesh-config/demo --trust-domain demo.example --state-dir policy \\\n      --store embedded:policy/store.redb --trust-bundle-sha256 HEX --join-token-file join-token\n\nWhere the platform attests its processes: --oidc-token-file PATH instead of --join-token-file."
)]
pub struct PolicyServe {
    /// Address to listen on.
    #[arg(long, value_name = "HOST:PORT", env = "TENON_LISTEN", default_value = "127.0.0.1:15030")]
    pub listen: SocketAddr,
    /// Folder of policy files to follow; without it, policy comes from `tenon policy apply` alone.
    #[arg(short = 'f', long = "folder", value_name = "DIR", env = "TENON_FOLDER")]
    pub folder: Option<PathBuf>,
    /// Where policy is kept: `embedded:FILE`, or `nats://HOST:PORT[,HOST:PORT]`, which any number of processes share.
    #[arg(long, value_name = "STORE", env = "TENON_STORE")]
    pub store: Store,
    /// Take only policy that is signed with one of these keys: a file of Ed25519 public keys, PEM. Not with -f: a watched
    /// folder has no signature.
    #[arg(long, value_name = "FILE", env = "TENON_REQUIRE_SIGNED")]
    pub require_signed: Option<PathBuf>,
    /// Loopback address of the dashboard, to whoever has a link of `tenon dashboard`; without it none is served. From
    /// another machine, reach it through `ssh -L` or `kubectl port-forward`.
    #[arg(long, value_name = "HOST:PORT", env = "TENON_DASHBOARD")]
    pub dashboard: Option<SocketAddr>,
    /// Address of the TCS: the dashboard looks tenants up there. May be several; the first that answers is asked.
    #[arg(long, value_name = "HOST:PORT", env = "TENON_TCS", value_delimiter = ',')]
    pub tcs: Vec<SocketAddr>,
    #[command(flatten)]
    pub join: JoinArgs,
    #[command(flatten)]
    pub role: RoleArgs,
}

/// Run the tenant context service.
///
/// One with a store of its own takes writes: with --store embedded:FILE it is the only one that does, with
/// --store nats://… any number of processes write beside each other. One with --follow serves what others tell it, to
/// sidecars and to others that follow it, and refuses writes.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tenon tcs serve --trust-domain demo.example --state-dir tcs --store embedded:tcs/store.redb \\\n      --trust-bundle-sha256 HEX --join-token-file join-token\n  tenon tcs serve --trust-domain demo.example --state-dir tcs-2 --follow 127.0.0.1:15020 \\\n      --listen 127.0.0.1:15021 --trust-bundle-sha256 HEX --join-token-file join-token\n\nWhere the platform attests its processes: --oidc-token-file PATH instead of --join-token-file."
)]
pub struct TcsServe {
    /// Address to listen on.
    #[arg(long, value_name = "HOST:PORT", env = "TENON_LISTEN", default_value = "127.0.0.1:15020")]
    pub listen: SocketAddr,
    /// Address of the policy service: says which service may see which product of a tenant. Of several processes, two.
    #[arg(
        long,
        value_name = "HOST:PORT",
        env = "TENON_POLICY",
        value_delimiter = ',',
        default_value = "127.0.0.1:15030"
    )]
    pub policy: Vec<SocketAddr>,
    /// Where tenants are kept: `embedded:FILE`, or `nats://HOST:PORT[,HOST:PORT]`.
    #[arg(long, value_name = "STORE", env = "TENON_STORE")]
    pub store: Option<Store>,
    /// Instead of a store: the TCS to follow, or two of them at once.
    #[arg(long, value_name = "HOST:PORT", env = "TENON_FOLLOW", value_delimiter = ',')]
    pub follow: Vec<SocketAddr>,
    #[command(flatten)]
    pub past: PastArgs,
    #[command(flatten)]
    pub join: JoinArgs,
    #[command(flatten)]
    pub role: RoleArgs,
}

/// A number of days or hours, one hour at least.
fn retention(text: &str) -> Result<Duration, String> {
    let wrong = || "expected a number of days or hours, one hour at least: 30d, 12h".to_owned();
    let (number, hours) = match (text.strip_suffix('d'), text.strip_suffix('h')) {
        (Some(number), _) => (number, 24),
        (_, Some(number)) => (number, 1),
        (None, None) => return Err(wrong()),
    };
    let number: u32 = number.parse().map_err(|_| wrong())?;
    if number == 0 { Err(wrong()) } else { Ok(Duration::from_secs(u64::from(number) * hours * 60 * 60)) }
}

/// A number of MiB or GiB, one MiB at least.
fn size(text: &str) -> Result<u64, String> {
    let wrong = || "expected a number of MiB or GiB: 512MiB, 16GiB".to_owned();
    let (number, shift) = match (text.strip_suffix("MiB"), text.strip_suffix("GiB")) {
        (Some(number), _) => (number, 20),
        (_, Some(number)) => (number, 30),
        (None, None) => return Err(wrong()),
    };
    let number: u32 = number.parse().map_err(|_| wrong())?;
    if number == 0 { Err(wrong()) } else { Ok(u64::from(number) << shift) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_of_the_past_has_a_unit_and_is_never_nothing() {
        assert_eq!(retention("30d"), Ok(Duration::from_secs(30 * 24 * 3600)));
        assert_eq!(retention("12h"), Ok(Duration::from_secs(12 * 3600)));
        assert_eq!((size("16GiB"), size("1MiB")), (Ok(16 << 30), Ok(1 << 20)));
        for (kept, room) in [("30d", "16GiB"), ("36h", "1500MiB"), ("4294967295d", "4294967295GiB")] {
            let past = PastArgs { retention: retention(kept).unwrap(), retained_bytes: size(room).unwrap() };
            assert_eq!(past.flags(), [("--retention", kept.to_owned()), ("--retained-bytes", room.to_owned())]);
        }
        for bad in ["", "0d", "30", "d", "-1d", "+1x", "1m"] {
            assert!(retention(bad).is_err(), "{bad}");
        }
        for bad in ["", "0GiB", "16", "GiB", "16GB", "-1MiB"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
