//! The one task of a process that writes its audit record: what waits is written together, so that many at once cost one
//! write of the disk. Where other processes write the same chain (NATS), each goes on from what the others wrote.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use prost::Message as _;
use tenon_proto::audit::v1::{HeadResponse, Record};
use tokio::sync::{mpsc, oneshot};

use super::{
    Event, RecordError, Service, WAITING,
    chain::{self, Head},
};
use crate::{AppendError, Expected, Journal, Position, ReadError, Write};

/// The key of where the record stands: what would be missing if its end were cut off.
const HEAD: &str = "head";
/// Before the keys of all records.
pub(super) const RECORDS: &str = "record/";
/// Events that are written together at most.
const BATCH: usize = 256;
/// How often others may have written meanwhile.
const TRIES: usize = 50;
/// What stands in the way when all of them were in vain.
const UNSETTLED: &str =
    "others write it all the time, or its head does not fit its records: `tenon audit verify` says which record is bad";
/// Until what is noted is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// A line in the log says where the record stands after so many.
const SAID_EVERY: u64 = 1_000;

/// What the task is told.
#[derive(Debug)]
pub(super) enum Order {
    /// With whom waits for it; nobody for what is only noted.
    Write(Event, Option<oneshot::Sender<Result<u64, RecordError>>>),
    End(oneshot::Sender<()>),
}

type Waiting = (Event, Option<oneshot::Sender<Result<u64, RecordError>>>);

pub(super) struct Writer {
    service: Service,
    journal: Arc<dyn Journal>,
    orders: mpsc::Receiver<Order>,
    lost: Arc<AtomicU64>,
    /// Where the chain ends, and the position of the journal at which it does; absent when that must be read.
    head: Option<(Position, Head)>,
    /// What is noted and could not be written yet.
    noted: VecDeque<Event>,
    said: u64,
}

impl Writer {
    pub(super) fn new(
        service: Service,
        journal: Arc<dyn Journal>,
        orders: mpsc::Receiver<Order>,
        lost: Arc<AtomicU64>,
    ) -> Self {
        Self { service, journal, orders, lost, head: None, noted: VecDeque::new(), said: 0 }
    }

    /// Until it is told to end, or nobody is left who could tell it anything.
    pub(super) async fn run(mut self) {
        loop {
            let first = tokio::select! {
                order = self.orders.recv() => order,
                () = tokio::time::sleep(AGAIN), if !self.noted.is_empty() => {
                    self.write(Vec::new()).await;
                    continue;
                }
            };
            let Some(first) = first else {
                self.write(Vec::new()).await;
                return;
            };
            let (mut batch, mut next) = (Vec::new(), Some(first));
            let mut ended = None;
            while let Some(order) = next {
                match order {
                    Order::Write(event, reply) => batch.push((event, reply)),
                    Order::End(reply) => ended = Some(reply),
                }
                next = if batch.len() < BATCH && ended.is_none() { self.orders.try_recv().ok() } else { None };
            }
            self.write(batch).await;
            if let Some(ended) = ended {
                // The store is free for the next process when this is heard.
                drop(self);
                let _ = ended.send(());
                return;
            }
        }
    }

    /// Writes all that is noted and all of `batch`, or none of it: who waits is told so, and the rest is kept.
    async fn write(&mut self, batch: Vec<Waiting>) {
        let mut all: Vec<Waiting> = Vec::new();
        let lost = self.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            all.push((Event::new("self", "events-lost", lost.to_string()), None));
        }
        all.extend(self.noted.drain(..).map(|event| (event, None)));
        all.extend(batch);
        if all.is_empty() {
            return;
        }
        match self.chain(&all).await {
            Ok(first) => {
                for (sequence, (_, reply)) in (first..).zip(all) {
                    reply.map(|reply| reply.send(Ok(sequence)));
                }
            }
            Err(error) => {
                tracing::error!(service = self.service.name(), %error, "the audit record cannot be written");
                // Said anew the next time: it must not take the place of what happened.
                self.lost.fetch_add(lost, Ordering::Relaxed);
                for (event, reply) in all.into_iter().skip(usize::from(lost > 0)) {
                    match reply {
                        Some(reply) => drop(reply.send(Err(error.clone()))),
                        None if self.noted.len() < WAITING => self.noted.push_back(event),
                        None => drop(self.lost.fetch_add(1, Ordering::Relaxed)),
                    }
                }
            }
        }
    }

    /// Adds records for all events to the chain. The sequence of the first.
    async fn chain(&mut self, events: &[Waiting]) -> Result<u64, RecordError> {
        let unreadable = |ReadError(cause): ReadError| RecordError::new(&AppendError::Failed(cause));
        for _ in 0..TRIES {
            let (at, before) = match self.head {
                Some(head) => head,
                None => {
                    // The position first: what is written after it makes the condition fail.
                    let at = self.journal.head().await.map_err(unreadable)?;
                    (at, head(&*self.journal, self.service).await.map_err(unreadable)?)
                }
            };
            let (writes, after) = self.drafted(before, events);
            let first = before.sequence + 1;
            let first_value = writes.first().and_then(|write| write.value.clone());
            self.head = None;
            match self.journal.append_at(at, writes).await {
                Ok(position) => {
                    self.head = Some((position, after));
                    self.say(after);
                    return Ok(first);
                }
                Err(AppendError::Moved { .. } | AppendError::Conflict { .. }) => {}
                Err(error @ AppendError::Unconfirmed(_)) => {
                    // Which may have been made: then it is ours, to the bit.
                    let found = self.journal.get(&key(first)).await.map_err(unreadable)?;
                    if found.is_some_and(|found| Some(found.value) == first_value) {
                        return Ok(first);
                    }
                    return Err(RecordError::new(&error));
                }
                Err(error @ (AppendError::Full(_) | AppendError::Failed(_))) => return Err(RecordError::new(&error)),
            }
        }
        Err(RecordError::new(&AppendError::Failed(UNSETTLED.into())))
    }

    fn drafted(&self, before: Head, events: &[Waiting]) -> (Vec<Write>, Head) {
        let mut head = before;
        let mut writes = Vec::with_capacity(events.len() + 1);
        for (event, _) in events {
            let mut record = Record {
                sequence: head.sequence + 1,
                at_unix_ms: event.at_unix_ms,
                service: self.service.name().to_owned(),
                by: event.by.clone(),
                action: event.action.clone(),
                what: event.what.clone(),
                outcome: event.outcome.as_str().to_owned(),
                of: event.of,
                details: event.details.clone(),
                previous: Bytes::copy_from_slice(&head.hash),
                hash: Bytes::new(),
            };
            head = Head { sequence: record.sequence, hash: chain::hash(&record) };
            record.hash = Bytes::copy_from_slice(&head.hash);
            writes.push(Write::put(key(head.sequence), record.encode_to_vec()).expecting(Expected::Absent));
        }
        let stands = HeadResponse {
            service: self.service.name().to_owned(),
            sequence: head.sequence,
            hash: Bytes::copy_from_slice(&head.hash),
        };
        writes.push(Write::put(HEAD, stands.encode_to_vec()));
        (writes, head)
    }

    /// Where the record stands, in the log: by that, whoever keeps the logs knows when its end was cut off.
    fn say(&mut self, head: Head) {
        if self.said == 0 || head.sequence / SAID_EVERY > self.said / SAID_EVERY {
            let hash: String = head.hash.iter().map(|byte| format!("{byte:02x}")).collect();
            let service = self.service.name();
            tracing::info!(target: "tenon::audit", service, sequence = head.sequence, hash, "the audit record stands here");
            self.said = head.sequence;
        }
    }
}

/// Where the record of `service` in a journal stands: what its head says, and what was written after that.
pub(super) async fn head(journal: &dyn Journal, service: Service) -> Result<Head, ReadError> {
    let said = journal.get(HEAD).await?.and_then(|found| HeadResponse::decode(found.value).ok());
    let said = said.and_then(|it| Some(Head { sequence: it.sequence, hash: it.hash[..].try_into().ok()? }));
    let mut last = said.unwrap_or(Head { sequence: 0, hash: chain::beginning(service.name()) });
    // With the head all that it counts is written. Somebody has set back or spoiled one that has records after it: they tell
    // where the chain goes on, and whoever verifies, what is wrong with them.
    let mut after = key(last.sequence);
    loop {
        let page = journal.records_after(&after, super::PAGE).await?;
        let Some(found) = page.last() else { return Ok(last) };
        let sequence = found.key.strip_prefix(RECORDS).and_then(|number| number.parse().ok());
        let record = Record::decode(found.value.clone()).unwrap_or_default();
        let hash = record.hash[..].try_into().unwrap_or(last.hash);
        last = Head { sequence: sequence.unwrap_or(last.sequence), hash };
        after.clone_from(&found.key);
    }
}

fn key(sequence: u64) -> String {
    format!("{RECORDS}{sequence:020}")
}
