//! Sample product service: work items, comments and attachments of each tenant.
//!
//! It listens on loopback and trusts its sidecar: the sidecar has verified the caller and the tenant, and this service
//! refuses any request that carries no tenant context. Attachments are kept by the `media` service, which it calls through
//! its own sidecar like any other app would.
//!
//! The way to a tenant's rows is the same as in the other sample service, so it is that one's: [`media::tenancy`],
//! [`media::shards`], [`media::calls`] and [`media::hosting`]. Nothing else of the `media` library is used, and its data only
//! by calling it. Of the mesh only the wire types are imported.

pub mod outbound;
pub mod service;

mod attach;
mod board;
mod key;

use std::path::PathBuf;

use media::{
    hosting::{Host, HostError, MESSAGE_BYTES},
    shards::{OpenError, Shards},
};
use tenon_proto::issues::v1::issues_server::IssuesServer;
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{codec::CompressionEncoding, service::Routes};

use crate::{outbound::Outbound, service::IssuesService};

/// Serves the rows below `data` on `listener` until `shutdown`, calling other services through `outbound`.
///
/// # Errors
/// When the data folder cannot be used or the server fails.
pub async fn serve(
    listener: TcpListener,
    data: PathBuf,
    outbound: Outbound,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let opened = tokio::task::spawn_blocking(move || Shards::open(&data)).await;
    let shards = opened.map_err(|_| ServeError::Interrupted)??;
    let tasks = TaskTracker::new();
    let service = IssuesServer::new(IssuesService::new(shards, outbound, tasks.clone()))
        .max_decoding_message_size(MESSAGE_BYTES)
        .accept_compressed(CompressionEncoding::Gzip);
    Ok(Host { listener, services: &["issues.v1.Issues"], routes: Routes::new(service), tasks }.run(shutdown).await?)
}

/// Why the service cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The data folder cannot be used.
    #[error(transparent)]
    Data(#[from] OpenError),
    /// The gRPC server cannot be made or has failed.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The process is ending.
    #[error("interrupted while the data folder was opened")]
    Interrupted,
}
