//! How a product service listens, reports its health and stops.

use std::{
    io::{self, IsTerminal as _},
    net::{AddrParseError, SocketAddr},
    time::Duration,
};

use tenon_proto::FILE_DESCRIPTOR_SET;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{
    service::Routes,
    transport::{Server, server::TcpIncoming},
};
use tonic_health::{ServingStatus, server::HealthReporter};
use tracing_subscriber::EnvFilter;

/// Longest message taken, in bytes: 4 MiB of a file and their frame.
pub const MESSAGE_BYTES: usize = (4 << 20) + (64 << 10);

/// How long calls that are under way when the service is told to stop may take to end.
const GRACE: Duration = Duration::from_secs(10);
/// Flow-control windows: enough that one upload fills a loopback connection, small enough to bound memory.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;

/// Reads an address to listen on, for clap. Only loopback: whoever reaches the listener is taken for the sidecar.
///
/// # Errors
/// When it is no address, or not of loopback.
pub fn loopback(text: &str) -> Result<SocketAddr, LoopbackError> {
    let address: SocketAddr = text.parse().map_err(LoopbackError::NoAddress)?;
    if address.ip().is_loopback() { Ok(address) } else { Err(LoopbackError::Reachable) }
}

/// Why an address is not one to listen on.
#[derive(Debug, thiserror::Error)]
pub enum LoopbackError {
    /// Not an address.
    #[error("expected an IP address and a port, such as 127.0.0.1:9002")]
    NoAddress(#[source] AddrParseError),
    /// Others than the sidecar could reach it.
    #[error(
        "expected a loopback address such as 127.0.0.1:9002: whatever reaches this listener is taken for the sidecar"
    )]
    Reachable,
}

/// Why a service cannot start or go on. Each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// Somebody else listens there.
    #[error("{0} is taken by another process: stop that process, or choose another address with --listen")]
    Taken(SocketAddr),
    /// The system refuses.
    #[error("cannot listen on {address}: choose another address with --listen")]
    Listen {
        /// As it was given.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The descriptors of the services do not fit together.
    #[error("the reflection service cannot be made")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The server ended by itself.
    #[error("the gRPC server failed")]
    Server(#[from] tonic::transport::Error),
}

/// Takes the address.
///
/// # Errors
/// When it is taken or not of this machine.
pub async fn listen(address: SocketAddr) -> Result<TcpListener, HostError> {
    TcpListener::bind(address).await.map_err(|source| {
        if source.kind() == io::ErrorKind::AddrInUse {
            HostError::Taken(address)
        } else {
            HostError::Listen { address, source }
        }
    })
}

/// A product service, ready to run.
pub struct Host {
    /// Where it listens.
    pub listener: TcpListener,
    /// Full names of its gRPC services, for health and reflection.
    pub services: &'static [&'static str],
    /// The gRPC services.
    pub routes: Routes,
    /// Work that outlives its call, to be waited for at the end.
    pub tasks: TaskTracker,
}

impl Host {
    /// Serves until `shutdown`, with health and reflection (v1 and v1alpha) beside the services; then lets what is under
    /// way end, for at most 10 s.
    ///
    /// # Errors
    /// When the server fails.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), HostError> {
        let (health, health_server) = tonic_health::server::health_reporter();
        for service in self.services {
            health.set_service_status(*service, ServingStatus::Serving).await;
        }
        let routes = self
            .routes
            .add_service(health_server)
            .add_service(reflection(self.services).build_v1()?)
            .add_service(reflection(self.services).build_v1alpha()?);
        let server = Server::builder()
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .http2_keepalive_interval(Some(Duration::from_secs(30)))
            .add_routes(routes)
            .serve_with_incoming_shutdown(
                TcpIncoming::from(self.listener).with_nodelay(Some(true)),
                shutdown.clone().cancelled_owned(),
            );
        let tasks = self.tasks;
        tokio::select! {
            served = async { served_and_done(server.await, &tasks).await } => served?,
            () = out_of_time(&shutdown, health, self.services) => {
                tracing::warn!(seconds = GRACE.as_secs(), "stopped with calls still under way");
            }
        }
        Ok(())
    }
}

async fn served_and_done<E>(served: Result<(), E>, tasks: &TaskTracker) -> Result<(), E> {
    tasks.close();
    tasks.wait().await;
    served
}

/// Ends when the time of grace after `shutdown` is over.
async fn out_of_time(shutdown: &CancellationToken, health: HealthReporter, services: &[&'static str]) {
    shutdown.cancelled().await;
    for service in services.iter().copied().chain([""]) {
        health.set_service_status(service, ServingStatus::NotServing).await;
    }
    tokio::time::sleep(GRACE).await;
}

fn reflection(services: &[&'static str]) -> tonic_reflection::server::Builder<'static> {
    // google.rpc.ErrorInfo is among them, so that grpcurl shows in words why the mesh refused a call.
    let builder = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .with_service_name("grpc.health.v1.Health");
    services.iter().fold(builder, |builder, service| builder.with_service_name(*service))
}

/// Writes logs to standard error, `info` and above unless `RUST_LOG` says otherwise.
pub fn log_to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    // What cannot be logged is dropped: complaining about it where it cannot be written either is a panic of whoever logs.
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(io::stderr);
    logs.log_internal_errors(false).init();
}

/// A token that is cancelled by SIGTERM or Ctrl-C.
///
/// # Errors
/// When the system does not let the process handle signals.
pub fn until_signalled() -> io::Result<CancellationToken> {
    let shutdown = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let token = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!(signal = "SIGTERM", "stopping"),
            _ = interrupt.recv() => tracing::info!(signal = "SIGINT", "stopping"),
        }
        token.cancel();
    });
    Ok(shutdown)
}
