//! The RPCs: each finds its tenant's store, does one thing, and is accounted for.

use std::{pin::Pin, time::Instant};

use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};
use media::{
    calls::Call,
    shards::{Shards, Store, StoreError},
    tenancy::Tenancy,
};
use tenon_proto::{
    issues::v1::{
        AddCommentRequest, AttachRequest, Attachment, Comment, CreateRequest, GetRequest, Issue,
        ListAttachmentsRequest, ListAttachmentsResponse, ListCommentsRequest, ListCommentsResponse, ListRequest,
        TransitionRequest, issues_server::Issues,
    },
    media::v1::media_client::MediaClient,
};
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap, transport::Channel};

use crate::{
    attach::Attach,
    board,
    key::{IssueKey, Project},
    outbound::{Onward, Outbound},
};

/// The product whose shard holds the rows of this service.
pub const PRODUCT: &str = "issues";

type Answer<T> = Result<Response<T>, Status>;

/// The gRPC service of this product.
pub struct IssuesService {
    shards: Shards,
    outbound: Outbound,
    /// One connection to the sidecar, shared by all calls.
    media: MediaClient<Channel>,
    /// Attachments run here, so that they end in order when their caller goes away.
    attaching: TaskTracker,
}

impl IssuesService {
    /// Serves what is in `shards`. Whoever stops the service waits for `attaching` afterwards.
    pub fn new(shards: Shards, outbound: Outbound, attaching: TaskTracker) -> Self {
        Self { shards, media: outbound.media(), outbound, attaching }
    }

    async fn store(&self, metadata: &MetadataMap) -> Result<Store, Status> {
        let tenancy = Tenancy::of(PRODUCT, metadata)?;
        Ok(self.shards.store(tenancy).await?)
    }

    /// For what changes rows.
    async fn store_to_write(&self, metadata: &MetadataMap) -> Result<Store, Status> {
        let tenancy = Tenancy::for_writing(PRODUCT, metadata)?;
        Ok(self.shards.store(tenancy).await?)
    }
}

#[tonic::async_trait]
impl Issues for IssuesService {
    type ListStream = Pin<Box<dyn Stream<Item = Result<Issue, Status>> + Send>>;

    async fn create(&self, request: Request<CreateRequest>) -> Answer<Issue> {
        let call = Call::start("issues.v1.Issues/Create", request.metadata());
        let created = async {
            let store = self.store_to_write(request.metadata()).await?;
            board::create(&store, request.into_inner()).await.map(Response::new)
        };
        call.end(created.await)
    }

    async fn get(&self, request: Request<GetRequest>) -> Answer<Issue> {
        let call = Call::start("issues.v1.Issues/Get", request.metadata());
        let found = async {
            let store = self.store(request.metadata()).await?;
            board::get(&store, IssueKey::parse(&request.get_ref().key)?).await.map(Response::new)
        };
        call.end(found.await)
    }

    async fn list(&self, request: Request<ListRequest>) -> Answer<Self::ListStream> {
        let call = Call::start("issues.v1.Issues/List", request.metadata());
        let begun = async {
            let store = self.store(request.metadata()).await?;
            let project = Some(request.get_ref().project.as_str()).filter(|project| !project.is_empty());
            let project = project.map(Project::parse).transpose()?;
            // The first page is read at once, so that a failure answers the call.
            let first = board::page(&store, project.clone(), None).await?;
            let issues = stream::try_unfold(Some(first), move |page| {
                let (store, project) = (store.clone(), project.clone());
                async move {
                    let Some(page) = page else { return Ok::<_, Status>(None) };
                    let next = match page.after {
                        None => None,
                        after => Some(board::page(&store, project, after).await?),
                    };
                    Ok(Some((stream::iter(page.issues).map(Ok), next)))
                }
            });
            Ok(Response::new(Box::pin(issues.try_flatten()) as Self::ListStream))
        };
        call.end(begun.await)
    }

    async fn transition(&self, request: Request<TransitionRequest>) -> Answer<Issue> {
        let call = Call::start("issues.v1.Issues/Transition", request.metadata());
        let changed = async {
            let store = self.store_to_write(request.metadata()).await?;
            let TransitionRequest { key, state } = request.get_ref();
            board::transition(&store, IssueKey::parse(key)?, state).await.map(Response::new)
        };
        call.end(changed.await)
    }

    async fn add_comment(&self, request: Request<AddCommentRequest>) -> Answer<Comment> {
        let call = Call::start("issues.v1.Issues/AddComment", request.metadata());
        let added = async {
            let store = self.store_to_write(request.metadata()).await?;
            let AddCommentRequest { key, text } = request.into_inner();
            board::add_comment(&store, IssueKey::parse(&key)?, text).await.map(Response::new)
        };
        call.end(added.await)
    }

    async fn list_comments(&self, request: Request<ListCommentsRequest>) -> Answer<ListCommentsResponse> {
        let call = Call::start("issues.v1.Issues/ListComments", request.metadata());
        let listed = async {
            let store = self.store(request.metadata()).await?;
            let comments = board::comments(&store, IssueKey::parse(&request.get_ref().key)?).await?;
            Ok(Response::new(ListCommentsResponse { comments }))
        };
        call.end(listed.await)
    }

    async fn attach(&self, request: Request<Streaming<AttachRequest>>) -> Answer<Attachment> {
        let call = Call::start("issues.v1.Issues/Attach", request.metadata());
        let onward = Onward::of(request.metadata(), Instant::now());
        let attached = async {
            let store = self.store_to_write(request.metadata()).await?;
            let attach = Attach { store, outbound: self.outbound.clone(), media: self.media.clone(), onward };
            let task = self.attaching.spawn(attach.run(request.into_inner()));
            task.await.map_err(|_| StoreError::Interrupted)?.map(Response::new)
        };
        call.end(attached.await)
    }

    async fn list_attachments(&self, request: Request<ListAttachmentsRequest>) -> Answer<ListAttachmentsResponse> {
        let call = Call::start("issues.v1.Issues/ListAttachments", request.metadata());
        let listed = async {
            let store = self.store(request.metadata()).await?;
            let attachments = board::attachments(&store, IssueKey::parse(&request.get_ref().key)?).await?;
            Ok(Response::new(ListAttachmentsResponse { attachments }))
        };
        call.end(listed.await)
    }
}
