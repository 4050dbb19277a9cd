//! Steady changes of tenants, and look-ups of them by apps, while something else happens to the mesh.
//!
//! Tenants are changed in pairs, both by one write, each time with a number that was never used before: so a write that was
//! lost, half made, or undone is seen in what a look-up says.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use mesh_config::names::{ServiceName, control_plane};
use mesh_identity::{Identity, grpc};
use tenon_proto::tcs::v1::{
    BatchGetTenantContextsRequest, BatchGetTenantContextsResponse, ImportRequest, Product, Revision, Shard,
    TenantContext, TenantKey, product, tenant_context, tenant_contexts_client::TenantContextsClient, tenant_key::By,
    tenants_client::TenantsClient,
};
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status, transport::Channel};

use crate::calls::channel;

/// The authority of the look-up API of a sidecar.
pub const LOOKUP: &str = "tcs.mesh";
/// Which setting of a tenant has the number of its last change.
const NUMBER: &str = "number";
/// How long a write may take before it is given up, its outcome unknown. Less than what a process takes to notice that
/// the other end of a connection is silent.
const WRITE: Duration = Duration::from_secs(2);
/// Before a write that failed is tried again.
const PAUSE: Duration = Duration::from_millis(100);

/// A channel for an operator to one TCS.
#[must_use]
pub fn operator(tcs: SocketAddr, identity: &Arc<Identity>) -> TenantsClient<Channel> {
    let name = ServiceName::try_from(control_plane::TCS).expect("a constant that is a service name");
    TenantsClient::new(grpc::channel(tcs, identity, &name))
}

/// The ids of `count` pairs of tenants.
#[must_use]
pub fn pairs(count: usize) -> Vec<[String; 2]> {
    (0..count).map(|number| ["a", "b"].map(|half| format!("pair-{number:02}-{half}"))).collect()
}

/// A tenant with this number, whom every product of the demo serves in us-east.
#[must_use]
pub fn tenant(id: &str, number: u64) -> TenantContext {
    let shard = Shard { cluster: "c1".into(), database: "d1".into(), schema: "s1".into() };
    let product = Product { state: product::State::Active.into(), shard: Some(shard), ..Product::default() };
    TenantContext {
        tenant_id: id.into(),
        status: tenant_context::Status::Active.into(),
        hosts: vec![format!("{id}.example.com")],
        region: "us-east".into(),
        products: ["issues", "media", "wiki"].map(|name| (name.to_owned(), product.clone())).into(),
        settings: [(NUMBER.to_owned(), number.to_string())].into(),
        ..TenantContext::default()
    }
}

fn number(tenant: &TenantContext) -> anyhow::Result<u64> {
    let number = tenant.settings.get(NUMBER).with_context(|| format!("{} has no number", tenant.tenant_id))?;
    Ok(number.parse()?)
}

/// Writes all of them at once.
///
/// # Errors
/// What the TCS says; or nothing, in time.
pub async fn write(client: &mut TenantsClient<Channel>, tenants: Vec<TenantContext>) -> Result<(u64, u64), Status> {
    write_within(client, tenants, WRITE).await
}

/// As [`write`], with another deadline.
///
/// # Errors
/// As [`write`].
pub async fn write_within(
    client: &mut TenantsClient<Channel>,
    tenants: Vec<TenantContext>,
    deadline: Duration,
) -> Result<(u64, u64), Status> {
    let request = tokio_stream::once(ImportRequest { tenants });
    let mut request = Request::new(request);
    request.set_timeout(deadline);
    let answer = client.import(request).await?.into_inner();
    Ok((answer.epoch, answer.revision))
}

/// What is known of the writes that were made.
#[derive(Debug, Default)]
pub struct Written {
    /// Revision of the last acknowledged write of each tenant, and its number.
    acknowledged: HashMap<String, ((u64, u64), u64)>,
    /// Numbers of the writes of each tenant that may have been made.
    unknown: HashMap<String, Vec<u64>>,
    /// The revision that any write has come to.
    last: (u64, u64),
    /// What was answered to writes that were not made, and how often.
    pub failed: BTreeMap<String, u64>,
}

impl Written {
    /// The newest revision that was acknowledged.
    #[must_use]
    pub fn last(&self) -> (u64, u64) {
        self.last
    }

    fn acknowledge(&mut self, pair: &[String; 2], revision: (u64, u64), number: u64) {
        self.last = self.last.max(revision);
        for id in pair {
            let known = self.acknowledged.entry(id.clone()).or_insert((revision, number));
            *known = (*known).max((revision, number));
        }
    }

    /// Compares with what somebody has in the end: every acknowledged write is there, or a later one; no pair is half one
    /// write and half another.
    ///
    /// # Errors
    /// It is not so.
    pub fn check(&self, who: &str, tenants: &[TenantContext]) -> anyhow::Result<()> {
        let held: HashMap<&str, &TenantContext> = tenants.iter().map(|t| (t.tenant_id.as_str(), t)).collect();
        for (id, ((_, revision), number_written)) in &self.acknowledged {
            let tenant = held.get(id.as_str()).with_context(|| format!("{who} has no tenant {id}"))?;
            let number = number(tenant)?;
            let unknown = self.unknown.get(id).is_some_and(|unknown| unknown.contains(&number));
            ensure!(
                number == *number_written || unknown,
                "{who} has {id} at number {number}, and {number_written} was acknowledged last"
            );
            ensure!(tenant.revision + 1 >= *revision, "{who} has {id} at revision {}, not {revision}", tenant.revision);
            let other = id.strip_suffix("-a").map(|id| format!("{id}-b"));
            if let Some(other) = other.and_then(|other| held.get(other.as_str()).copied()) {
                ensure!(self::number(other)? == number, "{who} has one half of a write of {id} alone");
            }
        }
        Ok(())
    }
}

/// Writers that change tenants from now on.
pub struct Changes {
    stop: CancellationToken,
    writers: JoinSet<()>,
    written: Arc<Mutex<Written>>,
    made: Arc<AtomicU64>,
}

impl Changes {
    /// Each writer changes one pair after the other, `per_second` in all. A write that fails is tried again until it is
    /// acknowledged, as a provisioning system does.
    #[must_use]
    pub fn start(writers: Vec<TenantsClient<Channel>>, pairs: &[[String; 2]], per_second: u32) -> Self {
        let (stop, written) = (CancellationToken::new(), Arc::new(Mutex::new(Written::default())));
        let (made, numbers) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(1)));
        let mut tasks = JoinSet::new();
        let every = Duration::from_secs(1) * u32::try_from(writers.len()).unwrap_or(1) / per_second;
        for client in writers {
            let one = Writer {
                client,
                pairs: pairs.to_vec(),
                numbers: Arc::clone(&numbers),
                written: Arc::clone(&written),
                made: Arc::clone(&made),
            };
            tasks.spawn(one.run(every, stop.clone()));
        }
        Self { stop, writers: tasks, written, made }
    }

    /// Writes that were acknowledged so far.
    #[must_use]
    pub fn made(&self) -> u64 {
        self.made.load(Ordering::Relaxed)
    }

    /// The newest revision that was acknowledged.
    #[must_use]
    pub fn last(&self) -> (u64, u64) {
        lock(&self.written).last
    }

    /// What may be asked while they go on.
    #[must_use]
    pub fn watch(&self) -> Acknowledged {
        Acknowledged(Arc::clone(&self.written))
    }

    /// Ends them when the writes under way have ended.
    pub async fn stop(self) -> Written {
        self.stop.cancel();
        self.writers.join_all().await;
        std::mem::take(&mut *lock(&self.written))
    }
}

/// The newest revision that was acknowledged.
#[derive(Clone)]
pub struct Acknowledged(Arc<Mutex<Written>>);

impl Acknowledged {
    fn last(&self) -> (u64, u64) {
        lock(&self.0).last
    }
}

fn lock(written: &Mutex<Written>) -> std::sync::MutexGuard<'_, Written> {
    written.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Writer {
    client: TenantsClient<Channel>,
    pairs: Vec<[String; 2]>,
    numbers: Arc<AtomicU64>,
    written: Arc<Mutex<Written>>,
    made: Arc<AtomicU64>,
}

impl Writer {
    async fn run(mut self, every: Duration, stop: CancellationToken) {
        let mut tick = interval(every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for pair in self.pairs.clone().iter().cycle() {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = tick.tick() => {}
            }
            while !self.change(pair).await {
                if stop.is_cancelled() {
                    return;
                }
                sleep(PAUSE).await;
            }
        }
    }

    async fn change(&mut self, pair: &[String; 2]) -> bool {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let tenants = pair.iter().map(|id| tenant(id, number)).collect();
        // Before it is sent: an answer may never come.
        for id in pair {
            lock(&self.written).unknown.entry(id.clone()).or_default().push(number);
        }
        let outcome = write(&mut self.client, tenants).await;
        let mut written = lock(&self.written);
        match outcome {
            Ok(revision) => {
                written.acknowledge(pair, revision, number);
                for id in pair {
                    written.unknown.entry(id.clone()).or_default().retain(|other| *other != number);
                }
                self.made.fetch_add(1, Ordering::Relaxed);
                true
            }
            Err(status) => {
                *written.failed.entry(format!("{:?}: {}", status.code(), status.message())).or_default() += 1;
                false
            }
        }
    }
}

/// Apps that look tenants up in their sidecars from now on.
pub struct LookUps {
    stop: CancellationToken,
    apps: JoinSet<Looked>,
    made: Arc<AtomicU64>,
}

/// What came of the look-ups.
#[derive(Debug, Default)]
pub struct Looked {
    /// All of them.
    pub made: u64,
    /// Those that asked for a revision which the sidecar had not reached in time, and said so.
    pub not_yet: u64,
    /// What went wrong with the others: errors, missing tenants, answers that were older than one before or than what was
    /// asked for.
    pub wrong: Vec<String>,
}

impl LookUps {
    /// At each of these outbound listeners, `per_second` in all. Every second look-up asks for the newest acknowledged
    /// revision.
    ///
    /// # Errors
    /// A sidecar does not answer.
    pub async fn start(
        outbound: &[SocketAddr],
        pairs: &[[String; 2]],
        per_second: u32,
        newest: &Acknowledged,
    ) -> anyhow::Result<Self> {
        let (stop, made) = (CancellationToken::new(), Arc::new(AtomicU64::new(0)));
        let mut apps = JoinSet::new();
        let every = Duration::from_secs(1) * u32::try_from(outbound.len())? / per_second;
        for address in outbound {
            let client = TenantContextsClient::new(channel(*address, LOOKUP).await?);
            let app = App {
                address: *address,
                client,
                newest: newest.clone(),
                seen: HashMap::new(),
                so_far: Looked::default(),
            };
            apps.spawn(app.run(pairs.to_vec(), every, Arc::clone(&made), stop.clone()));
        }
        Ok(Self { stop, apps, made })
    }

    /// Look-ups that have ended so far.
    #[must_use]
    pub fn made(&self) -> u64 {
        self.made.load(Ordering::Relaxed)
    }

    /// Ends them when those under way have ended.
    pub async fn stop(self) -> Looked {
        self.stop.cancel();
        let mut all = Looked::default();
        for one in self.apps.join_all().await {
            all.made += one.made;
            all.not_yet += one.not_yet;
            all.wrong.extend(one.wrong);
        }
        all
    }
}

struct App {
    address: SocketAddr,
    client: TenantContextsClient<Channel>,
    newest: Acknowledged,
    /// The newest revision that each tenant was seen at, and where the replica was.
    seen: HashMap<String, (u64, u64)>,
    so_far: Looked,
}

impl App {
    async fn run(
        mut self,
        pairs: Vec<[String; 2]>,
        every: Duration,
        made: Arc<AtomicU64>,
        stop: CancellationToken,
    ) -> Looked {
        let mut tick = interval(every);
        for (pair, fresh) in pairs.iter().cycle().zip([false, true].into_iter().cycle()) {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = tick.tick() => {}
            }
            let at_least = if fresh { self.newest.last() } else { (0, 0) };
            match look_up(&mut self.client, pair, at_least).await {
                Ok(answer) => {
                    if let Err(error) = self.judge(pair, at_least, &answer) {
                        self.so_far.wrong.push(format!("{}: {error}", self.address));
                    }
                }
                Err(status) if fresh && status.code() == Code::Unavailable => self.so_far.not_yet += 1,
                Err(status) => self.so_far.wrong.push(format!("{}: {status}", self.address)),
            }
            self.so_far.made += 1;
            made.fetch_add(1, Ordering::Relaxed);
        }
        self.so_far
    }

    fn judge(
        &mut self,
        pair: &[String; 2],
        at_least: (u64, u64),
        answer: &BatchGetTenantContextsResponse,
    ) -> anyhow::Result<()> {
        let replica = position(answer);
        ensure!(replica >= at_least, "asked for {at_least:?}, and answered at {replica:?}");
        ensure!(answer.results.len() == pair.len(), "{} answers", answer.results.len());
        for (id, result) in pair.iter().zip(&answer.results) {
            let tenant = result.tenant.as_ref().with_context(|| format!("no tenant {id} at {replica:?}"))?;
            let now = (replica.0, tenant.revision);
            let before = self.seen.entry(id.clone()).or_insert(now);
            ensure!(*before <= now, "{id} was at {before:?}, and is at {now:?} now");
            *before = now;
        }
        Ok(())
    }
}

fn position(answer: &BatchGetTenantContextsResponse) -> (u64, u64) {
    answer.replica.as_ref().map_or((0, 0), |replica| (replica.epoch, replica.revision))
}

/// How many of these tenants a sidecar knows of.
///
/// # Errors
/// It does not answer.
pub async fn known(outbound: SocketAddr, ids: &[String], reached: (u64, u64)) -> anyhow::Result<usize> {
    let mut client = TenantContextsClient::new(channel(outbound, LOOKUP).await?);
    let answer = look_up(&mut client, ids, reached).await?;
    Ok(answer.results.iter().filter(|result| result.tenant.is_some()).count())
}

async fn look_up(
    client: &mut TenantContextsClient<Channel>,
    ids: &[String],
    (epoch, revision): (u64, u64),
) -> Result<BatchGetTenantContextsResponse, Status> {
    let keys = ids.iter().map(|id| TenantKey { by: Some(By::TenantId(id.clone())) }).collect();
    let at_least = (epoch > 0).then_some(Revision { epoch, revision });
    Ok(client.batch_get(BatchGetTenantContextsRequest { keys, at_least }).await?.into_inner())
}

/// What a sidecar says of these tenants, once it has reached `position`.
///
/// # Errors
/// It does not reach it in time, or a tenant is missing.
pub async fn held(
    outbound: SocketAddr,
    pairs: &[[String; 2]],
    reached: (u64, u64),
    within: Duration,
) -> anyhow::Result<Vec<TenantContext>> {
    let ids = pairs.concat();
    let mut client = TenantContextsClient::new(channel(outbound, LOOKUP).await?);
    let end = Instant::now() + within;
    loop {
        let why = match look_up(&mut client, &ids, reached).await {
            Ok(answer) => {
                let found = ids.iter().zip(answer.results);
                let found = found.map(|(id, result)| result.tenant.with_context(|| format!("{outbound} has no {id}")));
                return found.collect();
            }
            Err(status) => status.message().to_owned(),
        };
        ensure!(Instant::now() < end, "{outbound} has not reached {reached:?} within {within:?}: {why}");
        sleep(Duration::from_millis(20)).await;
    }
}
