//! One upload, from its first message to its row. Memory is bounded by one message and one decoded picture.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::digest;
use tenon_proto::media::v1::{MediaItem, UploadRequest, upload_request::Part};
use tokio::{fs::File, io::AsyncWriteExt as _, sync::Semaphore};
use tonic::{Code, Status, Streaming};

use crate::{
    items::{Header, ITEMS, Item, ItemId, ORIGINAL, Thumb},
    shards::{Folder, Store, StoreError, blocking},
    thumbnails::{self, NoThumbnails},
};

/// Receives a file. Whatever ends it early, nothing of it is left: neither row nor file.
///
/// To be run as a task of its own: dropped half way it would leave its files until the storage is opened again.
pub(crate) async fn receive(
    store: Store,
    mut parts: Streaming<UploadRequest>,
    painters: Arc<Semaphore>,
) -> Result<MediaItem, Status> {
    let header = match parts.message().await?.and_then(|message| message.part) {
        Some(Part::Header(header)) => Header::try_from(header)?,
        Some(Part::Data(_)) | None => {
            return Err(Status::invalid_argument("the first message is no header, expected name and content type"));
        }
    };
    let id = ItemId::new();
    let folder = store.announce(id.name()).await?;
    match keep(&store, &folder, &id, header, &mut parts, painters).await {
        Ok(item) => Ok(item.on_wire(id.name().as_str())),
        Err(status) => {
            store.discard(&folder).await;
            Err(status)
        }
    }
}

async fn keep(
    store: &Store,
    folder: &Folder,
    id: &ItemId,
    header: Header,
    parts: &mut Streaming<UploadRequest>,
    painters: Arc<Semaphore>,
) -> Result<Item, Status> {
    let (size, sha256) = write(folder, parts).await?;
    let thumbnails = paint(folder, id, painters).await?;
    let Header { name, content_type } = header;
    let created_unix_ms = now_unix_ms();
    let item = Item { name, content_type, size, sha256, created_unix_ms, thumbnails };
    let (complete, row, id) = (folder.clone(), item.clone(), id.clone());
    blocking(move || complete.complete().map_err(StoreError::from)).await?;
    store
        .write(move |changes| {
            changes.put(ITEMS, id.name().as_str(), &row)?;
            changes.settle(id.name())
        })
        .await
        .map_err(|error: StoreError| error)?;
    Ok(item)
}

/// Writes the bytes as they come and returns their number and SHA-256 when they are on the disk.
async fn write(folder: &Folder, parts: &mut Streaming<UploadRequest>) -> Result<(u64, String), Status> {
    let mut file = File::create_new(folder.incoming(ORIGINAL)).await.map_err(StoreError::from)?;
    let mut hash = digest::Context::new(&digest::SHA256);
    let mut size = 0_u64;
    while let Some(message) = parts.message().await.map_err(broken)? {
        let Some(Part::Data(data)) = message.part else {
            return Err(Status::invalid_argument("a message after the header has no data; nothing was stored"));
        };
        hash.update(&data);
        size += data.len() as u64;
        file.write_all(&data).await.map_err(StoreError::from)?;
    }
    file.flush().await.map_err(StoreError::from)?;
    file.sync_all().await.map_err(StoreError::from)?;
    Ok((size, hash.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()))
}

/// Makes the thumbnails, a few uploads at a time. A file without them is a good file, but a full disk is an error.
async fn paint(folder: &Folder, id: &ItemId, painters: Arc<Semaphore>) -> Result<Vec<Thumb>, Status> {
    let turn = painters.acquire_owned().await.map_err(|_| StoreError::Interrupted)?;
    let (folder, item) = (folder.clone(), id.clone());
    let made = blocking(move || {
        let _turn = turn;
        match thumbnails::make(&folder.incoming(ORIGINAL), &folder) {
            Ok(made) => Ok(made),
            Err(NoThumbnails::Write(error)) => Err(StoreError::from(error)),
            Err(NoThumbnails::OtherFormat) => Ok(Vec::new()),
            Err(error @ (NoThumbnails::TooLarge { .. } | NoThumbnails::Undecodable(_))) => {
                tracing::info!(item = %item.name(), error = &error as &dyn std::error::Error, "no thumbnails");
                Ok(Vec::new())
            }
        }
    });
    match made.await {
        // A picture that makes the decoder panic is like one that it cannot decode.
        Err(StoreError::Interrupted) => Ok(Vec::new()),
        made => Ok(made?),
    }
}

/// What the sender, or the mesh for it, ended the stream with.
fn broken(status: Status) -> Status {
    if matches!(status.code(), Code::Unknown | Code::Internal) {
        Status::cancelled("the upload broke off; nothing was stored")
    } else {
        status
    }
}

fn now_unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
