//! The RPCs: each finds its tenant's store, does one thing, and is accounted for.

use std::{io, path::PathBuf, pin::Pin, sync::Arc};

use bytes::BytesMut;
use futures_util::{Stream, TryFutureExt as _, stream};
use tenon_proto::media::v1::{
    DeleteRequest, DeleteResponse, DownloadRequest, DownloadResponse, DownloadThumbnailRequest, GetRequest,
    ListRequest, ListResponse, ListThumbnailsRequest, ListThumbnailsResponse, MediaItem, UploadRequest,
    media_server::Media, thumbnails_server::Thumbnails,
};
use tokio::{fs::File, io::AsyncReadExt as _, sync::Semaphore};
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap};

use crate::{
    calls::Call,
    items::{self, ItemId, ORIGINAL},
    shards::{Shards, Store, StoreError},
    tenancy::Tenancy,
    upload,
};

/// The product whose shard holds the rows of this service.
pub const PRODUCT: &str = "media";
/// Bytes in one message of a download.
const CHUNK_BYTES: usize = 64 << 10;
/// Pictures decoded at a time: they take the most memory.
const PAINTERS: usize = 2;

type Answer<T> = Result<Response<T>, Status>;
type Chunks = Pin<Box<dyn Stream<Item = Result<DownloadResponse, Status>> + Send>>;

/// Both gRPC services of this product. Cheap to clone.
#[derive(Clone)]
pub struct MediaService {
    shards: Shards,
    /// Uploads run here, so that they end in order when their caller goes away.
    uploads: TaskTracker,
    painters: Arc<Semaphore>,
}

impl MediaService {
    /// Serves what is in `shards`. Whoever stops the service waits for `uploads` afterwards.
    pub fn new(shards: Shards, uploads: TaskTracker) -> Self {
        Self { shards, uploads, painters: Arc::new(Semaphore::new(PAINTERS)) }
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
impl Media for MediaService {
    type DownloadStream = Chunks;

    async fn upload(&self, request: Request<Streaming<UploadRequest>>) -> Answer<MediaItem> {
        let call = Call::start("media.v1.Media/Upload", request.metadata());
        let stored = async {
            let store = self.store_to_write(request.metadata()).await?;
            let receiving = upload::receive(store, request.into_inner(), self.painters.clone());
            let task = self.uploads.spawn(receiving);
            task.await.map_err(|_| StoreError::Interrupted)?.map(Response::new)
        };
        call.end(stored.await)
    }

    async fn get(&self, request: Request<GetRequest>) -> Answer<MediaItem> {
        let call = Call::start("media.v1.Media/Get", request.metadata());
        let found = async {
            let store = self.store(request.metadata()).await?;
            let id = ItemId::parse(&request.get_ref().id)?;
            let item = items::find(&store, &id).await?;
            Ok(Response::new(item.on_wire(id.name().as_str())))
        };
        call.end(found.await)
    }

    async fn list(&self, request: Request<ListRequest>) -> Answer<ListResponse> {
        let call = Call::start("media.v1.Media/List", request.metadata());
        let listed = self.store(request.metadata()).and_then(|store| async move { items::list(&store).await });
        call.end(listed.await.map(|items| Response::new(ListResponse { items })))
    }

    async fn download(&self, request: Request<DownloadRequest>) -> Answer<Chunks> {
        let call = Call::start("media.v1.Media/Download", request.metadata());
        let begun = async {
            let store = self.store(request.metadata()).await?;
            let id = ItemId::parse(&request.get_ref().id)?;
            items::find(&store, &id).await?;
            chunks(&id, store.folder(id.name()).file(ORIGINAL)).await
        };
        call.end(begun.await)
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Answer<DeleteResponse> {
        let call = Call::start("media.v1.Media/Delete", request.metadata());
        let deleted = async {
            let store = self.store_to_write(request.metadata()).await?;
            let id = ItemId::parse(&request.get_ref().id)?;
            let task = self.uploads.spawn(async move { items::delete(&store, id).await });
            task.await.map_err(|_| StoreError::Interrupted)??;
            Ok(Response::new(DeleteResponse {}))
        };
        call.end(deleted.await)
    }
}

#[tonic::async_trait]
impl Thumbnails for MediaService {
    type DownloadStream = Chunks;

    async fn list(&self, request: Request<ListThumbnailsRequest>) -> Answer<ListThumbnailsResponse> {
        let call = Call::start("media.v1.Thumbnails/List", request.metadata());
        let listed = async {
            let store = self.store(request.metadata()).await?;
            let id = ItemId::parse(&request.get_ref().media_id)?;
            let thumbnails = items::find(&store, &id).await?.thumbnails_on_wire(&id);
            Ok(Response::new(ListThumbnailsResponse { thumbnails }))
        };
        call.end(listed.await)
    }

    async fn download(&self, request: Request<DownloadThumbnailRequest>) -> Answer<Chunks> {
        let call = Call::start("media.v1.Thumbnails/Download", request.metadata());
        let begun = async {
            let store = self.store(request.metadata()).await?;
            let DownloadThumbnailRequest { media_id, edge } = request.get_ref();
            let id = ItemId::parse(media_id)?;
            let item = items::find(&store, &id).await?;
            if !item.thumbnails.iter().any(|thumbnail| thumbnail.edge == *edge) {
                return Err(Status::not_found(format!("this media item has no thumbnail with edge {edge}")));
            }
            chunks(&id, store.folder(id.name()).file(&edge.to_string())).await
        };
        call.end(begun.await)
    }
}

/// Reads a file piece by piece, as fast as the caller takes it.
async fn chunks(id: &ItemId, path: PathBuf) -> Answer<Chunks> {
    let file = match File::open(path).await {
        // Deleted since its row was read.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(items::not_found(id.name().as_str())),
        opened => opened.map_err(StoreError::from)?,
    };
    let chunks = stream::try_unfold(file, |mut file| async move {
        let mut data = BytesMut::with_capacity(CHUNK_BYTES);
        while data.len() < CHUNK_BYTES {
            let room = CHUNK_BYTES - data.len();
            if (&mut file).take(room as u64).read_buf(&mut data).await.map_err(StoreError::from)? == 0 {
                break;
            }
        }
        Ok((!data.is_empty()).then(|| (DownloadResponse { data: data.freeze() }, file)))
    });
    Ok(Response::new(Box::pin(chunks)))
}
