//! A change of the policy, from the operator's `Apply` until 1,000 sidecars decide by it.

use std::{
    net::{SocketAddr, TcpListener},
    path::Path,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, ensure};
use mesh_config::SourceFile;
use mesh_identity::{grpc, testing, testing::Ca};
use serde_json::json;
use tenon_proto::policy::v1::{ApplyRequest, PolicyFile, policy_client::PolicyClient};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::{child::Part, child::resident, files, followers::Of, report::Report};

/// What a mesh with so many sidecars usually has: the bar is for it.
const USUAL: Size = Size { name: "1000_rules", services: 100, rules: 10 };
/// Far more than that; what changes takes longer to read and to compile then, before anybody can be told.
const LARGE: Size = Size { name: "10000_rules", services: 1_000, rules: 10 };
/// Followers.
const SIDECARS: usize = 1_000;
/// Changes that are measured.
const CHANGES: usize = 30;
const LARGEST: usize = 64 << 20;
/// From the operator's `Apply` until the last sidecar decides by it, in milliseconds.
const BAR: f64 = 200.0;

/// A policy: services, and the rules of each.
#[derive(Clone, Copy)]
struct Size {
    name: &'static str,
    services: usize,
    rules: usize,
}

impl Size {
    fn files(self, changed: impl Fn(usize) -> bool, at: u64) -> Vec<SourceFile> {
        files::mesh(self.services, self.rules, changed, at)
    }
}

/// Serves as the policy service at `listen` until the process is killed.
///
/// # Errors
/// As [`policy::serve`].
pub fn serve(ca: &Ca, listen: SocketAddr, dir: &Path) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let config = policy::Config {
            listener: tokio::net::TcpListener::bind(listen).await?,
            store: journal::Store::Embedded(dir.join("policy.redb")),
            state_dir: dir.join("policy-state"),
            folder: None,
            accept: Vec::new(),
            identity: ca.identity("tenon-policy"),
            dashboard: None,
            tcs: Vec::new(),
        };
        policy::serve(config, CancellationToken::new()).await?;
        Ok(())
    })
}

/// Runs the part.
///
/// # Errors
/// A process cannot be started, or a policy is not taken.
pub async fn measure(report: &mut Report) -> anyhow::Result<()> {
    compiling(report)?;
    for (size, bar) in [(USUAL, Some(BAR)), (LARGE, None)] {
        distributing(report, size, bar).await?;
    }
    Ok(())
}

async fn distributing(report: &mut Report, size: Size, bar: Option<f64>) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let ca = Ca::new(crate::DOMAIN);
    std::fs::write(dir.path().join("root.der"), ca.root())?;
    std::fs::write(dir.path().join("root.key"), ca.key_pem())?;
    let listen = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let folder = dir.path().to_str().context("the temporary folder has a name in UTF-8")?;
    let serving = Serving(
        std::process::Command::new(std::env::current_exe()?)
            .args(["serve", folder, &listen.to_string(), folder])
            .spawn()?,
    );
    let channel = grpc::channel(listen, &ca.operator_identity("ada"), &testing::service("tenon-policy"));
    let mut operator = PolicyClient::new(channel).max_encoding_message_size(LARGEST);
    let began = Instant::now();
    while let Err(error) = apply(&mut operator, size.files(|_| false, 0)).await {
        ensure!(began.elapsed() < Duration::from_secs(30), "the policy service does not take it: {error:#}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let began = Instant::now();
    apply(&mut operator, size.files(|service| service == 1, 1)).await?;
    report.seconds(&format!("apply_{}", size.name), &json!(began.elapsed().as_secs_f64()));
    // One service of which all sidecars are instances, then sidecars of every service and all of them changed.
    for (of, changed) in [(Of::OneService, SIDECARS_OF_ONE), (Of::EachService, EVERY)] {
        let name = format!("{}_to_1000_sidecars_of_{}", size.name, of.name());
        let mut followers = Part::start("followers", &[folder, &listen.to_string()])?;
        let services = size.services;
        followers.ask(&json!({"do": "connect", "sidecars": SIDECARS, "of": of.name(), "services": services}))?;
        followers.ask(&json!({"do": "measure"}))?;
        for _ in 0..CHANGES {
            apply(&mut operator, size.files(changed, now())).await?;
            followers.ask(&json!({"do": "wait", "sidecars": SIDECARS}))?;
        }
        let figures = followers.ask(&json!({"do": "collect"}))?;
        report.times(&name, &figures);
        if let Some(bar) = bar {
            report.bar(&format!("{name}_p99"), figures["p99_us"].as_f64().context("a figure")? / 1e3, bar, "ms");
        }
    }
    report.bytes(&format!("policy_service_rss_{}", size.name), &json!(resident(serving.0.id())?));
    Ok(())
}

const SIDECARS_OF_ONE: fn(usize) -> bool = |service| service == 0;
const EVERY: fn(usize) -> bool = |_| true;

/// Files to records, as the policy service does it at each change: the median of ten.
fn compiling(report: &mut Report) -> anyhow::Result<()> {
    let files = LARGE.files(|_| false, 0);
    let mut times: Vec<Duration> = Vec::new();
    for _ in 0..10 {
        let began = Instant::now();
        let mesh = mesh_config::parse(&files)?;
        let records = mesh_config::compile(&mesh);
        times.push(began.elapsed());
        ensure!(records.allowlists.len() == LARGE.services, "every service has a record");
    }
    times.sort_unstable();
    report.seconds("files_to_records_10000_rules", &json!(times[5].as_secs_f64()));
    Ok(())
}

async fn apply(operator: &mut PolicyClient<Channel>, files: Vec<SourceFile>) -> anyhow::Result<()> {
    let files = files.into_iter().map(|file| PolicyFile { path: file.path, text: file.text }).collect();
    let answer = operator.apply(ApplyRequest { files, ..ApplyRequest::default() }).await?.into_inner();
    ensure!(answer.problems.is_empty(), "{:?}", answer.problems.first());
    Ok(())
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or_default()
}

struct Serving(std::process::Child);

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
