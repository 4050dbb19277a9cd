//! The audit record of one service: who changed or read what, append-only and hash-chained, in a journal of its own.
//!
//! Who grants something records it first and grants nothing when it cannot be recorded ([`Audit::begin`]). Who takes
//! something away, refuses or reads does not depend on it ([`Audit::note`]). What a change came to is a record of its own,
//! which names the first ([`Begun`]). Never a token, never a private key.
//!
//! `chain` is the hashes and who checks them, `writer` the one task that writes, `service` who serves it.

mod begun;
pub mod chain;
mod recorder;
mod service;
mod writer;

use std::{
    collections::BTreeMap,
    fmt,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use mesh_config::names::TrustDomain;
use mesh_identity::clock;
use prost::Message as _;
use tenon_proto::audit::v1::Record;
use tokio::sync::{mpsc, oneshot};

use crate::{AppendError, Journal, OpenError, Options, ReadError, Store};
pub use begun::{Begun, of_status};
pub use service::{AUDIT_AUTHORIZATION, AuditServer, AuditService};
use writer::{Order, Writer};

/// Events that may wait to be written. Beyond them, who must be recorded waits, and what is only noted is counted.
const WAITING: usize = 4096;
/// Records that are read at once.
const PAGE: usize = 500;
/// Refusals that are recorded at once, and after that every second; others are counted, and the number is in the next one.
/// Whoever may only ask must not fill the disk.
const BURST: u64 = 1_000;
const PER_SECOND: u64 = 5;
/// How long what takes something away waits for its record.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long anything else waits for it: as long as a write of NATS may take, however many wait before it.
const GRANTED_WITHIN: Duration = Duration::from_secs(10);
/// Bytes of each text of a record.
const TEXT: usize = 1_000;
/// Nobody tails this journal: its past is the records themselves.
const PAST: Options = Options { retained_changes: 16, ..Options::DEFAULT };

/// Whose record it is: the service, and the kind of its journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    Identity,
    Policy,
    Tcs,
}

impl Service {
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Policy => "policy",
            Self::Tcs => "tcs",
        }
    }

    const fn kind(self) -> &'static str {
        match self {
            Self::Identity => "audit_identity",
            Self::Policy => "audit_policy",
            Self::Tcs => "audit_tcs",
        }
    }
}

/// What became of what was wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is about to be made: what became of it stands in a later record, unless the process ended in between.
    Begun,
    Done,
    Refused,
    Failed,
    /// Whoever asked went away: it may have been made.
    Unknown,
}

impl Outcome {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Begun => "begun",
            Self::Done => "done",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        }
    }
}

/// What is to be recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    by: String,
    action: String,
    what: String,
    outcome: Outcome,
    of: u64,
    details: BTreeMap<String, String>,
    at_unix_ms: u64,
}

impl Event {
    /// Something done now: `by` whom (a SPIFFE id, "self", "rollout", "folder DIR"), `action` as its RPC is called
    /// (`Tenants/Suspend`) or in kebab case, `what` it was done to.
    #[must_use]
    pub fn new(by: impl Into<String>, action: impl Into<String>, what: impl Into<String>) -> Self {
        let at_unix_ms = u64::try_from(clock::since_epoch().as_millis()).unwrap_or(u64::MAX);
        let details = BTreeMap::new();
        let (by, action, what) = (short(by.into()), short(action.into()), short(what.into()));
        Self { by, action, what, outcome: Outcome::Done, of: 0, details, at_unix_ms }
    }

    /// With something beside it.
    #[must_use]
    pub fn detail(mut self, name: &str, value: impl ToString) -> Self {
        self.details.insert(name.to_owned(), short(value.to_string()));
        self
    }

    /// With what it is done to, where that is known only now.
    #[must_use]
    pub fn about(mut self, what: &str) -> Self {
        self.what = short(what.to_owned());
        self
    }

    /// With another outcome than done.
    #[must_use]
    pub const fn outcome(mut self, outcome: Outcome) -> Self {
        self.outcome = outcome;
        self
    }
}

/// Who asks does not decide how large a record is.
fn short(mut text: String) -> String {
    if text.len() > TEXT {
        let end = (0..=TEXT).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

/// The event is not in the audit record, or it is not known whether it is.
#[derive(Clone, Debug, thiserror::Error)]
#[error("nothing has changed, and nothing is granted: that must be in the audit record first, and {why}")]
pub struct RecordError {
    why: Arc<str>,
    full: bool,
}

impl RecordError {
    fn new(error: &AppendError) -> Self {
        let why = match error {
            AppendError::Full(cause) => {
                format!("no room is left on the disk of its store: free some, then try again: {cause}")
            }
            AppendError::Failed(cause) => format!("its store cannot be written: {cause}"),
            AppendError::Unconfirmed(cause) => format!("its store did not confirm it: {cause}"),
            AppendError::Conflict { .. } | AppendError::Moved { .. } => error.to_string(),
        };
        Self { why: why.into(), full: matches!(error, AppendError::Full(_)) }
    }

    fn slow() -> Self {
        Self { why: "its store does not answer in time".into(), full: false }
    }

    fn ended() -> Self {
        Self { why: "this process is about to end".into(), full: false }
    }

    /// Somebody must make room.
    #[must_use]
    pub const fn disk_is_full(&self) -> bool {
        self.full
    }
}

impl From<RecordError> for tonic::Status {
    fn from(error: RecordError) -> Self {
        if error.full { Self::resource_exhausted(error.to_string()) } else { Self::unavailable(error.to_string()) }
    }
}

/// The audit record of one service, open. Cheap to clone.
#[derive(Clone)]
pub struct Audit {
    service: Service,
    journal: Arc<dyn Journal>,
    orders: mpsc::Sender<Order>,
    /// What was noted and did not fit; the writer records the number.
    lost: Arc<AtomicU64>,
    limited: Arc<Limited>,
}

/// How much of what is only asked is recorded.
#[derive(Debug, Default)]
struct Limited {
    /// How many may be recorded at the second, Unix.
    allowance: Mutex<Option<(u64, u64)>>,
    /// Those that were not since the last that was.
    more: AtomicU64,
}

impl Audit {
    /// Opens the record of `service` in `store`, or begins it; `local` is a folder for what is held of a store that is
    /// elsewhere. One process has an embedded one open.
    ///
    /// # Errors
    /// [`OpenError`]
    pub async fn open(
        service: Service,
        store: &Store,
        trust_domain: &TrustDomain,
        local: &Path,
    ) -> Result<Self, OpenError> {
        let journals = crate::open(store, trust_domain, local, PAST).await?;
        Ok(Self::on(service, journals.kind(service.kind()).await?))
    }

    /// The store of the audit record of whom `store` is: beside an embedded one, in a file of the same name with `.audit`
    /// behind; it stays when that one is replaced by a backup.
    #[must_use]
    pub fn beside(store: &Store) -> Store {
        match store {
            Store::Embedded(file) => {
                let mut file = file.clone().into_os_string();
                file.push(".audit");
                Store::Embedded(file.into())
            }
            Store::Nats(servers) => Store::Nats(servers.clone()),
        }
    }

    /// On a journal that is open, of which the records are the only ones.
    #[must_use]
    pub fn on(service: Service, journal: Arc<dyn Journal>) -> Self {
        let (orders, waiting) = mpsc::channel(WAITING);
        let lost = Arc::<AtomicU64>::default();
        tokio::spawn(Writer::new(service, Arc::clone(&journal), waiting, Arc::clone(&lost)).run());
        Self { service, journal, orders, lost, limited: Arc::default() }
    }

    /// Records an event. When it returns, the record is durable; its sequence.
    ///
    /// # Errors
    /// It cannot be written. Whoever grants something grants nothing then.
    pub async fn record(&self, event: Event) -> Result<u64, RecordError> {
        let (reply, answer) = oneshot::channel();
        self.orders.send(Order::Write(event, Some(reply))).await.map_err(|_| RecordError::ended())?;
        answer.await.unwrap_or_else(|_| Err(RecordError::ended()))
    }

    /// As [`Self::record`], for what must happen whether or not it can be recorded, and without waiting. It is tried again
    /// until it succeeds; what is too much to wait is counted, and the number recorded.
    pub fn note(&self, event: Event) {
        if self.orders.try_send(Order::Write(event, None)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// As [`Self::note`], for what anybody may cause as often as it likes: refusals. Beyond 1,000 at once, and 5 a second
    /// after that, they are counted: the next one has the number as `more`.
    pub fn note_limited(&self, event: Event) {
        if !self.limited.take(event.at_unix_ms / 1000) {
            self.limited.more.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let more = self.limited.more.swap(0, Ordering::Relaxed);
        self.note(if more > 0 { event.detail("more", more) } else { event });
    }

    /// Records that a change is about to be made. One that is recorded when nobody waits any more is of unknown outcome.
    ///
    /// # Errors
    /// As [`Self::record`], and when its store takes longer than 10 s.
    pub async fn begin(&self, event: Event) -> Result<Begun, RecordError> {
        let (reply, answer) = oneshot::channel();
        let (audit, event) = (self.clone(), event.outcome(Outcome::Begun));
        tokio::spawn(async move {
            let begun = audit.record(event.clone()).await;
            let begun = begun.map(|of| Begun { audit: audit.clone(), event: Some(Event { of, ..event }) });
            drop(reply.send(begun));
        });
        let answer = tokio::time::timeout(GRANTED_WITHIN, answer).await.map_err(|_| RecordError::slow())?;
        answer.unwrap_or_else(|_| Err(RecordError::ended()))
    }

    /// As [`Self::begin`], for what takes something away: it is made whether or not it can be recorded first.
    pub async fn begin_anyway(&self, event: Event) -> Begun {
        let begun = tokio::time::timeout(PATIENCE, self.begin(event.clone())).await;
        match begun.unwrap_or_else(|_| Err(RecordError::slow())) {
            Ok(begun) => begun,
            Err(error) => {
                tracing::error!(%error, action = event.action, what = event.what, "done, and not in the audit record");
                Begun { audit: self.clone(), event: Some(event) }
            }
        }
    }

    /// Where the record stands.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn head(&self) -> Result<chain::Head, ReadError> {
        writer::head(&*self.journal, self.service).await
    }

    /// The next records after one, in their order, none at the end. What does not decode is one with a sequence of 0.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn after(&self, cursor: &mut Cursor) -> Result<Vec<Record>, ReadError> {
        let page = self.journal.records_after(&cursor.0, PAGE).await?;
        if let Some(last) = page.last() {
            cursor.0.clone_from(&last.key);
        }
        Ok(page.into_iter().map(|found| Record::decode(found.value).unwrap_or_default()).collect())
    }

    /// Whose record it is.
    #[must_use]
    pub const fn service(&self) -> Service {
        self.service
    }

    /// Waits until all that was noted is written, or once failed to be, and ends the writing: nothing is recorded any more.
    pub async fn end(self) {
        let (reply, ended) = oneshot::channel();
        if self.orders.send(Order::End(reply)).await.is_ok() {
            let _ = ended.await;
        }
    }
}

impl fmt::Debug for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Audit").field("service", &self.service).finish_non_exhaustive()
    }
}

impl Limited {
    fn take(&self, second: u64) -> bool {
        let mut allowance = self.allowance.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, left) = allowance.unwrap_or((second, BURST));
        let left = left.saturating_add(second.saturating_sub(since).saturating_mul(PER_SECOND)).min(BURST);
        *allowance = Some((second.max(since), left.saturating_sub(1)));
        left > 0
    }
}

/// How far somebody has read.
#[derive(Clone, Debug)]
pub struct Cursor(String);

impl Default for Cursor {
    /// Before the first record.
    fn default() -> Self {
        Self(writer::RECORDS.to_owned())
    }
}
