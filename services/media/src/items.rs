//! What is known of each file: its row, and how it is named on the wire.

use serde::{Deserialize, Serialize};
use tenon_proto::media::v1::{MediaItem, Thumbnail, UploadHeader};
use tonic::Status;
use uuid::Uuid;

use crate::{
    shards::{Store, StoreError, Table},
    tenancy::Name,
};

/// By [`ItemId`], so in the order of upload.
pub(crate) const ITEMS: Table<Item> = Table::new("items");
/// The uploaded bytes, in the item's folder.
pub(crate) const ORIGINAL: &str = "original";
/// Longest name and content type, in bytes.
const TEXT_BYTES: usize = 255;
/// Rows that one read transaction fetches.
const PAGE: usize = 512;

/// The row of one file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Item {
    pub name: String,
    pub content_type: String,
    /// Bytes.
    pub size: u64,
    /// Lower-case hexadecimal.
    pub sha256: String,
    pub created_unix_ms: u64,
    pub thumbnails: Vec<Thumb>,
}

/// One thumbnail, in the item's folder as `<edge>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Thumb {
    /// The longer side, in pixels.
    pub edge: u32,
    pub width: u32,
    pub height: u32,
    /// Bytes.
    pub size: u64,
}

/// A version 7 UUID: unique, and ordered by time.
#[derive(Clone, Debug)]
pub(crate) struct ItemId(Name);

impl ItemId {
    pub(crate) fn new() -> Self {
        Self(Name::parse(&Uuid::now_v7().to_string()).expect("a UUID is digits, a to f and hyphens"))
    }

    /// Ids are opaque to callers: one that this service never makes is simply not found.
    pub(crate) fn parse(text: &str) -> Result<Self, Status> {
        if text.is_empty() {
            return Err(Status::invalid_argument("the id is empty, expected the id of a media item"));
        }
        match Uuid::try_parse(text) {
            Ok(id) if id.to_string() == text => Name::parse(text).map(Self).ok_or_else(|| not_found(text)),
            _ => Err(not_found(text)),
        }
    }

    /// As it stands in the row's key and names the folder.
    pub(crate) fn name(&self) -> &Name {
        &self.0
    }
}

/// What an uploader says of a file, checked.
#[derive(Clone, Debug)]
pub(crate) struct Header {
    pub name: String,
    pub content_type: String,
}

impl TryFrom<UploadHeader> for Header {
    type Error = Status;

    fn try_from(raw: UploadHeader) -> Result<Self, Status> {
        if raw.name.is_empty() {
            return Err(Status::invalid_argument("the name is empty, expected the file's name"));
        }
        for (field, text) in [("name", &raw.name), ("content_type", &raw.content_type)] {
            if text.len() > TEXT_BYTES || text.chars().any(char::is_control) {
                let message =
                    format!("{field} is too long or has control characters, expected at most {TEXT_BYTES} bytes");
                return Err(Status::invalid_argument(message));
            }
        }
        let content_type =
            if raw.content_type.is_empty() { "application/octet-stream".into() } else { raw.content_type };
        Ok(Self { name: raw.name, content_type })
    }
}

impl Item {
    pub(crate) fn on_wire(self, id: &str) -> MediaItem {
        MediaItem {
            id: id.to_owned(),
            name: self.name,
            content_type: self.content_type,
            size: self.size,
            sha256: self.sha256,
            created_unix_ms: self.created_unix_ms,
        }
    }

    pub(crate) fn thumbnails_on_wire(self, id: &ItemId) -> Vec<Thumbnail> {
        let media_id = id.name().as_str();
        let on_wire = |Thumb { edge, width, height, size }| Thumbnail {
            media_id: media_id.to_owned(),
            edge,
            width,
            height,
            size,
        };
        self.thumbnails.into_iter().map(on_wire).collect()
    }
}

/// One item of the store's tenant.
pub(crate) async fn find(store: &Store, id: &ItemId) -> Result<Item, Status> {
    let row = id.clone();
    let found = store.read(move |rows| rows.get(ITEMS, row.name().as_str())).await.map_err(|e: StoreError| e)?;
    found.ok_or_else(|| not_found(id.name().as_str()))
}

/// All items of the store's tenant, oldest first.
pub(crate) async fn list(store: &Store) -> Result<Vec<MediaItem>, Status> {
    let mut items: Vec<MediaItem> = Vec::new();
    loop {
        let after = items.last().map(|item| item.id.clone());
        let page = store.read(move |rows| rows.list(ITEMS, "", after.as_deref(), PAGE)).await;
        let page: Vec<(String, Item)> = page.map_err(|error: StoreError| error)?;
        let last = page.len() < PAGE;
        items.extend(page.into_iter().map(|(id, item)| item.on_wire(&id)));
        if last {
            return Ok(items);
        }
    }
}

/// Removes an item and its files.
pub(crate) async fn delete(store: &Store, id: ItemId) -> Result<(), Status> {
    let folder = store.folder(id.name());
    store
        .write(move |changes| {
            let name = id.name();
            changes.remove(ITEMS, name.as_str())?.ok_or_else(|| not_found(name.as_str()))?;
            changes.announce(name).map_err(Status::from)
        })
        .await?;
    store.discard(&folder).await;
    Ok(())
}

pub(crate) fn not_found(id: &str) -> Status {
    let id: String = id.chars().take(64).collect();
    Status::not_found(format!("there is no media item {id:?} of this tenant"))
}
