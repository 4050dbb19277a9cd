//! A mesh as its policy files describe it, checked: nothing here is malformed, dangling or there twice.

mod outside;
mod route;

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

use tenon_proto::tcs::v1::TenantContext;

use crate::{
    Problem,
    names::{DocumentName, ProductName, RegionName, ServiceName, TenantId, TrustDomain, ZoneName},
    yaml::At,
};

pub use self::{
    outside::{Attestor, AttestorRule, ExternalClient},
    route::{
        HealthCheck, Hedge, Limits, Outliers, Retry, RetryBudget, Route, RouteMethod, Setting, StatusCode, Timeout,
    },
};

/// A whole mesh. Made by [`parse`](crate::parse) alone.
#[derive(Debug, Clone, PartialEq)]
pub struct Mesh {
    pub(crate) name: DocumentName,
    pub(crate) trust_domain: TrustDomain,
    /// Where the trust domain stands: file, line and column.
    pub(crate) trust_domain_at: (String, At),
    pub(crate) regions: Vec<RegionName>,
    pub(crate) services: BTreeMap<ServiceName, Service>,
    pub(crate) external_clients: BTreeMap<ServiceName, ExternalClient>,
    /// In the order of the files.
    pub(crate) attestors: Vec<Attestor>,
    /// In deciding order: byte order of the files' paths, then position.
    pub(crate) allowlists: Vec<Allowlist>,
    pub(crate) routes: BTreeMap<ServiceName, Route>,
    pub(crate) quarantines: Vec<Quarantine>,
    pub(crate) local: Option<LocalMesh>,
    pub(crate) tests: Vec<PolicyTest>,
}

impl Mesh {
    /// `metadata.name` of the Mesh document.
    pub fn name(&self) -> &DocumentName {
        &self.name
    }

    /// The SPIFFE trust domain of every identity of this mesh.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// A problem with the trust domain, at its place: whoever applies the files knows which one it must be.
    pub fn trust_domain_problem(&self, message: impl Into<String>) -> Problem {
        let (file, At { line, column }) = self.trust_domain_at.clone();
        Problem { file, line, column, message: message.into() }
    }

    /// The regions, in the order of the file.
    pub fn regions(&self) -> &[RegionName] {
        &self.regions
    }

    /// Every defined service.
    pub fn services(&self) -> &BTreeMap<ServiceName, Service> {
        &self.services
    }

    /// Every client outside of the mesh, named by a rule or not. None is named as a service is.
    pub fn external_clients(&self) -> &BTreeMap<ServiceName, ExternalClient> {
        &self.external_clients
    }

    /// Whose tokens attest services, in the order of the files.
    pub fn attestors(&self) -> &[Attestor] {
        &self.attestors
    }

    /// Every allowlist in deciding order: byte order of the files' paths, then position (DESIGN §6).
    pub fn allowlists(&self) -> &[Allowlist] {
        &self.allowlists
    }

    /// How destinations are called, of each that says.
    pub fn routes(&self) -> &BTreeMap<ServiceName, Route> {
        &self.routes
    }

    /// Every quarantine, in the order of the files.
    pub fn quarantines(&self) -> &[Quarantine] {
        &self.quarantines
    }

    /// What `tenon up` runs, when the files say.
    pub fn local(&self) -> Option<&LocalMesh> {
        self.local.as_ref()
    }

    /// The tests that the files hold, for `tenon policy test`.
    pub fn tests(&self) -> &[PolicyTest] {
        &self.tests
    }
}

/// A document of kind `Service`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// `metadata.name`.
    pub name: ServiceName,
    /// Tenants need this product active and licensed; `None` for platform services.
    pub product: Option<ProductName>,
    /// Which tenants an instance serves.
    pub residency: Residency,
    /// May call for any tenant; else only for those it is serving at the moment.
    pub originates: bool,
    /// May ask the identity service for transaction tokens.
    pub requests_transaction_tokens: bool,
    /// May change tenants through `tenon.tcs.v1.Lifecycle`: a provisioning system.
    pub manages_tenants: bool,
}

/// Which tenants an instance of a service serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residency {
    /// Those of any region.
    Any,
    /// Only those whose home region is the instance's own.
    Home,
}

/// A document of kind `Allowlist`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allowlist {
    /// `metadata.name`.
    pub name: DocumentName,
    /// The callee.
    pub service: ServiceName,
    /// What becomes of a call that it would refuse.
    pub mode: Mode,
    /// In the order of the file.
    pub rules: Vec<Rule>,
}

/// What becomes of a call that an allowlist would refuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// It is refused.
    Enforce,
    /// It is logged and counted, and passes.
    Audit,
}

/// One rule of an allowlist: rules only allow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Unique within the service.
    pub name: DocumentName,
    /// Who may call; never empty.
    pub callers: Vec<Caller>,
    /// What may be called; never empty. `/package.Service/Method` or `/package.Service/*`.
    pub paths: Vec<String>,
    /// What the call must say of its tenant.
    pub tenant: TenantCondition,
    /// Which tenants it is for; `None`: all that `tenant` admits. Never beside [`TenantCondition::None`].
    pub tenants: Option<Tenants>,
    /// What else must prove where the call comes from.
    pub proof: Proof,
    /// `None`: unlimited.
    pub rate: Option<Rate>,
    /// Where it stands, for explanations: `media.yaml:12`.
    pub source: String,
}

/// Who may call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// `"*"`: any authenticated service of the mesh, and no client outside of it.
    Any,
    /// The service, or the client outside of the mesh, of this name: they share one namespace.
    Named(ServiceName),
}

impl Caller {
    /// As it stands in the file and in the record.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Any => "*",
            Self::Named(name) => name.as_str(),
        }
    }
}

/// What a call must say of its tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TenantCondition {
    /// It names one that can be served.
    Required,
    /// It names none, or one that can be served.
    Optional,
    /// Tenants are ignored, and the app is handed none.
    None,
}

/// Which tenants a rule is for: those that meet every list that is not empty, and not all of them are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tenants {
    /// The tenant has one of these editions of the service's own product, which the service then has.
    pub editions: Vec<String>,
    /// The tenant has every one of these features of that product.
    pub features: Vec<String>,
    /// The tenant's home is one of these regions.
    pub regions: Vec<RegionName>,
    /// The tenant is one of these.
    pub ids: Vec<TenantId>,
}

/// What must prove where a call comes from, beside its ASAP token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// Nothing.
    None,
    /// A transaction token.
    Transaction,
}

/// How often one tenant may be called for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Calls in one period, at least 1.
    pub count: u64,
    /// The period: 1, 60 or 3600 seconds.
    pub per_seconds: u32,
    /// Calls at once after a pause, at least 1.
    pub burst: u64,
}

/// A document of kind `Quarantine`: these services, and clients outside of the mesh, are cut off in both directions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantine {
    /// `metadata.name`.
    pub name: DocumentName,
    /// Never empty.
    pub services: Vec<ServiceName>,
    /// For people; empty when none was given.
    pub reason: String,
}

/// The document of kind `LocalMesh`: what `tenon up` runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalMesh {
    /// In the order of the file. No two of their listeners collide.
    pub instances: Vec<Instance>,
    /// Where the control plane listens.
    pub control_plane: ControlPlaneAddresses,
}

/// Where the control plane listens (DESIGN §2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlPlaneAddresses {
    /// The identity service, gRPC.
    pub identity: SocketAddr,
    /// The key repository and trust bundle, HTTPS.
    pub key_repository: SocketAddr,
    /// The Tenant Context Service, once for each process of it. Never empty; the first one writes, and with an embedded
    /// store it is the only one that does.
    pub tcs: Vec<ReplicaAddress>,
    /// The policy service, once for each process of it. Never empty; several share a NATS store.
    pub policy: Vec<ReplicaAddress>,
    /// The dashboard.
    pub dashboard: SocketAddr,
}

impl Default for ControlPlaneAddresses {
    fn default() -> Self {
        let local = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        Self {
            identity: local(15010),
            key_repository: local(15011),
            tcs: vec![ReplicaAddress { address: local(15020), zone: None }],
            policy: vec![ReplicaAddress { address: local(15030), zone: None }],
            dashboard: local(15080),
        }
    }
}

/// Where one process of a service of the control plane listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaAddress {
    /// gRPC.
    pub address: SocketAddr,
    /// The zone that it stands in: sidecars prefer to follow two of different zones.
    pub zone: Option<ZoneName>,
}

/// One sidecar with its app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// The service it is an instance of.
    pub service: ServiceName,
    /// The region it stands in.
    pub region: RegionName,
    /// The zone within the region.
    pub zone: Option<ZoneName>,
    /// Where the app listens (h2c); `None` for a service that only calls.
    pub app: Option<SocketAddr>,
    /// Program and arguments of the app; empty: somebody else starts it.
    pub command: Vec<String>,
    /// The listener for the app's own calls.
    pub outbound: Outbound,
    /// The listener for other sidecars, as it is bound. It may be an unspecified address.
    pub inbound: SocketAddr,
    /// The admin listener.
    pub admin: SocketAddr,
    /// Which tenants its sidecar holds.
    pub tenants: HeldTenants,
}

/// Which tenants a sidecar holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HeldTenants {
    /// All of them.
    #[default]
    Full,
    /// Those that were asked for lately.
    OnDemand,
}

/// The listener for an app's own calls: plaintext, so never beyond the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outbound {
    /// A loopback address.
    Tcp(SocketAddr),
    /// `unix:PATH`.
    Unix(PathBuf),
}

impl std::fmt::Display for Outbound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A document of kind `PolicyTest`.
#[derive(Debug, Clone, PartialEq)]
pub struct PolicyTest {
    /// `metadata.name`.
    pub name: DocumentName,
    /// The tenants that its calls may name.
    pub tenants: Vec<TenantContext>,
    /// Never empty.
    pub calls: Vec<TestCall>,
}

/// One call of a test, and what must come of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestCall {
    /// The calling service or client outside of the mesh; need not be defined.
    pub caller: ServiceName,
    /// The called service; need not be defined.
    pub service: ServiceName,
    /// The gRPC path.
    pub path: String,
    /// The tenant it names, as an app would: any text.
    pub tenant: Option<String>,
    /// The region of the called instance.
    pub region: Option<RegionName>,
    /// The transaction token that it carries, valid and current.
    pub transaction: Option<TestTransaction>,
    /// What must come of it.
    pub expect: Expect,
    /// Where it stands: `tests.yaml:12:7`.
    pub source: String,
}

/// A transaction token of a test's call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestTransaction {
    /// The tenant in it, if any.
    pub tenant: Option<String>,
}

/// What must come of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expect {
    /// `ALLOWED`
    Allowed,
    /// A refusal's reason, one of [`REASONS`].
    Refused(String),
}

/// Every reason of a refusal (DESIGN §3), in the order in which a call meets them. What they mean is not known here; a
/// test of who refuses holds this list to be theirs.
pub const REASONS: &[&str] = &[
    "ASAP_MISSING",
    "ASAP_MALFORMED",
    "ASAP_ALGORITHM",
    "ASAP_KEY_UNKNOWN",
    "ASAP_KEYS_UNAVAILABLE",
    "ASAP_SIGNATURE",
    "ASAP_EXPIRED",
    "ASAP_NOT_YET_VALID",
    "ASAP_LIFETIME",
    "ASAP_AUDIENCE",
    "ASAP_ISSUER",
    "ASAP_SUBJECT",
    "QUARANTINED",
    "PATH_NOT_ALLOWED",
    "POLICY_UNAVAILABLE",
    "TXN_MISSING",
    "TXN_INVALID",
    "TXN_EXPIRED",
    "TXN_TENANT_MISMATCH",
    "TENANT_STALE",
    "TENANT_REQUIRED",
    "TENANT_UNKNOWN",
    "TENANT_SUSPENDED",
    "PRODUCT_NOT_LICENSED",
    "PRODUCT_SUSPENDED",
    "TENANT_WRONG_REGION",
    "TENANT_NOT_ALLOWED",
    "TCS_UNAVAILABLE",
    "TENANT_RATE_LIMITED",
    "OVERLOADED",
    "SERVICE_UNKNOWN",
    "NO_ENDPOINT",
    "UPSTREAM_CONNECT",
    "DEADLINE",
    "TENANT_AMBIGUOUS",
    "TENANT_NOT_IN_FLIGHT",
];
