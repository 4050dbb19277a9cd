//! The replica of one sidecar of `media`, with a million tenants, in a process of its own: what it costs, what a look-up
//! costs, and the same look-ups in `moka` and in Redis.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use mesh_identity::{Identity, grpc, testing};
use replica::{Follow, Replica};
use serde_json::{Value, json};
use tenon_proto::kind;
use tenon_sidecar::tenants::Record;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use crate::{
    child::{answer, next_order, resident},
    dataset,
    looker::{Keys, Watch, timed},
    report::latency,
};

/// Keys of one series of look-ups.
const KEYS: usize = 1 << 20;
const SERIES: Duration = Duration::from_secs(2);

/// What it is told on its command line.
pub struct Arguments {
    pub tcs: SocketAddr,
    pub identity: Arc<Identity>,
    pub state_dir: PathBuf,
    pub tenants: u64,
}

struct Sidecar {
    arguments: Arguments,
    /// As the main thread of a sidecar: one thread for all that is not a call.
    runtime: Runtime,
    following: Option<(Replica<Record>, tokio::task::JoinHandle<()>, CancellationToken)>,
}

/// Does what it is told until the parent has gone.
pub fn run(arguments: Arguments) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let mut sidecar = Sidecar { arguments, runtime, following: None };
    while let Some(order) = next_order() {
        let done = match order["do"].as_str().context("an order")? {
            "follow" => sidecar.follow()?,
            "lookups" => sidecar.lookups()?,
            "under changes" => sidecar.present()?,
            "resync" => sidecar.resync()?,
            "end" => sidecar.end()?,
            "moka" => sidecar.moka()?,
            "redis" => sidecar.redis(&order)?,
            other => anyhow::bail!("no such order: {other}"),
        };
        answer(&done);
    }
    Ok(())
}

impl Sidecar {
    fn replica(&self) -> anyhow::Result<Replica<Record>> {
        Ok(self.following.as_ref().context("it follows")?.0.clone())
    }

    fn keys(&self, key: impl Fn(u64) -> String) -> Keys {
        Keys::of(self.arguments.tenants, KEYS, key)
    }

    /// Starts to follow, from disk when there is something, and waits until it holds all tenants.
    fn follow(&mut self) -> anyhow::Result<Value> {
        let _inside = self.runtime.enter();
        let before = resident(std::process::id())?;
        let channel = grpc::channel(self.arguments.tcs, &self.arguments.identity, &testing::service("tenon-tcs"));
        let follow = Follow {
            kind: kind::TENANT,
            instance: "bench".to_owned(),
            parents: vec![channel],
            state_dir: Some(self.arguments.state_dir.clone()),
        };
        let shutdown = CancellationToken::new();
        let began = Instant::now();
        let (replica, task) = follow.start::<Record>(|_| {}, shutdown.clone());
        let loaded = began.elapsed();
        let from_disk = replica.position().is_some();
        self.runtime.block_on(async {
            // The records of an import arrive in their order: the first position may be in the middle of it.
            let mut positions = replica.subscribe();
            let all = |held: u64| held >= self.arguments.tenants;
            let _ = positions.wait_for(|held| held.is_some() && all(replica.status().records as u64)).await;
        });
        let complete = began.elapsed();
        let records = replica.status().records;
        self.following = Some((replica, task, shutdown));
        jemalloc_epoch();
        Ok(json!({
            "from_disk": from_disk,
            "load_s": loaded.as_secs_f64(),
            "complete_s": complete.as_secs_f64(),
            "records": records,
            "rss": resident(std::process::id())?,
            "rss_before": before,
            "allocated": tikv_jemalloc_ctl::stats::allocated::read().unwrap_or_default(),
        }))
    }

    fn lookups(&self) -> anyhow::Result<Value> {
        let replica = self.replica()?;
        Ok(json!({
            "present": timed(&self.keys(dataset::id), SERIES, |key| replica.get(key).is_some()),
            "absent": timed(&self.keys(|number| dataset::id(number + (1 << 40))), SERIES, |key| replica.get(key).is_some()),
            "by_host": timed(&self.keys(dataset::host), SERIES, |key| replica.by_alias(key).is_some()),
        }))
    }

    fn present(&self) -> anyhow::Result<Value> {
        let replica = self.replica()?;
        Ok(json!({
            "present": timed(&self.keys(dataset::id), SERIES * 2, |key| replica.get(key).is_some()),
            "absent": timed(&self.keys(|number| dataset::id(number + (1 << 40))), SERIES * 2, |key| replica.get(key).is_some()),
        }))
    }

    /// Looks up while everything that is held is replaced, which the parent has the TCS do now.
    fn resync(&self) -> anyhow::Result<Value> {
        let replica = self.replica()?;
        let (snapshots, reader) = (replica.status().snapshots, replica.clone());
        let watch = Watch::start(self.keys(dataset::id), move |key| reader.get(key).is_some());
        answer(&json!({"watching": true}));
        let began = Instant::now();
        while replica.status().snapshots == snapshots {
            anyhow::ensure!(began.elapsed() < Duration::from_secs(120), "no snapshot came within 2 min");
            std::thread::park_timeout(Duration::from_millis(10));
        }
        let took = began.elapsed();
        // What is replaced is dropped after the snapshot is taken over.
        std::thread::park_timeout(Duration::from_secs(2));
        let mut figures = latency(&watch.stop());
        figures["resync_s"] = took.as_secs_f64().into();
        figures["rss"] = resident(std::process::id())?.into();
        Ok(figures)
    }

    /// Stops following; its state goes to disk.
    fn end(&mut self) -> anyhow::Result<Value> {
        let (_, task, shutdown) = self.following.take().context("it follows")?;
        let began = Instant::now();
        shutdown.cancel();
        self.runtime.block_on(task)?;
        let file = self.arguments.state_dir.join(format!("{}.state", kind::TENANT));
        Ok(json!({"save_s": began.elapsed().as_secs_f64(), "state_bytes": file.metadata()?.len()}))
    }

    /// The same content in the best-known cache of the language.
    fn moka(&self) -> anyhow::Result<Value> {
        let replica = self.replica()?;
        let cache = moka::sync::Cache::new(self.arguments.tenants + 1);
        for number in 0..self.arguments.tenants {
            let id = dataset::id(number);
            let record = replica.get(&id).context("every tenant is held")?;
            cache.insert(id, record);
        }
        cache.run_pending_tasks();
        Ok(json!({
            "present": timed(&self.keys(dataset::id), SERIES, |key| cache.get(key).is_some()),
            "absent": timed(&self.keys(|number| dataset::id(number + (1 << 40))), SERIES, |key| cache.get(key).is_some()),
        }))
    }

    /// The same content in Redis, over loopback.
    fn redis(&self, order: &Value) -> anyhow::Result<Value> {
        use replica::Value as _;

        let replica = self.replica()?;
        let url = order["url"].as_str().context("a URL")?;
        let mut connection = redis::Client::open(url)?.get_connection()?;
        for from in (0..self.arguments.tenants).step_by(10_000) {
            let mut batch = redis::pipe();
            for number in from..(from + 10_000).min(self.arguments.tenants) {
                let id = dataset::id(number);
                let record = replica.get(&id).context("every tenant is held")?;
                batch.set(id, record.raw()).ignore();
            }
            batch.query::<()>(&mut connection)?;
        }
        let mut get = |key: &str| {
            let found: redis::RedisResult<Option<Vec<u8>>> = redis::cmd("GET").arg(key).query(&mut connection);
            found.expect("redis answers").is_some()
        };
        let keys = self.keys(dataset::id);
        let mut times = crate::report::histogram();
        let began = Instant::now();
        let mut step = 0;
        while began.elapsed() < SERIES {
            let key = keys.read(step);
            let before = Instant::now();
            assert!(get(key), "every tenant is in Redis");
            times.saturating_record(u64::try_from(before.elapsed().as_nanos()).unwrap_or(u64::MAX));
            step += 1;
        }
        let mut figures = latency(&times);
        figures["per_second"] = (f64::from(u32::try_from(step)?) / began.elapsed().as_secs_f64()).into();
        Ok(json!({"get": figures}))
    }
}

/// Has jemalloc count anew.
fn jemalloc_epoch() {
    let _ = tikv_jemalloc_ctl::epoch::advance();
}
