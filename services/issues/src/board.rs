//! The rows of this service and what may be done with them, each in one transaction of one tenant.

use std::time::{SystemTime, UNIX_EPOCH};

use media::shards::{Changes, Rows, Store, StoreError, Table};
use serde::{Deserialize, Serialize};
use tenon_proto::issues::v1 as wire;
use tonic::Status;

use crate::key::{IssueKey, Project};

/// By [`IssueKey::row`].
const ISSUES: Table<IssueRow> = Table::new("issues");
/// The last number given, by project.
const COUNTERS: Table<u64> = Table::new("counters");
/// By [`IssueKey::part`].
const COMMENTS: Table<CommentRow> = Table::new("comments");
/// By [`IssueKey::part`].
const ATTACHMENTS: Table<AttachmentRow> = Table::new("attachments");

/// Issues that one read transaction fetches.
const PAGE: usize = 256;
/// Longest summary and longest text, in bytes.
const SUMMARY_BYTES: usize = 500;
const TEXT_BYTES: usize = 64 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    Open,
    InProgress,
    Done,
}

impl State {
    fn parse(text: &str) -> Result<Self, Status> {
        match text {
            "open" => Ok(Self::Open),
            "in-progress" => Ok(Self::InProgress),
            "done" => Ok(Self::Done),
            _ => Err(Status::invalid_argument("not a state, expected open, in-progress or done")),
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::InProgress => "in-progress",
            Self::Done => "done",
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct IssueRow {
    summary: String,
    description: String,
    state: State,
    created_unix_ms: u64,
    updated_unix_ms: u64,
    /// Numbers given so far.
    comments: u64,
    attachments: u64,
}

impl IssueRow {
    fn on_wire(self, key: &IssueKey) -> wire::Issue {
        wire::Issue {
            key: key.to_string(),
            project: key.project.as_str().to_owned(),
            summary: self.summary,
            description: self.description,
            state: self.state.as_str().to_owned(),
            created_unix_ms: self.created_unix_ms,
            updated_unix_ms: self.updated_unix_ms,
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct CommentRow {
    number: u64,
    text: String,
    created_unix_ms: u64,
}

/// The link to a file that `media` keeps.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct AttachmentRow {
    media_id: String,
    name: String,
    /// Bytes.
    size: u64,
}

/// One page of issues and where the next begins.
pub(crate) struct Page {
    pub issues: Vec<wire::Issue>,
    /// The last row of this page; none when there is no further page.
    pub after: Option<String>,
}

pub(crate) async fn create(store: &Store, request: wire::CreateRequest) -> Result<wire::Issue, Status> {
    let project = Project::parse(&request.project)?;
    bounded("summary", &request.summary, 1, SUMMARY_BYTES)?;
    bounded("description", &request.description, 0, TEXT_BYTES)?;
    let now = now_unix_ms();
    let row = IssueRow {
        summary: request.summary,
        description: request.description,
        state: State::Open,
        created_unix_ms: now,
        updated_unix_ms: now,
        comments: 0,
        attachments: 0,
    };
    let create = move |changes: &mut Changes<'_>| {
        let number = changes.get(COUNTERS, project.as_str())?.unwrap_or(0) + 1;
        changes.put(COUNTERS, project.as_str(), &number)?;
        let key = IssueKey { project, number };
        changes.put(ISSUES, &key.row(), &row)?;
        Ok(row.on_wire(&key))
    };
    store.write(create).await
}

pub(crate) async fn get(store: &Store, key: IssueKey) -> Result<wire::Issue, Status> {
    store.read(move |rows| Ok(read(rows, &key)?.on_wire(&key))).await
}

/// The issues of one project, or of all, after a row.
pub(crate) async fn page(store: &Store, project: Option<Project>, after: Option<String>) -> Result<Page, Status> {
    let prefix = project.map(|project| project.prefix()).unwrap_or_default();
    let read = move |rows: &Rows<'_>| rows.list(ISSUES, &prefix, after.as_deref(), PAGE);
    let found: Vec<(String, IssueRow)> = store.read(read).await.map_err(|error: StoreError| error)?;
    let after = if found.len() < PAGE { None } else { found.last().map(|(row, _)| row.clone()) };
    let issues = found.into_iter().map(|(row, issue)| Ok(issue.on_wire(&key_of(&row)?)));
    Ok(Page { issues: issues.collect::<Result<_, Status>>()?, after })
}

pub(crate) async fn transition(store: &Store, key: IssueKey, state: &str) -> Result<wire::Issue, Status> {
    let state = State::parse(state)?;
    let change = move |changes: &mut Changes<'_>| {
        let mut issue = read_to_change(changes, &key)?;
        issue.state = state;
        issue.updated_unix_ms = now_unix_ms();
        changes.put(ISSUES, &key.row(), &issue)?;
        Ok(issue.on_wire(&key))
    };
    store.write(change).await
}

pub(crate) async fn add_comment(store: &Store, key: IssueKey, text: String) -> Result<wire::Comment, Status> {
    bounded("text", &text, 1, TEXT_BYTES)?;
    let add = move |changes: &mut Changes<'_>| {
        let mut issue = read_to_change(changes, &key)?;
        issue.comments += 1;
        issue.updated_unix_ms = now_unix_ms();
        let comment = CommentRow { number: issue.comments, text, created_unix_ms: issue.updated_unix_ms };
        changes.put(COMMENTS, &key.part(comment.number), &comment)?;
        changes.put(ISSUES, &key.row(), &issue)?;
        let CommentRow { number, text, created_unix_ms } = comment;
        Ok(wire::Comment { number, text, created_unix_ms })
    };
    store.write(add).await
}

pub(crate) async fn comments(store: &Store, key: IssueKey) -> Result<Vec<wire::Comment>, Status> {
    let read = move |rows: &Rows<'_>| {
        read(rows, &key)?;
        let found = rows.list(COMMENTS, &key.parts(), None, usize::MAX)?.into_iter();
        let on_wire =
            |(_, CommentRow { number, text, created_unix_ms })| wire::Comment { number, text, created_unix_ms };
        Ok(found.map(on_wire).collect())
    };
    store.read(read).await
}

/// Links a file of `media` to an issue.
pub(crate) async fn link(
    store: &Store,
    key: IssueKey,
    media_id: String,
    name: String,
    size: u64,
) -> Result<wire::Attachment, Status> {
    let link = move |changes: &mut Changes<'_>| {
        let mut issue = read_to_change(changes, &key)?;
        issue.attachments += 1;
        issue.updated_unix_ms = now_unix_ms();
        let attachment = AttachmentRow { media_id, name, size };
        changes.put(ATTACHMENTS, &key.part(issue.attachments), &attachment)?;
        changes.put(ISSUES, &key.row(), &issue)?;
        Ok(attachment_on_wire(&key, attachment))
    };
    store.write(link).await
}

pub(crate) async fn attachments(store: &Store, key: IssueKey) -> Result<Vec<wire::Attachment>, Status> {
    let read = move |rows: &Rows<'_>| {
        read(rows, &key)?;
        let found = rows.list(ATTACHMENTS, &key.parts(), None, usize::MAX)?.into_iter();
        Ok(found.map(|(_, attachment)| attachment_on_wire(&key, attachment)).collect())
    };
    store.read(read).await
}

fn attachment_on_wire(key: &IssueKey, row: AttachmentRow) -> wire::Attachment {
    let AttachmentRow { media_id, name, size } = row;
    wire::Attachment { issue_key: key.to_string(), media_id, name, size }
}

fn read(rows: &Rows<'_>, key: &IssueKey) -> Result<IssueRow, Status> {
    rows.get(ISSUES, &key.row())?.ok_or_else(|| not_found(key))
}

fn read_to_change(changes: &Changes<'_>, key: &IssueKey) -> Result<IssueRow, Status> {
    changes.get(ISSUES, &key.row())?.ok_or_else(|| not_found(key))
}

fn not_found(key: &IssueKey) -> Status {
    Status::not_found(format!("there is no issue {key} of this tenant"))
}

/// Reads the key back from the name of a row.
fn key_of(row: &str) -> Result<IssueKey, Status> {
    let parts = row.split_once('-').and_then(|(project, number)| Some((project, number.parse().ok()?)));
    let (project, number) = parts.ok_or_else(|| Status::data_loss("an issue has an unreadable key"))?;
    Ok(IssueKey { project: Project::parse(project)?, number })
}

fn bounded(field: &str, text: &str, least: usize, most: usize) -> Result<(), Status> {
    if (least..=most).contains(&text.len()) {
        return Ok(());
    }
    let length = text.len();
    Err(Status::invalid_argument(format!("{field} has {length} bytes, expected {least} to {most}")))
}

fn now_unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
