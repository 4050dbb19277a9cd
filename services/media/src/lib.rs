//! Sample product service: files of each tenant, with thumbnails.
//!
//! It listens on loopback and trusts its sidecar: the sidecar has verified the caller and the tenant, and this service
//! refuses any request that carries no tenant context. It reads of the context only where the tenant's rows are kept.
//!
//! The sample service `issues` has the same way to its storage. As neither may import anything of the mesh but the wire types,
//! and the wire types hold no logic, it uses [`tenancy`], [`shards`], [`calls`] and [`hosting`] of this library. Nothing here
//! knows of `issues`.

pub mod calls;
pub mod hosting;
pub mod service;
pub mod shards;
pub mod tenancy;

mod items;
mod thumbnails;
mod upload;

use std::path::PathBuf;

use tenon_proto::media::v1::{media_server::MediaServer, thumbnails_server::ThumbnailsServer};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{codec::CompressionEncoding, service::Routes};

use crate::{
    hosting::{Host, MESSAGE_BYTES},
    service::MediaService,
    shards::Shards,
};

/// Serves the files below `data` on `listener` until `shutdown`.
///
/// # Errors
/// When the data folder cannot be used or the server fails.
pub async fn serve(listener: TcpListener, data: PathBuf, shutdown: CancellationToken) -> Result<(), ServeError> {
    let opened = tokio::task::spawn_blocking(move || Shards::open(&data)).await;
    let shards = opened.map_err(|_| ServeError::Interrupted)??;
    let tasks = TaskTracker::new();
    let service = MediaService::new(shards, tasks.clone());
    let media = MediaServer::new(service.clone())
        .max_decoding_message_size(MESSAGE_BYTES)
        .accept_compressed(CompressionEncoding::Gzip);
    let routes =
        Routes::new(media).add_service(ThumbnailsServer::new(service).accept_compressed(CompressionEncoding::Gzip));
    Ok(Host { listener, services: &["media.v1.Media", "media.v1.Thumbnails"], routes, tasks }.run(shutdown).await?)
}

/// Why the service cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The data folder cannot be used.
    #[error(transparent)]
    Data(#[from] shards::OpenError),
    /// The gRPC server cannot be made or has failed.
    #[error(transparent)]
    Host(#[from] hosting::HostError),
    /// The process is ending.
    #[error("interrupted while the data folder was opened")]
    Interrupted,
}
