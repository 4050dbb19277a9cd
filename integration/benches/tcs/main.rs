//! The TCS at scale (`make bench-tcs`): a million tenants in one sidecar's replica, 10,800 followers, one TCS.
//!
//! Each part is a process of its own on the same machine, over mTLS on loopback: the TCS with its embedded store, the replica
//! of one sidecar, and a process with all other followers. Prints a table and writes JSON; exits 1 when a bar is missed.
//! `TENON_BENCH_TENANTS` and `TENON_BENCH_FOLLOWERS` make it smaller for a try.

mod dataset;
mod followers;
mod looker;
mod server;
mod sidecar;

use std::{
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use integration::bench::{
    child::{self, Part, resident},
    report::{self, Report},
};
use mesh_identity::{grpc, testing, testing::Ca};
use serde_json::{Value, json};
use tenon_proto::tcs::v1::{GetRequest, ImportRequest, TenantContext, get_request::By, tenants_client::TenantsClient};
use tonic::transport::Channel;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const DOMAIN: &str = "bench.example";
/// Tenants in one message of an import.
const IMPORT_BATCH: u64 = 500;
/// How often changes are written, whatever their rate.
const TICK: Duration = Duration::from_millis(10);

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        [] => {}
        ["tcs", ca, listen, policy, dir] => {
            return server::run(&read_ca(ca)?, listen.parse()?, policy.parse()?, Path::new(dir));
        }
        ["sidecar", ca, tcs, state_dir, tenants] => {
            return sidecar::run(sidecar::Arguments {
                tcs: tcs.parse()?,
                identity: read_ca(ca)?.identity("media"),
                state_dir: state_dir.into(),
                tenants: tenants.parse()?,
            });
        }
        ["followers", ca, tcs] => return followers::run(tcs.parse()?, &read_ca(ca)?.identity("media")),
        _ => bail!("takes no arguments: see TENON_BENCH_TENANTS and TENON_BENCH_FOLLOWERS"),
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    if !runtime.block_on(all())? {
        std::process::exit(1);
    }
    Ok(())
}

/// The benchmark's root of trust, as all parts read it.
fn read_ca(dir: &str) -> anyhow::Result<Ca> {
    let root = std::fs::read(Path::new(dir).join("root.der"))?;
    let key = std::fs::read_to_string(Path::new(dir).join("root.key"))?;
    Ok(Ca::from_parts(DOMAIN, root.into(), &key))
}

fn sized(variable: &str, usual: u64) -> anyhow::Result<u64> {
    match std::env::var(variable) {
        Ok(text) => text.parse().with_context(|| format!("{variable} is not a number")),
        Err(_) => Ok(usual),
    }
}

/// What all phases share.
struct Bench {
    report: Report,
    dir: tempfile::TempDir,
    policy: server::Policy,
    tcs: SocketAddr,
    /// The TCS of now.
    serving: Child,
    operator: Channel,
    tenants: u64,
    followers: u64,
}

async fn all() -> anyhow::Result<bool> {
    let mut bench = Bench::start().await?;
    bench.import().await?;
    bench.sidecar().await?;
    bench.propagation().await?;
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/bench-tcs.json");
    let report = std::mem::take(&mut bench.report);
    drop(bench);
    report.finish(&file)
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = self.serving.kill();
        let _ = self.serving.wait();
    }
}

impl Bench {
    async fn start() -> anyhow::Result<Self> {
        let (tenants, followers) = (sized("TENON_BENCH_TENANTS", 1_000_000)?, sized("TENON_BENCH_FOLLOWERS", 10_800)?);
        let dir = tempfile::tempdir()?;
        let ca = Ca::new(DOMAIN);
        std::fs::write(dir.path().join("root.der"), ca.root())?;
        std::fs::write(dir.path().join("root.key"), ca.key_pem())?;
        let policy = server::Policy::start(&ca, dir.path()).await?;
        let tcs = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let serving = serve(dir.path(), tcs, policy.address)?;
        let operator = grpc::channel(tcs, &ca.operator_identity("ada"), &testing::service("tenon-tcs"));
        let mut report = Report::default();
        let (whole, seen) = dataset::sizes(0);
        report.figure("tenants", json!(tenants), tenants.to_string());
        report.figure("record_bytes", json!(whole), format!("{whole} B whole, {seen} B as a sidecar sees it"));
        let bench = Self { report, dir, policy, tcs, serving, operator, tenants, followers };
        bench.up(None).await?;
        Ok(bench)
    }

    /// Until the TCS answers, and has `tenant` when one is named.
    async fn up(&self, tenant: Option<u64>) -> anyhow::Result<()> {
        let began = Instant::now();
        loop {
            let id = dataset::id(tenant.unwrap_or(u64::MAX));
            let request = GetRequest { by: Some(By::TenantId(id)), at_least: None };
            match TenantsClient::new(self.operator.clone()).get(request).await {
                Ok(_) => return Ok(()),
                Err(status) if tenant.is_none() && status.code() == tonic::Code::NotFound => return Ok(()),
                Err(status) if began.elapsed() > Duration::from_secs(60) => bail!("the TCS does not answer: {status}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    async fn write(&self, tenants: Vec<TenantContext>) -> anyhow::Result<()> {
        let request = tokio_stream::iter([ImportRequest { tenants }]);
        TenantsClient::new(self.operator.clone()).import(request).await?;
        Ok(())
    }

    /// Imports all tenants at once, as an operator does.
    async fn import(&mut self) -> anyhow::Result<()> {
        eprintln!("importing {} tenants", self.tenants);
        let all = self.tenants;
        let batches = (0..all).step_by(usize::try_from(IMPORT_BATCH)?).map(move |from| ImportRequest {
            tenants: (from..(from + IMPORT_BATCH).min(all)).map(|number| dataset::tenant(number, 0)).collect(),
        });
        let began = Instant::now();
        TenantsClient::new(self.operator.clone()).import(tokio_stream::iter(batches)).await?;
        let took = began.elapsed().as_secs_f64();
        let rate = f64::from(u32::try_from(all)?) / took;
        self.report.figure("import_per_second", json!(rate), format!("{rate:.0} tenants/s, {took:.1} s in all"));
        let rss = resident(self.serving.id())?;
        self.report.figure("tcs_rss_after_import", json!(rss), megabytes(rss));
        Ok(())
    }

    /// Everything about the replica of one sidecar.
    async fn sidecar(&mut self) -> anyhow::Result<()> {
        eprintln!("one sidecar follows");
        let state_dir = self.dir.path().join("sidecar");
        let (ca, state_dir) = (self.dir.path().display().to_string(), state_dir.display().to_string());
        let (tcs, tenants) = (self.tcs.to_string(), self.tenants.to_string());
        let arguments = [ca.as_str(), &tcs, &state_dir, &tenants];
        let mut part = Part::start("sidecar", &arguments)?;
        let followed = ask(&mut part, &json!({"do": "follow"}))?;
        anyhow::ensure!(followed["records"] == self.tenants, "the replica holds {}", followed["records"]);
        let transfer = followed["complete_s"].as_f64().context("a time")?;
        self.report.figure("snapshot_transfer_s", json!(transfer), format!("{transfer:.2} s"));
        self.memory(&followed);

        let idle = ask(&mut part, &json!({"do": "lookups"}))?;
        for kind in ["present", "absent", "by_host"] {
            self.report.times(&format!("lookup_{kind}"), &idle[kind]);
        }
        part.order(&json!({"do": "under changes"}))?;
        let changing = self.changes(1000, Duration::from_secs(9), 100_000).await?;
        let busy = part.answer()?;
        self.report.figure("changes_per_second_meanwhile", json!(changing), format!("{changing:.0}"));
        self.bars("lookup_present_changing", &busy["present"]);
        self.bars("lookup_absent_changing", &busy["absent"]);

        eprintln!("everything that the sidecar sees changes");
        part.ask(&json!({"do": "resync"}))?;
        self.policy.product("media", "wiki").await?;
        let resync = tokio::task::block_in_place(|| part.answer())?;
        self.report.bar("resync_longest_stall", number(&resync["max_us"]) / 1000.0, 12.0, "ms");
        self.report.times("lookup_while_resyncing", &resync);
        self.report.seconds("resync_s", &resync["resync_s"]);
        self.report.bytes("sidecar_replica_rss_after_resync", &resync["rss"]);

        let ended = ask(&mut part, &json!({"do": "end"}))?;
        self.report.bytes("state_file", &ended["state_bytes"]);
        self.report.seconds("state_last_save_s", &ended["save_s"]);
        drop(part);

        eprintln!("it starts from disk");
        let mut part = Part::start("sidecar", &arguments)?;
        let started = ask(&mut part, &json!({"do": "follow"}))?;
        anyhow::ensure!(started["from_disk"] == true, "it did not start from disk");
        self.report.bar("start_from_disk", number(&started["load_s"]), 1.0, "s");
        self.report.bytes("sidecar_replica_rss_from_disk", &started["rss"]);

        eprintln!("the same in moka and in Redis");
        let moka = ask(&mut part, &json!({"do": "moka"}))?;
        self.report.times("moka_present", &moka["present"]);
        self.report.times("moka_absent", &moka["absent"]);
        let redis = Redis::start(self.dir.path())?;
        let got = ask(&mut part, &json!({"do": "redis", "url": redis.url}))?;
        self.report.times("redis_get", &got["get"]);
        self.policy.product("media", dataset::PRODUCT).await?;
        Ok(())
    }

    /// Times, and the bars of a look-up.
    fn bars(&mut self, prefix: &str, figures: &Value) {
        self.report.times(prefix, figures);
        self.report.bar(&format!("{prefix}_p50"), number(&figures["p50_us"]), 1.0, "µs");
        self.report.bar(&format!("{prefix}_p99"), number(&figures["p99_us"]), 10.0, "µs");
    }

    fn memory(&mut self, followed: &Value) {
        let (allocated, rss) = (number(&followed["allocated"]), number(&followed["rss"]));
        let records = f64::from(u32::try_from(self.tenants).unwrap_or(u32::MAX));
        let (_, seen) = dataset::sizes(0);
        let above = allocated / records - f64::from(u32::try_from(seen).unwrap_or(u32::MAX));
        self.report.bar("bytes_per_tenant_above_record", above, 250.0, "B");
        self.report.figure("sidecar_replica_rss", json!(rss), format!("{:.0} MB", rss / 1e6));
        self.report.figure("sidecar_replica_allocated", json!(allocated), format!("{:.0} MB", allocated / 1e6));
    }

    /// Writes `per_second` changes a second for `time`, each of one of `among` tenants. Returns the rate that was reached.
    async fn changes(&self, per_second: u64, time: Duration, among: u64) -> anyhow::Result<f64> {
        let among = among.min(self.tenants);
        let began = Instant::now();
        let mut ticks = tokio::time::interval(if per_second >= 100 {
            TICK
        } else {
            Duration::from_secs(1) / u32::try_from(per_second)?
        });
        let mut written = 0_u64;
        let mut next = 0_u64;
        while began.elapsed() < time {
            ticks.tick().await;
            let due = (u64::try_from(began.elapsed().as_millis())? * per_second / 1000).saturating_sub(written).max(1);
            let stamp = format!("{}{}", followers::WRITTEN, followers::micros());
            let batch = (0..due.min(per_second)).map(|_| {
                next += 7919;
                let mut tenant = dataset::tenant(next % among, 1);
                tenant.settings.insert("note".to_owned(), stamp.clone());
                (tenant.tenant_id.clone(), tenant)
            });
            let batch: std::collections::BTreeMap<_, _> = batch.collect();
            written += batch.len() as u64;
            self.write(batch.into_values().collect()).await?;
        }
        Ok(f64::from(u32::try_from(written)?) / began.elapsed().as_secs_f64())
    }

    async fn propagation(&mut self) -> anyhow::Result<()> {
        eprintln!("{} followers", self.followers);
        let before = resident(self.serving.id())?;
        let (ca, tcs) = (self.dir.path().display().to_string(), self.tcs.to_string());
        let mut part = Part::start("followers", &[&ca, &tcs])?;
        let connected = ask(&mut part, &json!({"do": "connect", "followers": self.followers}))?;
        self.report.seconds("followers_connect_s", &connected["seconds"]);
        let each = (number(&json!(resident(self.serving.id())?)) - number(&json!(before)))
            / f64::from(u32::try_from(self.followers)?);
        self.report.figure("tcs_bytes_per_follower", json!(each), format!("{:.1} kB", each / 1000.0));

        for (rate, seconds) in [(10, 10), (1000, 10)] {
            eprintln!("{rate} changes/s to {} followers", self.followers);
            ask(&mut part, &json!({"do": "measure"}))?;
            let reached = self.changes(rate, Duration::from_secs(seconds), self.tenants).await?;
            tokio::time::sleep(Duration::from_secs(if rate > 100 { 15 } else { 3 })).await;
            let figures = ask(&mut part, &json!({"do": "collect"}))?;
            let prefix = format!("propagation_at_{rate}_");
            if rate == 10 {
                let complete = number(&figures["count"]) / f64::from(u32::try_from(self.followers)?);
                anyhow::ensure!(complete >= 10.0, "each follower got {complete} changes");
                self.report.bar(&format!("{prefix}p99"), number(&figures["p99_us"]) / 1e6, 1.0, "s");
            }
            self.report.figure(&format!("{prefix}written_per_second"), json!(reached), format!("{reached:.0}"));
            self.report.figure(&format!("{prefix}deltas"), figures["deltas"].clone(), figures["deltas"].to_string());
            self.report.times(prefix.trim_end_matches('_'), &figures);
        }
        eprintln!("all followers reconnect at once");
        let again = ask(&mut part, &json!({"do": "reconnect", "followers": self.followers}))?;
        self.report.seconds("followers_reconnect_s", &again["seconds"]);
        eprintln!("the TCS is killed and started again");
        ask(&mut part, &json!({"do": "forget"}))?;
        self.serving.kill()?;
        self.serving.wait()?;
        let began = Instant::now();
        self.serving = serve(self.dir.path(), self.tcs, self.policy.address)?;
        self.up(Some(0)).await?;
        let up = began.elapsed().as_secs_f64();
        self.report.figure("tcs_restart_s", json!(up), format!("{up:.2} s until it answers"));
        let again = ask(&mut part, &json!({"do": "again", "followers": self.followers}))?;
        self.report.seconds("followers_back_after_restart_s", &again["seconds"]);
        Ok(())
    }
}

/// Asks a part without stopping this one's other tasks.
fn ask(part: &mut Part, order: &Value) -> anyhow::Result<Value> {
    tokio::task::block_in_place(|| part.ask(order))
}

fn serve(dir: &Path, tcs: SocketAddr, policy: SocketAddr) -> anyhow::Result<Child> {
    let (dir, tcs, policy) = (dir.display().to_string(), tcs.to_string(), policy.to_string());
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["tcs", &dir, &tcs, &policy, &dir]).stdin(Stdio::null());
    command.spawn().context("cannot start the TCS")
}

/// Debian's Redis, with nothing on disk.
struct Redis {
    server: Child,
    url: String,
}

impl Redis {
    fn start(dir: &Path) -> anyhow::Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--appendonly", "no"]);
        command.args(["--dir", &dir.display().to_string(), "--logfile", ""]).stdout(Stdio::null());
        let server = command.spawn().context("redis-server is missing: `make bench-tcs` installs it")?;
        let began = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            anyhow::ensure!(began.elapsed() < Duration::from_secs(10), "redis-server does not listen");
            std::thread::park_timeout(Duration::from_millis(20));
        }
        Ok(Self { server, url: format!("redis://127.0.0.1:{port}/") })
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}

fn megabytes(bytes: u64) -> String {
    format!("{} MB", bytes >> 20)
}
