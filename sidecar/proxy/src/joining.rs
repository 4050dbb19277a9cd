//! How a sidecar gets into the mesh and stays in it: by the identity service, or by a SPIFFE Workload API.

use std::{sync::Arc, time::Duration};

use mesh_identity::{
    join::{self, Attestation, JoinError, Joined, Membership},
    workload,
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    admin::Admin,
    config::{Config, SvidFrom},
};

/// Between two attempts to join: doubled from the first to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// Joins, however long whoever gives identities takes to come; `admin` is told why it takes so long. `None` when asked
/// to end first.
///
/// # Errors
/// Somebody must change something before it can work.
pub async fn join(config: &Config, admin: &Admin, shutdown: &CancellationToken) -> anyhow::Result<Option<Joined>> {
    let (mut wait, longest) = RETRY;
    loop {
        let error = tokio::select! {
            () = shutdown.cancelled() => return Ok(None),
            joined = attempt(config) => match joined {
                Ok(joined) => return Ok(Some(joined)),
                Err(Failed::ForGood(error)) => return Err(error.into()),
                Err(Failed::ForNow(error)) => error,
            },
        };
        warn!(%error, "cannot join the mesh yet");
        admin.cannot_join(&error);
        tokio::select! {
            () = shutdown.cancelled() => return Ok(None),
            () = tokio::time::sleep(wait) => wait = (wait * 2).min(longest),
        }
    }
}

/// Keeps what [`join`] got current until `shutdown`.
pub fn stay(config: &Config, joined: &Joined, shutdown: &CancellationToken) -> (Arc<Membership>, Vec<JoinHandle<()>>) {
    match workload_source(config) {
        None => Membership::start(joined, join_config(config), shutdown),
        Some(source) => {
            let (member, mut tasks) = Membership::start_with_identity(joined, &join_config(config), shutdown);
            tasks.push(workload::follow(source, Arc::clone(&joined.identity), shutdown.clone()));
            (member, tasks)
        }
    }
}

enum Failed {
    ForGood(JoinError),
    ForNow(String),
}

impl From<JoinError> for Failed {
    fn from(error: JoinError) -> Self {
        if error.is_final() { Self::ForGood(error) } else { Self::ForNow(error.to_string()) }
    }
}

async fn attempt(config: &Config) -> Result<Joined, Failed> {
    let Some(source) = workload_source(config) else { return Ok(join::join(join_config(config)).await?) };
    let identity = workload::take(&source).await.map_err(|error| Failed::ForNow(error.to_string()))?;
    Ok(join::with_identity(identity, &config.state_dir)?)
}

fn workload_source(config: &Config) -> Option<workload::Source> {
    match &config.svid_from {
        SvidFrom::IdentityService { .. } => None,
        SvidFrom::WorkloadApi(socket) => Some(workload::Source {
            socket: socket.clone(),
            service: config.service.clone(),
            trust_domain: config.trust_domain.clone(),
        }),
    }
}

fn join_config(config: &Config) -> join::Config {
    let (pin, attestation) = match &config.svid_from {
        SvidFrom::IdentityService { pin, attestation } => (pin.clone(), attestation.clone()),
        SvidFrom::WorkloadApi(_) => (String::new(), Attestation::default()),
    };
    join::Config {
        identity_address: config.identity,
        pin,
        attestation,
        service: config.service.clone(),
        state_dir: config.state_dir.clone(),
    }
}
