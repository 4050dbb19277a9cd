//! Attaching a file: the caller's stream becomes an upload to `media`, message by message, and then a link.
//!
//! Nothing is buffered: the next message is taken from the caller when the sidecar takes the one before.

use std::{
    sync::{Arc, OnceLock},
    time::Instant,
};

use futures_util::{Stream, StreamExt as _, stream};
use media::shards::Store;
use tenon_proto::{
    issues::v1::{AttachHeader, AttachRequest, Attachment, attach_request},
    media::v1::{
        DeleteRequest, MediaItem, UploadHeader, UploadRequest, media_client::MediaClient, upload_request::Part,
    },
};
use tonic::{Code, Status, Streaming, transport::Channel};

use crate::{
    board,
    key::IssueKey,
    outbound::{Onward, Outbound},
};

/// What an attachment needs beside the caller's stream.
pub(crate) struct Attach {
    pub store: Store,
    pub outbound: Outbound,
    pub media: MediaClient<Channel>,
    pub onward: Onward,
}

impl Attach {
    /// Stores and links one file, or neither. To be run as a task of its own, so that a file which is stored when the
    /// caller goes away is still linked.
    pub(crate) async fn run(mut self, mut parts: Streaming<AttachRequest>) -> Result<Attachment, Status> {
        let header = match parts.message().await?.and_then(|message| message.part) {
            Some(attach_request::Part::Header(header)) => header,
            Some(attach_request::Part::Data(_)) | None => {
                return Err(Status::invalid_argument("the first message is no header, expected key and name"));
            }
        };
        let key = IssueKey::parse(&header.key)?;
        board::get(&self.store, key.clone()).await?;
        let item = self.upload(header, parts).await?;
        let id = item.id.clone();
        match board::link(&self.store, key, item.id, item.name, item.size).await {
            Ok(attachment) => Ok(attachment),
            Err(status) => {
                self.take_back(id).await;
                Err(status)
            }
        }
    }

    async fn upload(&mut self, header: AttachHeader, parts: Streaming<AttachRequest>) -> Result<MediaItem, Status> {
        let broken = Arc::new(OnceLock::new());
        let upload = as_upload(header, parts, broken.clone());
        let answer = self.media.upload(self.onward.request(upload, Instant::now())).await;
        if let Some(broken) = broken.get() {
            return Err(broken.clone());
        }
        answer.map(tonic::Response::into_inner).map_err(|status| self.outbound.failed(&status))
    }

    /// Deletes a stored file that could not be linked.
    async fn take_back(&mut self, id: String) {
        let request = self.onward.request(DeleteRequest { id: id.clone() }, Instant::now());
        if let Err(status) = self.media.delete(request).await {
            tracing::warn!(media_id = id, code = ?status.code(), message = status.message(), "a file is stored but linked nowhere");
        }
    }
}

/// Turns the caller's messages into those of an upload.
///
/// A stream of requests can only end, not fail, and an upload that ends is complete. So when the caller's stream breaks, the
/// upload gets a message without content, which `media` refuses together with all that came before, and `broken` says why.
fn as_upload(
    header: AttachHeader,
    parts: Streaming<AttachRequest>,
    broken: Arc<OnceLock<Status>>,
) -> impl Stream<Item = UploadRequest> + Send + 'static {
    let AttachHeader { name, content_type, .. } = header;
    let first = UploadRequest { part: Some(Part::Header(UploadHeader { name, content_type })) };
    let rest = stream::unfold(Some(parts), move |parts| {
        let broken = broken.clone();
        async move {
            let mut parts = parts?;
            let reason = match parts.message().await {
                Ok(None) => return None,
                Ok(Some(AttachRequest { part: Some(attach_request::Part::Data(data)) })) => {
                    return Some((UploadRequest { part: Some(Part::Data(data)) }, Some(parts)));
                }
                Ok(Some(_)) => Status::invalid_argument("a message after the header has no data; nothing was stored"),
                Err(status) if matches!(status.code(), Code::Unknown | Code::Internal) => {
                    Status::cancelled("the upload broke off; nothing was stored")
                }
                Err(status) => status,
            };
            // It is set here only, and only once: the stream ends with this message.
            let _ = broken.set(reason);
            Some((UploadRequest { part: None }, None))
        }
    });
    stream::once(async { first }).chain(rest)
}
