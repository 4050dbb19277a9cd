//! The gRPC service over all publishers of a process.

mod body;

use std::{
    convert::Infallible,
    marker::PhantomData,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf as _, BufMut as _, Bytes};
use futures_util::StreamExt as _;
use mesh_identity::{
    OperatorRole, Peer,
    grpc::{Rpc, Who},
};
use prost::Message;
use tenon_proto::replication::v1::{
    FetchRequest, FetchResponse, StatusRequest, StatusResponse, follow_request::Request,
};
use tonic::{
    Status,
    body::Body,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::{BoxFuture, Service, http},
    server::{Grpc, NamedService, UnaryService},
};

use crate::Publisher;
use body::{Requests, Responses};

const NAME: &str = "tenon.replication.v1.Replication";
const FOLLOW: &str = "/tenon.replication.v1.Replication/Follow";
const FETCH: &str = "/tenon.replication.v1.Replication/Fetch";
const STATUS: &str = "/tenon.replication.v1.Replication/Status";

/// How long a follower may take to say what it wants.
const OPENING: Duration = Duration::from_secs(10);

/// Who may call what of this service: the rows for the authorization table of a control-plane server.
pub const REPLICATION_AUTHORIZATION: &[Rpc] = &[
    Rpc { path: FOLLOW, who: Who::ServicesAndOperators },
    Rpc { path: FETCH, who: Who::ServicesAndOperators },
    Rpc { path: STATUS, who: Who::Operators(OperatorRole::Viewer) },
];

/// `tenon.replication.v1.Replication` over some publishers. Expects the [`Peer`] in the extensions of each request.
#[derive(Clone, Debug)]
pub struct ReplicationService {
    publishers: Arc<[Publisher]>,
}

impl ReplicationService {
    #[must_use]
    pub fn new(publishers: Vec<Publisher>) -> Self {
        Self { publishers: publishers.into() }
    }

    /// The service as a tonic router takes it.
    #[must_use]
    pub const fn into_server(self) -> ReplicationServer<Self> {
        ReplicationServer { inner: self }
    }

    async fn follow(&self, request: http::Request<Body>) -> Result<http::Response<Body>, Status> {
        let (head, body) = request.into_parts();
        let peer = peer(&head.extensions)?;
        let mut requests = Requests::new(body);
        let first = match tokio::time::timeout(OPENING, requests.next()).await {
            Ok(Some(first)) => first?,
            Ok(None) => return Err(Status::invalid_argument("the first request must be start")),
            Err(_) => return Err(Status::deadline_exceeded("no start came")),
        };
        let Some(Request::Start(start)) = first.request else {
            return Err(Status::invalid_argument("the first request must be start"));
        };
        let publisher = self.publisher(&start.kind)?;
        publisher.follow_framed(peer, start, requests).await.map(Responses::answer)
    }

    async fn fetch(&self, request: tonic::Request<FetchRequest>) -> Result<FetchResponse, Status> {
        let peer = peer(request.extensions())?;
        let request = request.into_inner();
        self.publisher(&request.kind)?.fetch(&peer, request).await
    }

    fn status(&self, request: &StatusRequest) -> Result<StatusResponse, Status> {
        if !request.kind.is_empty() {
            self.publisher(&request.kind)?;
        }
        let asked = self.publishers.iter().filter(|it| request.kind.is_empty() || it.kind() == request.kind);
        Ok(StatusResponse { kinds: asked.map(Publisher::status).collect() })
    }

    fn publisher(&self, kind: &str) -> Result<&Publisher, Status> {
        let found = self.publishers.iter().find(|publisher| publisher.kind() == kind);
        found.ok_or_else(|| {
            let kinds: Vec<_> = self.publishers.iter().map(Publisher::kind).collect();
            Status::not_found(format!("this server publishes {}, not {kind:?}", kinds.join(", ")))
        })
    }
}

fn peer(extensions: &http::Extensions) -> Result<Peer, Status> {
    let peer = extensions.get::<Peer>().cloned();
    peer.ok_or_else(|| Status::unauthenticated("who follows is not known: call over mTLS"))
}

/// The tower service. Unlike the generated one it sends messages that are encoded already: a delta is encoded once, not
/// once a follower.
#[derive(Clone, Debug)]
pub struct ReplicationServer<T> {
    inner: T,
}

impl<T> NamedService for ReplicationServer<T> {
    const NAME: &'static str = NAME;
}

impl Service<http::Request<Body>> for ReplicationServer<ReplicationService> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = self.inner.clone();
        Box::pin(async move {
            Ok(match request.uri().path() {
                FOLLOW => service.follow(request).await.unwrap_or_else(Status::into_http),
                FETCH => Grpc::new(Encoded::default()).unary(Fetch(service), request).await,
                STATUS => Grpc::new(Encoded::default()).unary(GetStatus(service), request).await,
                _ => Status::unimplemented("no such method").into_http(),
            })
        })
    }
}

struct Fetch(ReplicationService);

impl UnaryService<FetchRequest> for Fetch {
    type Response = Bytes;
    type Future = BoxFuture<tonic::Response<Bytes>, Status>;

    fn call(&mut self, request: tonic::Request<FetchRequest>) -> Self::Future {
        let service = self.0.clone();
        Box::pin(async move {
            let response = service.fetch(request).await?;
            Ok(tonic::Response::new(response.encode_to_vec().into()))
        })
    }
}

struct GetStatus(ReplicationService);

impl UnaryService<StatusRequest> for GetStatus {
    type Response = Bytes;
    type Future = BoxFuture<tonic::Response<Bytes>, Status>;

    fn call(&mut self, request: tonic::Request<StatusRequest>) -> Self::Future {
        let service = self.0.clone();
        Box::pin(async move {
            let response = service.status(&request.into_inner())?;
            Ok(tonic::Response::new(response.encode_to_vec().into()))
        })
    }
}

/// Takes messages of type `M` and sends encoded ones.
struct Encoded<M>(PhantomData<M>);

impl<M> Default for Encoded<M> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<M: Message + Default + 'static> Codec for Encoded<M> {
    type Encode = Bytes;
    type Decode = M;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self::default()
    }

    fn decoder(&mut self) -> Self {
        Self::default()
    }
}

impl<M> Encoder for Encoded<M> {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.reserve(item.remaining());
        out.put(item);
        Ok(())
    }
}

impl<M: Message + Default> Decoder for Encoded<M> {
    type Item = M;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<M>, Status> {
        let decoded = M::decode(from).map_err(|error| Status::internal(error.to_string()))?;
        Ok(Some(decoded))
    }
}
