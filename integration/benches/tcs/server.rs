//! The TCS in a process of its own, as `tenon tcs serve` runs it, and the policy service that tells it who is of which
//! product.

use std::{net::SocketAddr, path::Path, sync::Arc};

use journal::{Embedded, Everything, Journal, Publisher, REPLICATION_AUTHORIZATION, ReplicationService, Write};
use mesh_identity::{grpc::Server, testing::Ca, tls::Clients};
use prost::Message as _;
use tenon_proto::{kind, policy::v1::Route};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

/// Publishes the routes of the services until the benchmark ends.
pub struct Policy {
    pub address: SocketAddr,
    routes: Arc<dyn Journal>,
}

impl Policy {
    /// Starts it, with `media` of the product `media`.
    ///
    /// # Errors
    /// Its store or its listener cannot be made.
    pub async fn start(ca: &Ca, dir: &Path) -> anyhow::Result<Self> {
        let routes = Embedded::open(&dir.join("policy.redb"))?.kind(kind::ROUTE)?;
        let publisher =
            Publisher::start(kind::ROUTE, Arc::clone(&routes), Arc::new(Everything), CancellationToken::new());
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let server = Server {
            listener,
            identity: ca.identity("tenon-policy"),
            clients: Clients::Required,
            authorization: REPLICATION_AUTHORIZATION,
            routes: Routes::new(ReplicationService::new(vec![publisher]).into_server()),
            recorder: None,
        };
        tokio::spawn(server.run(CancellationToken::new()));
        let policy = Self { address, routes };
        policy.product("media", crate::dataset::PRODUCT).await?;
        Ok(policy)
    }

    /// Makes `service` one of another product: what its followers see of every tenant changes.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn product(&self, service: &str, product: &str) -> anyhow::Result<()> {
        let route = Route { service: service.into(), product: product.into(), residency: 1, ..Route::default() };
        self.routes.append(vec![Write::put(service, route.encode_to_vec())]).await?;
        Ok(())
    }
}

/// Serves as the TCS at `listen` until the process is killed.
///
/// # Errors
/// As [`tcs::serve`].
pub fn run(ca: &Ca, listen: SocketAddr, policy: SocketAddr, dir: &Path) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let config = tcs::Config {
            listener: TcpListener::bind(listen).await?,
            role: tcs::Role::Leader { store: journal::Store::Embedded(dir.join("tcs.redb")), past: tcs::PAST },
            state_dir: dir.join("tcs-state"),
            identity: ca.identity("tenon-tcs"),
            instance: "tenon-tcs-bench".into(),
            policy: vec![policy],
        };
        tcs::serve(config, CancellationToken::new()).await?;
        Ok(())
    })
}
