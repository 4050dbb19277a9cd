//! Three instances of `media` started by hand, found through registration, and their caller `wiki`.

use std::net::SocketAddr;

use serde_json::json;
use tenon_proto::media::v1::{ListRequest, media_client::MediaClient};

use super::Instance;
use crate::{
    calls::{channel, for_tenant, outcome},
    mesh::{Mesh, Plan},
    open_loop::OpenLoop,
};

/// Who there is, and who may call `media`.
pub const POLICY: &str = "
apiVersion: tenon.dev/v1
kind: Service
metadata: {name: media}
spec: {product: media}
---
apiVersion: tenon.dev/v1
kind: Service
metadata: {name: wiki}
spec: {}
---
apiVersion: tenon.dev/v1
kind: Allowlist
metadata: {name: media}
spec:
  service: media
  rules:
    - {name: read, callers: [wiki, media], paths: [/media.v1.Media/*]}
";

/// `List` is safe to retry, and nothing else is.
const ROUTE: &str = "---
apiVersion: tenon.dev/v1
kind: Route
metadata: {name: media}
spec:
  service: media
  methods:
    - paths: [/media.v1.Media/List]
      idempotent: true
      retry: {codes: [UNAVAILABLE], attempts: 3, backoff: 10ms, maxBackoff: 100ms}
";

/// The tenant of all calls.
pub const TENANT: &str = "acme";

/// The mesh and its instances.
pub struct Media {
    /// With `wiki` alone among its instances.
    pub mesh: Mesh,
    pub instances: Vec<Instance>,
}

impl Media {
    /// Starts the mesh and plans three instances.
    ///
    /// # Errors
    /// Something cannot be started.
    pub fn plan() -> anyhow::Result<Self> {
        let mesh = Plan::new()?.file("policy.yaml", &format!("{POLICY}{ROUTE}")).caller("wiki", "us-east").start()?;
        let shard = json!({"cluster": "a", "database": "media", "schema": TENANT});
        let products = json!({"media": {"state": "ACTIVE", "shard": shard}});
        mesh.import(&[json!({"tenantId": TENANT, "status": "ACTIVE", "region": "us-east", "products": products})])?;
        let plan = |number| Instance::plan(&mesh, "media", &format!("media-{number}"));
        let instances = (0..3).map(plan).collect::<anyhow::Result<_>>()?;
        Ok(Self { mesh, instances })
    }

    /// Starts what is planned, and waits until all are registered.
    ///
    /// # Errors
    /// Something cannot be started, or is not registered in time.
    pub async fn start(mut self) -> anyhow::Result<Self> {
        for instance in &mut self.instances {
            instance.start_app()?;
            instance.start_sidecar()?;
        }
        for instance in &self.instances {
            instance.registered().await?;
        }
        Ok(self)
    }

    /// Where `wiki` calls.
    #[must_use]
    pub fn outbound(&self) -> SocketAddr {
        self.mesh.outbound("wiki", "us-east")
    }

    /// Calls of the method that is safe to retry, from now on.
    ///
    /// # Errors
    /// The sidecar does not answer.
    pub async fn calls(&self, per_second: u32) -> anyhow::Result<OpenLoop> {
        let client = MediaClient::new(channel(self.outbound(), "media").await?);
        Ok(OpenLoop::start(per_second, move || {
            let mut client = client.clone();
            async move {
                match &*outcome(&client.list(for_tenant(TENANT, ListRequest {})).await) {
                    "ALLOWED" => Ok(()),
                    other => Err(other.to_owned()),
                }
            }
        }))
    }
}
