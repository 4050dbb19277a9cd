//! Steady traffic between two services of a mesh, while something else happens to it.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tenon_proto::media::v1::{ListRequest, media_client::MediaClient};
use tokio::{task::JoinSet, time::interval};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::calls::{channel, for_tenant, outcome};

/// Callers at a time: one slow call delays a fraction of the others.
const CALLERS: u32 = 32;

/// Calls of one app to `media`, through the two sidecars between them.
pub struct Traffic {
    started: Instant,
    stop: CancellationToken,
    calls: Arc<AtomicU64>,
    callers: JoinSet<Vec<String>>,
}

/// What came of it.
#[derive(Debug)]
pub struct Report {
    /// Calls that have ended, well or not.
    pub calls: u64,
    /// Mean over the whole time.
    pub calls_per_second: f64,
    /// What each of those that did not end well was told; a reset stream is one of them.
    pub failed: Vec<String>,
}

impl Traffic {
    /// Calls from now on `per_second` times a second, through the outbound listener of the caller's sidecar. A pause is made
    /// up for, so that the mean holds.
    ///
    /// # Errors
    /// The sidecar does not answer.
    pub async fn start(outbound: SocketAddr, tenant: &str, per_second: u32) -> anyhow::Result<Self> {
        let client = MediaClient::new(channel(outbound, "media").await?);
        let stop = CancellationToken::new();
        let calls = Arc::new(AtomicU64::new(0));
        let mut callers = JoinSet::new();
        for _ in 0..CALLERS {
            let every = Duration::from_secs(1) * CALLERS / per_second;
            callers.spawn(call(client.clone(), tenant.to_owned(), every, Arc::clone(&calls), stop.clone()));
        }
        Ok(Self { started: Instant::now(), stop, calls, callers })
    }

    /// Calls that have ended so far.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// Mean over the whole time so far.
    #[must_use]
    pub fn calls_per_second(&self) -> f64 {
        self.calls() as f64 / self.started.elapsed().as_secs_f64()
    }

    /// Ends it when the calls under way have ended.
    pub async fn stop(self) -> Report {
        self.stop.cancel();
        let calls_per_second = self.calls_per_second();
        let failed = self.callers.join_all().await.concat();
        Report { calls: self.calls.load(Ordering::Relaxed), calls_per_second, failed }
    }
}

async fn call(
    mut client: MediaClient<Channel>,
    tenant: String,
    every: Duration,
    calls: Arc<AtomicU64>,
    stop: CancellationToken,
) -> Vec<String> {
    let (mut failed, mut tick) = (Vec::new(), interval(every));
    loop {
        tokio::select! {
            () = stop.cancelled() => return failed,
            _ = tick.tick() => {}
        }
        let outcome = outcome(&client.list(for_tenant(&tenant, ListRequest {})).await);
        calls.fetch_add(1, Ordering::Relaxed);
        if outcome != "ALLOWED" {
            failed.push(outcome);
        }
    }
}
