//! A server of some publishers on a port of its own. What TLS proves is put in by an interceptor.

use std::net::SocketAddr;

use journal::{Publisher, ReplicationService};
use mesh_config::names::{ServiceName, TrustDomain};
use mesh_identity::{Peer, SpiffeId};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Status,
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

/// Says that every caller is the service its metadata name.
#[derive(Clone)]
struct Proved;

impl Interceptor for Proved {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, Status> {
        let service = request.metadata().get("test-service").map_or("media", |name| name.to_str().unwrap()).to_owned();
        if service != "nobody" {
            let domain = TrustDomain::try_from("test.example").unwrap();
            let id = SpiffeId::service(domain, ServiceName::try_from(service.as_str()).unwrap());
            request.extensions_mut().insert(Peer { id, serial: "1".to_owned(), not_after: u64::MAX, role: None });
        }
        Ok(request)
    }
}

/// One that listens.
pub struct Server {
    pub address: SocketAddr,
    pub shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Server {
    /// Serves `publishers`, which end with `shutdown` too.
    pub async fn start(publishers: Vec<Publisher>, address: Option<SocketAddr>, shutdown: CancellationToken) -> Self {
        let listener = TcpListener::bind(address.unwrap_or(([127, 0, 0, 1], 0).into())).await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = InterceptedService::new(ReplicationService::new(publishers).into_server(), Proved);
        let stop = shutdown.clone().cancelled_owned();
        let task = tokio::spawn(async move {
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stop)
                .await
                .unwrap();
        });
        Self { address, shutdown, task }
    }

    pub fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.address)).unwrap().connect_lazy()
    }

    pub async fn stop(self) -> SocketAddr {
        self.shutdown.cancel();
        self.task.await.unwrap();
        self.address
    }
}
