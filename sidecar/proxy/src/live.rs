//! Everything a sidecar decides from, as it is right now: assembled from the replicas, swapped as a whole.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use mesh_identity::{Identity, grpc};
use prost::Message;
use replica::{Decoded, Follow, FollowOnDemand, FollowTrust, Named, Replica, Roots, Trust, Value as _};
use sidecar_core::{
    Position, Quarantined, Tenants as _, inbound,
    outbound::{self, Destinations},
    policy::Policy,
    route::Route,
};
use tenon_proto::{kind, policy::v1 as policy_proto};
use tokio::{runtime::Handle, sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tracing::warn;

use crate::{
    access::AccessLog,
    config::{Config, HeldTenants, SvidFrom},
    credentials::{KeyRecord, Minting},
    decisions::Ledgers,
    health,
    in_flight::InFlight,
    limits::{self, Limits},
    line_budget::LineBudget,
    metrics::{DestinationGauges, ReplicaGauges},
    metrics::{Metrics, Snapshot},
    outside::Clients,
    policy_record::{self, PolicyRecord},
    pool::Pools,
    register::{self, Registration},
    report::{Reporter, Told},
    tap::Taps,
    tenants::{TenantMap, position},
    trace::{Tracer, export},
};

/// A record that is kept as the message it is.
#[derive(Debug)]
pub struct Proto<M> {
    /// The decoded message.
    pub message: M,
}

impl<M: Message + Default + 'static> replica::Decode for Proto<M> {
    fn decode(_key: &str, _revision: u64, raw: Bytes) -> Result<Self, String> {
        let message = M::decode(raw).map_err(|error| error.to_string())?;
        Ok(Self { message })
    }
}

/// The replicas of all kinds.
struct Replicas {
    allowlist: Replica<PolicyRecord>,
    route: Replica<Decoded<Proto<policy_proto::Route>>>,
    endpoint: Replica<Decoded<Proto<policy_proto::Endpoint>>>,
    quarantine: Replica<Decoded<Proto<policy_proto::Quarantine>>>,
    key: Replica<Decoded<KeyRecord>>,
    trust: Trust,
}

/// What workers read on every call. Readers take no lock; writers swap whole snapshots.
pub struct Live {
    /// As started.
    pub config: Arc<Config>,
    /// Name of this process: a rollout in steps names those that begin.
    instance: Box<str>,
    /// Who this sidecar is.
    pub identity: Arc<Identity>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Tokens for destinations.
    pub minting: Minting,
    /// Tenant contexts.
    pub tenants: TenantMap,
    /// Keeps a flood of refusals from becoming a flood of log lines.
    pub refusal_lines: LineBudget,
    /// Tenants that the app is serving now.
    pub in_flight: Arc<InFlight>,
    /// What this sidecar takes on.
    pub limits: Arc<Limits>,
    /// What the workers decided.
    pub decisions: Arc<Ledgers>,
    /// Calls that operators watch.
    pub taps: Arc<Taps>,
    /// Of those who want a line for each call.
    pub access_log: Option<AccessLog>,
    /// Of those who want spans.
    pub tracer: Option<Tracer>,
    /// Callers outside of the mesh.
    pub outside: Arc<Clients>,
    /// Where this instance takes calls, as others are to know it.
    pub registration: Arc<Registration>,
    /// Connections to other sidecars, of all workers.
    pub pools: Pools,
    /// Of the workers, and the one that does all else.
    runtimes: Mutex<Vec<Handle>>,
    inbound: ArcSwap<inbound::State>,
    outbound: ArcSwap<outbound::State>,
    replicas: Replicas,
    /// Counts the swaps and the changes of tenants: open calls are decided again when it moves.
    generation: watch::Sender<u64>,
}

impl Live {
    /// Follows all kinds and keeps the snapshots current until `shutdown`. Comes back with what the state folder held.
    pub fn start(
        config: &Arc<Config>,
        identity: &Arc<Identity>,
        instance: &str,
        metrics: &Arc<Metrics>,
        minting: Minting,
        shutdown: &CancellationToken,
    ) -> (Arc<Self>, Vec<JoinHandle<()>>) {
        let mut tasks = Vec::new();
        let sources = Sources::new(config, identity, instance, shutdown);
        let tenants = sources.tenants(&mut tasks);
        let replicas = Replicas {
            allowlist: sources.allowlist(&mut tasks),
            route: sources.policy(kind::ROUTE, &mut tasks),
            endpoint: sources.policy(kind::ENDPOINT, &mut tasks),
            quarantine: sources.policy(kind::QUARANTINE, &mut tasks),
            key: sources.identity(kind::KEY, &mut tasks),
            trust: sources.trust(identity, &mut tasks),
        };
        let (taps, wanted) = Taps::new();
        let tracer = config.spans.as_ref().map(|wanted| {
            let (tracer, spans) = Tracer::new(wanted.share, Arc::clone(metrics.spans()));
            let to = (wanted.collector.clone(), Arc::clone(config), instance.to_owned());
            tasks.push(tokio::spawn(export::run(to, spans, Arc::clone(metrics.spans()), shutdown.clone())));
            tracer
        });
        let live = Arc::new(Self {
            taps,
            access_log: AccessLog::open(config.access_log),
            tracer,
            config: Arc::clone(config),
            instance: instance.into(),
            identity: Arc::clone(identity),
            metrics: Arc::clone(metrics),
            minting,
            tenants,
            refusal_lines: LineBudget::default(),
            in_flight: Arc::default(),
            limits: Arc::new(Limits::new(config.memory_limit)),
            decisions: Arc::new(Ledgers::new(config.workers)),
            outside: Arc::new(Clients::new(Handle::current())),
            registration: Registration::new(),
            pools: Pools::default(),
            runtimes: Mutex::new(vec![Handle::current()]),
            inbound: ArcSwap::from_pointee(empty_inbound(config)),
            outbound: ArcSwap::from_pointee(empty_outbound(config)),
            replicas,
            generation: watch::Sender::new(0),
        });
        live.assemble();
        tasks.push(tokio::spawn(Arc::clone(&live).keep_current(shutdown.clone())));
        tasks.push(tokio::spawn(limits::keep(Arc::clone(&live), shutdown.clone())));
        let told = Told {
            ledgers: Arc::clone(&live.decisions),
            counters: Arc::clone(metrics.reports()),
            wanted,
            registration: Arc::clone(&live.registration),
            region: config.region.as_ref().map(ToString::to_string).unwrap_or_default(),
            zone: config.zone.as_ref().map(ToString::to_string).unwrap_or_default(),
        };
        let reporter = Reporter::new(sources.policy.clone(), instance, told);
        tasks.push(tokio::spawn(reporter.run(shutdown.clone(), config.drain)));
        tasks.push(tokio::spawn(register::keep(Arc::clone(&live), shutdown.clone())));
        (live, tasks)
    }

    /// The snapshot that inbound decisions are made from.
    pub fn inbound(&self) -> arc_swap::Guard<Arc<inbound::State>> {
        self.inbound.load()
    }

    /// The same, for whoever waits with it.
    pub fn inbound_now(&self) -> Arc<inbound::State> {
        self.inbound.load_full()
    }

    /// The snapshot that outbound decisions are made from. Owned, since candidates borrow from it across awaits.
    pub fn outbound(&self) -> Arc<outbound::State> {
        self.outbound.load_full()
    }

    /// Whether the mesh has a service of this name.
    pub fn is_service(&self, name: &str) -> bool {
        self.outbound.load().destinations.as_ref().is_some_and(|destinations| destinations.get(name).is_some())
    }

    /// Public ASAP keys.
    pub fn keys(&self) -> &Replica<Decoded<KeyRecord>> {
        &self.replicas.key
    }

    /// The instances of every service, as they were recorded.
    pub fn endpoints(&self) -> &Replica<Decoded<Proto<policy_proto::Endpoint>>> {
        &self.replicas.endpoint
    }

    /// Services that are cut off.
    pub fn quarantines(&self) -> &Replica<Decoded<Proto<policy_proto::Quarantine>>> {
        &self.replicas.quarantine
    }

    /// Moves whenever something that open calls were allowed by may have changed.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// What is still missing before calls can be served, in words; empty when ready.
    pub fn missing(&self) -> Vec<&'static str> {
        let replicas = &self.replicas;
        [
            (replicas.allowlist.position().is_some(), "the policy has never arrived"),
            (replicas.route.position().is_some(), "the routes have never arrived"),
            (replicas.endpoint.position().is_some(), "the endpoints have never arrived"),
            (replicas.quarantine.position().is_some(), "the quarantines have never arrived"),
            (replicas.key.position().is_some(), "the ASAP keys have never arrived"),
            (self.own_key_is_known(), "this sidecar's own ASAP key is not in the key set"),
            (replicas.trust.bundle.position().is_some(), "the trust bundle has never arrived"),
            (replicas.trust.revocation.position().is_some(), "the revocations have never arrived"),
            (self.tenants.position().is_some(), "the tenants have never arrived"),
        ]
        .into_iter()
        .filter_map(|(there, what)| (!there).then_some(what))
        .collect()
    }

    /// Who verifies our tokens needs the key that signs them: before it is in the key set, nobody can.
    fn own_key_is_known(&self) -> bool {
        self.replicas.key.get(self.minting.key().kid().as_str()).is_some()
    }

    /// Revisions in force: of the allowlist and of the tenants.
    pub fn revisions(&self) -> (Option<Position>, Option<Position>) {
        (self.replicas.allowlist.position().map(position), self.tenants.position())
    }

    /// A worker runs on this one.
    pub fn runs_on(&self, runtime: &Handle) {
        self.runtimes().push(runtime.clone());
    }

    fn runtimes(&self) -> MutexGuard<'_, Vec<Handle>> {
        self.runtimes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a scrape and `/config` show.
    pub fn snapshot(&self) -> Snapshot {
        let replicas = &self.replicas;
        let gauges = ReplicaGauges::of;
        let (tenants, cache) = match &self.tenants {
            TenantMap::Full(replica) => (gauges(kind::TENANT, replica.status()), None),
            TenantMap::OnDemand(cache) => {
                let status = cache.status();
                (ReplicaGauges::of_cache(kind::TENANT, &status, &self.config.tcs), Some(status))
            }
        };
        Snapshot {
            cache,
            replicas: vec![
                tenants,
                gauges(kind::ALLOWLIST, replicas.allowlist.status()),
                gauges(kind::ROUTE, replicas.route.status()),
                gauges(kind::ENDPOINT, replicas.endpoint.status()),
                gauges(kind::QUARANTINE, replicas.quarantine.status()),
                gauges(kind::KEY, replicas.key.status()),
                gauges(kind::TRUST_BUNDLE, replicas.trust.bundle.status()),
                gauges(kind::REVOCATION, replicas.trust.revocation.status()),
            ],
            destinations: DestinationGauges::of(&self.outbound.load(), &self.pools.open(), health::now()),
            limits: self.limits.gauges(),
            access_log_lost: self.access_log.as_ref().map_or(0, AccessLog::lost),
            remembered: self.decisions.remembered(),
            runtimes: self.runtimes().iter().map(Handle::metrics).collect(),
            rpcs: self.metrics.rpcs().take(&self.decisions),
            tenants: self.metrics.tenants().take(&self.decisions, self.config.tenant_metrics),
            // What the replicas do not know is for the admin listener to add.
            ..Snapshot::default()
        }
    }

    async fn keep_current(self: Arc<Self>, shutdown: CancellationToken) {
        let mut allowlist = self.replicas.allowlist.subscribe();
        let mut route = self.replicas.route.subscribe();
        let mut endpoint = self.replicas.endpoint.subscribe();
        let mut quarantine = self.replicas.quarantine.subscribe();
        let again = Arc::clone(&self);
        let mut tenants = Box::pin(async move {
            again.tenants.each_change(|| again.generation.send_modify(|generation| *generation += 1)).await;
        });
        loop {
            let changed = tokio::select! {
                () = shutdown.cancelled() => return,
                changed = allowlist.changed() => changed,
                changed = route.changed() => changed,
                changed = endpoint.changed() => changed,
                changed = quarantine.changed() => changed,
                () = &mut tenants => return,
            };
            if changed.is_err() {
                return;
            }
            self.assemble();
        }
    }

    fn assemble(&self) {
        let replicas = &self.replicas;
        let me = &self.config.service;
        let own = replicas.allowlist.get(me.as_str());
        // A complete snapshot without a record for this service is a policy that allows nothing.
        let known = replicas.allowlist.position();
        let own = own.as_ref().map(|record| record.of(&self.instance));
        let policy = known.map(|_| own.map_or_else(|| Arc::new(Policy::empty()), |own| Arc::clone(&own.policy)));
        let quarantines = replicas.quarantine.entries();
        let quarantined: Quarantined = quarantines.iter().map(|record| &record.message).collect();
        let routes = replicas.route.entries();
        let endpoints = replicas.endpoint.entries();
        let before = self.outbound.load();
        let destinations = replicas.route.position().map(|_| {
            let here = (self.config.region.as_ref(), self.config.zone.as_ref());
            let routes = routes.iter().map(|record| &record.message);
            let endpoints = endpoints.iter().map(|record| &record.message);
            let (destinations, problems) = Destinations::build(routes, endpoints, here, before.destinations.as_ref());
            for problem in problems {
                warn!(%problem, "a record is left out");
            }
            destinations
        });
        self.inbound.store(Arc::new(inbound::State {
            policy: policy.clone(),
            quarantined: quarantined.clone(),
            policy_position: known.map(position),
            ..empty_inbound(&self.config)
        }));
        self.outbound.store(Arc::new(outbound::State {
            originates: policy.as_ref().is_some_and(|policy| policy.originates()),
            quarantined,
            destinations,
            ..empty_outbound(&self.config)
        }));
        let route = replicas.route.get(me.as_str());
        let settings = route.as_ref().and_then(|route| route.message.settings.clone()).unwrap_or_default();
        self.limits.set_bounds(Route::decode(&settings).limits);
        self.outside.set(own.map_or(&[], |own| &own.external_clients));
        self.generation.send_modify(|generation| *generation += 1);
    }
}

fn empty_inbound(config: &Config) -> inbound::State {
    inbound::State {
        me: config.service.clone(),
        region: config.region.clone(),
        policy: None,
        quarantined: Quarantined::default(),
        policy_position: None,
    }
}

fn empty_outbound(config: &Config) -> outbound::State {
    outbound::State {
        me: config.service.clone(),
        region: config.region.clone(),
        zone: config.zone.clone(),
        originates: false,
        quarantined: Quarantined::default(),
        destinations: None,
    }
}

/// Where each kind comes from.
struct Sources<'c> {
    config: &'c Config,
    /// Names this process for all of them.
    instance: &'c str,
    shutdown: CancellationToken,
    identity: Channel,
    tcs: Vec<Named<Channel>>,
    policy: Vec<Channel>,
}

impl<'c> Sources<'c> {
    fn new(config: &'c Config, identity: &Arc<Identity>, instance: &'c str, shutdown: &CancellationToken) -> Self {
        use mesh_config::names::control_plane::{IDENTITY, POLICY, TCS};
        let channel = |address, name: &str| {
            let expected = mesh_config::names::ServiceName::try_from(name).expect("a constant of the right form");
            grpc::channel(address, identity, &expected)
        };
        Self {
            config,
            instance,
            shutdown: shutdown.clone(),
            identity: channel(config.identity, IDENTITY),
            tcs: config.tcs.iter().map(|tcs| Named::new(tcs.to_string(), channel(tcs.address, TCS))).collect(),
            policy: config.policy.iter().map(|policy| channel(policy.address, POLICY)).collect(),
        }
    }

    fn follow(&self, kind: &'static str, parents: &[Channel]) -> Follow {
        Follow {
            kind,
            instance: self.instance.to_owned(),
            parents: parents.to_vec(),
            state_dir: Some(self.config.state_dir.clone()),
        }
    }

    fn tenants(&self, tasks: &mut Vec<JoinHandle<()>>) -> TenantMap {
        let (kind, instance, parents) = (kind::TENANT, self.instance.to_owned(), self.tcs.clone());
        let state_dir = Some(self.config.state_dir.clone());
        match self.config.tenants {
            HeldTenants::Full => {
                let follow = Follow { kind, instance, parents, state_dir };
                let (replica, task) = follow.start(|_| {}, self.shutdown.clone());
                tasks.push(task);
                TenantMap::Full(replica)
            }
            HeldTenants::OnDemand { cache_bytes: capacity } => {
                let follow = FollowOnDemand { kind, instance, parents, state_dir, capacity };
                let (cache, task) = follow.start(self.shutdown.clone());
                tasks.push(task);
                TenantMap::OnDemand(cache)
            }
        }
    }

    /// Refuses what this very sidecar cannot use.
    fn allowlist(&self, tasks: &mut Vec<JoinHandle<()>>) -> Replica<PolicyRecord> {
        let (instance, keys) = (self.instance.to_owned(), self.config.require_signed.clone());
        let accept = move |record: &PolicyRecord| {
            if !keys.is_empty() {
                policy_record::signed(record.key(), record.raw(), &instance, &keys)?;
            }
            record.accept(&instance)
        };
        let follow = self.follow(kind::ALLOWLIST, &self.policy);
        let (replica, task) = follow.start_accepting(accept, |_| {}, self.shutdown.clone());
        tasks.push(task);
        replica
    }

    fn policy<V: replica::Value>(&self, kind: &'static str, tasks: &mut Vec<JoinHandle<()>>) -> Replica<V> {
        self.start(self.follow(kind, &self.policy), tasks)
    }

    fn identity<V: replica::Value>(&self, kind: &'static str, tasks: &mut Vec<JoinHandle<()>>) -> Replica<V> {
        self.start(self.follow(kind, std::slice::from_ref(&self.identity)), tasks)
    }

    /// Trust bundle and revocations go straight to TLS.
    fn trust(&self, identity: &Arc<Identity>, tasks: &mut Vec<JoinHandle<()>>) -> Trust {
        let roots = match self.config.svid_from {
            SvidFrom::IdentityService { .. } => Roots::Replicated,
            SvidFrom::WorkloadApi(_) => Roots::Elsewhere,
        };
        let Follow { instance, parents, state_dir, .. } =
            self.follow(kind::TRUST_BUNDLE, std::slice::from_ref(&self.identity));
        let (trust, following) =
            Trust::follow(FollowTrust { parents, instance, state_dir, roots }, identity, &self.shutdown);
        tasks.extend(following);
        trust
    }

    fn start<V: replica::Value>(&self, follow: Follow, tasks: &mut Vec<JoinHandle<()>>) -> Replica<V> {
        let (replica, task) = follow.start(|_| {}, self.shutdown.clone());
        tasks.push(task);
        replica
    }
}

/// How long a call waits for the replica to reach the revision its caller saw (DESIGN §3, freshness).
pub const FRESHNESS_WAIT: Duration = Duration::from_millis(250);
