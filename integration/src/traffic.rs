//! Steady traffic between two services of a mesh, while something else happens to it.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use tenon_proto::media::v1::{ListRequest, media_client::MediaClient};
use tokio::{task::JoinSet, time::interval};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::calls::{channel, for_tenant, outcome};

/// Callers at a time: one slow call delays a fraction of the others.
const CALLERS: u32 = 10;

/// Calls of one app to `media`, through the two sidecars between them.
pub struct Traffic {
    started: Instant,
    stop: CancellationToken,
    callers: JoinSet<Count>,
}

#[derive(Default)]
struct Count {
    calls: u64,
    failed: Vec<String>,
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
        let mut callers = JoinSet::new();
        for _ in 0..CALLERS {
            let every = Duration::from_secs(1) * CALLERS / per_second;
            callers.spawn(call(client.clone(), tenant.to_owned(), every, stop.clone()));
        }
        Ok(Self { started: Instant::now(), stop, callers })
    }

    /// Ends it when the calls under way have ended.
    pub async fn stop(self) -> Report {
        self.stop.cancel();
        let counts = self.callers.join_all().await;
        let calls: u64 = counts.iter().map(|count| count.calls).sum();
        let seconds = self.started.elapsed().as_secs_f64();
        let failed = counts.into_iter().flat_map(|count| count.failed).collect();
        Report { calls, calls_per_second: calls as f64 / seconds, failed }
    }
}

async fn call(mut client: MediaClient<Channel>, tenant: String, every: Duration, stop: CancellationToken) -> Count {
    let (mut count, mut tick) = (Count::default(), interval(every));
    loop {
        tokio::select! {
            () = stop.cancelled() => return count,
            _ = tick.tick() => {}
        }
        let outcome = outcome(&client.list(for_tenant(&tenant, ListRequest {})).await);
        count.calls += 1;
        if outcome != "ALLOWED" {
            count.failed.push(outcome);
        }
    }
}
