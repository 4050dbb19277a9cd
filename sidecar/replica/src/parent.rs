//! Where a follower gets its stream from.

use std::{pin::Pin, sync::Arc};

use futures_util::Stream;
use tenon_proto::replication::v1::{
    FetchRequest, FetchResponse, FollowRequest, FollowResponse, replication_client::ReplicationClient,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, transport::Channel};

/// The largest message a follower takes: well above what publishers send, so that one large record never stops a kind.
const LARGEST_MESSAGE_BYTES: usize = 64 << 20;

/// What a parent sends on one stream.
pub type Responses = Pin<Box<dyn Stream<Item = Result<FollowResponse, Status>> + Send>>;

/// A source of one kind's stream: a gRPC channel in life, an object in memory in tests of the protocol.
#[tonic::async_trait]
pub trait Parent: Send + Sync + 'static {
    /// What operators know it by: an address. Empty when nothing is known.
    fn name(&self) -> &str {
        ""
    }

    /// Opens a stream. The first of `requests` is `Start`; closing them ends the stream.
    ///
    /// # Errors
    /// The status with which the parent refused, or why it could not be reached.
    async fn follow(&self, requests: mpsc::Receiver<FollowRequest>) -> Result<Responses, Status>;

    /// Asks for single records, as a follower in on-demand mode does. A parent that has no such thing says UNIMPLEMENTED.
    ///
    /// # Errors
    /// The status with which the parent refused, or why it could not be reached.
    async fn fetch(&self, _request: FetchRequest) -> Result<FetchResponse, Status> {
        Err(Status::unimplemented("this parent answers for no single keys"))
    }
}

/// A parent with the name by which [`crate::Status`] shows it.
#[derive(Clone, Debug)]
pub struct Named<P> {
    /// An address, say.
    pub name: Arc<str>,
    /// What is followed.
    pub parent: P,
}

impl<P> Named<P> {
    /// `parent`, known as `name`.
    pub fn new(name: impl Into<Arc<str>>, parent: P) -> Self {
        Self { name: name.into(), parent }
    }
}

#[tonic::async_trait]
impl<P: Parent> Parent for Named<P> {
    fn name(&self) -> &str {
        &self.name
    }

    async fn follow(&self, requests: mpsc::Receiver<FollowRequest>) -> Result<Responses, Status> {
        self.parent.follow(requests).await
    }

    async fn fetch(&self, request: FetchRequest) -> Result<FetchResponse, Status> {
        self.parent.fetch(request).await
    }
}

#[tonic::async_trait]
impl Parent for Channel {
    async fn follow(&self, requests: mpsc::Receiver<FollowRequest>) -> Result<Responses, Status> {
        let mut client = ReplicationClient::new(self.clone()).max_decoding_message_size(LARGEST_MESSAGE_BYTES);
        let response = client.follow(ReceiverStream::new(requests)).await?;
        Ok(Box::pin(response.into_inner()))
    }

    async fn fetch(&self, request: FetchRequest) -> Result<FetchResponse, Status> {
        let mut client = ReplicationClient::new(self.clone()).max_decoding_message_size(LARGEST_MESSAGE_BYTES);
        Ok(client.fetch(request).await?.into_inner())
    }
}
