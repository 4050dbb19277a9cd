//! The one task of a policy service that writes registered endpoints.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use journal::{AppendError, Journal, Position, Write};
use prost::Message as _;
use tenon_proto::policy::v1::{Endpoint, report_request::Register};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval, timeout},
};

use super::{
    Command, Keeping, Outcome, Places, Sidecar,
    holders::{BEAT, Holders},
    key_of,
    mirror::Mirror,
    places::{self, UNREAD},
    silence::Silence,
};
use crate::engine::{StoreError, chain};

/// How often it is looked who has fallen silent.
const LOOK: Duration = Duration::from_millis(500);
/// Where it was not looked for so long, those wait who come now.
const OVERDUE: Duration = Duration::from_secs(2);
/// Registrations that are written at once: after a restart all sidecars come back together.
const BATCH: usize = 256;
/// Endpoints that are removed at once.
const REMOVED: usize = 512;
/// Instances of one service.
const OF_A_SERVICE: usize = if cfg!(test) { 20 } else { 10_000 };
/// How often it is tried again where another policy service was faster.
const TRIES: usize = 10;
/// How long a write may take. A sidecar asks again.
const LATE: Duration = Duration::from_secs(5);

pub(super) struct Keeper {
    journal: Arc<dyn Journal>,
    places: Arc<dyn Places>,
    holder: Arc<str>,
    holders: Holders,
    mirror: Mirror,
    silence: Silence,
    /// Records that may still be deleted by a write that nobody confirmed, and their revisions. Whoever registers such a one again
    /// writes it anew, also where it says the same: that deletion then finds another revision than it expects.
    doubtful: HashMap<String, u64>,
}

/// What a sidecar asked for.
struct Asked {
    stream: u64,
    sidecar: Sidecar,
    register: Register,
    answer: oneshot::Sender<Outcome>,
}

/// What has to be done for it.
enum Plan {
    Wrong(String),
    /// Its key and record, and the write, if that is not what is there.
    Put(String, Bytes, Option<Write>),
    /// Its keys.
    Leave(Vec<String>),
}

impl Keeper {
    pub fn new(keeping: Keeping) -> Self {
        let Keeping { endpoints, holders, holder, places, publisher: _ } = keeping;
        Self {
            mirror: Mirror::new(Arc::clone(&endpoints)),
            silence: Silence::new(&holder),
            holders: Holders::new(holders, Arc::clone(&holder)),
            journal: endpoints,
            places,
            holder,
            doubtful: HashMap::new(),
        }
    }

    pub async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        let (mut look, mut beat) = (interval(LOOK), interval(BEAT));
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut arrived = Vec::with_capacity(BATCH);
        let mut looked = Instant::now();
        loop {
            // Who has registered is heard before it is looked who is silent, however long the store took meanwhile; and no
            // number of them keeps the others from hearing that this policy service lives, nor the dead in the list.
            tokio::select! {
                biased;
                _ = beat.tick() => {
                    if let Err(error) = self.holders.beat().await {
                        tracing::warn!(error = chain(&error), "the store cannot be told that this policy service lives: trying again");
                    }
                    continue;
                }
                count = commands.recv_many(&mut arrived, BATCH) => {
                    if count == 0 {
                        return;
                    }
                    self.take(arrived.drain(..)).await;
                    if looked.elapsed() < OVERDUE {
                        continue;
                    }
                    let mut waiting = commands.len();
                    while waiting > 0 {
                        waiting -= commands.recv_many(&mut arrived, BATCH.min(waiting)).await;
                        self.take(arrived.drain(..)).await;
                    }
                }
                _ = look.tick() => {}
            }
            looked = Instant::now();
            if let Err(error) = self.remove_silent().await {
                tracing::warn!(
                    error = chain(&error),
                    "endpoints of instances that are gone cannot be removed: trying again"
                );
            }
        }
    }

    /// What streams ask for in its order, and then their ends: a stream that has ended asks for nothing more.
    async fn take(&mut self, commands: impl Iterator<Item = Command>) {
        let (mut asked, mut ended): (Vec<Asked>, Vec<u64>) = Default::default();
        for command in commands {
            match command {
                Command::Register { stream, sidecar, register, answer } => {
                    asked.push(Asked { stream, sidecar, register, answer });
                }
                Command::Ended { stream } => ended.push(stream),
            }
        }
        self.register(asked).await;
        ended.into_iter().for_each(|stream| self.silence.ended(stream));
    }

    /// Writes what was asked for, as few batches as it takes, and answers.
    async fn register(&mut self, asked: Vec<Asked>) {
        let mut left = asked;
        while !left.is_empty() {
            left = match self.register_some(left).await {
                Ok(later) => later,
                Err((asked, error)) => {
                    // What was written may be there for all that.
                    self.silence.store_failed();
                    tracing::warn!(error = chain(&error), "registrations cannot be written: sidecars try again");
                    for Asked { answer, .. } in asked {
                        let _gone = answer.send(Err("the store of the policy service cannot be used now".to_owned()));
                    }
                    return;
                }
            };
        }
    }

    /// Does all that one batch can: no key twice. Returns the rest.
    async fn register_some(&mut self, asked: Vec<Asked>) -> Result<Vec<Asked>, (Vec<Asked>, StoreError)> {
        let accepted = self.accept(&asked).await;
        for _ in 0..TRIES {
            let read = match self.mirror.catch_up().await {
                Ok(position) => position,
                Err(error) => return Err((asked, error.into())),
            };
            let mut plans: Vec<(Plan, Vec<Write>)> = Vec::new();
            let (mut keys, mut added) = (HashSet::new(), HashMap::<&str, usize>::new());
            for (one, accepted) in asked.iter().zip(&accepted) {
                let added = added.entry(&*one.sidecar.service).or_default();
                let plan = self.plan(&one.sidecar, accepted.as_ref(), *added);
                let writes = self.writes(&one.sidecar, &plan);
                if writes.iter().any(|write| !keys.insert(write.key.clone())) {
                    break;
                }
                *added += writes.iter().filter(|write| write.value.is_some()).count();
                plans.push((plan, writes));
            }
            let batch: Vec<Write> = plans.iter().flat_map(|(_, writes)| writes.iter().cloned()).collect();
            let written = match batch.is_empty() {
                true => Ok(read),
                false => append(Arc::clone(&self.journal), batch).await,
            };
            match written {
                Ok(position) => return Ok(self.done(asked, plans, position)),
                Err(StoreError::Append(AppendError::Conflict { .. })) => {}
                Err(error) => {
                    self.may_be_deleted(plans.iter().flat_map(|(_, writes)| writes));
                    return Err((asked, error));
                }
            }
        }
        Err((asked, StoreError::Busy))
    }

    /// What is to be written for each, or why nothing is; `None` for those who leave.
    async fn accept(&mut self, asked: &[Asked]) -> Vec<Option<Result<Endpoint, String>>> {
        let mut accepted = Vec::with_capacity(asked.len());
        let mut unread = false;
        for Asked { sidecar, register, .. } in asked {
            if register.address.is_empty() {
                accepted.push(None);
                continue;
            }
            let one = match unread {
                true => Err(UNREAD.to_owned()),
                false => timeout(LATE, places::accept(&*self.places, sidecar, register, &self.holder))
                    .await
                    .unwrap_or_else(|_late| Err(UNREAD.to_owned())),
            };
            // One of them waits for it, and no other.
            unread |= one.as_ref().is_err_and(|problem| problem == UNREAD);
            accepted.push(Some(one));
        }
        if unread {
            self.silence.store_failed();
        }
        accepted
    }

    fn plan(&self, sidecar: &Sidecar, accepted: Option<&Result<Endpoint, String>>, added: usize) -> Plan {
        let endpoint = match accepted {
            None => return Plan::Leave(self.keys_of(sidecar)),
            Some(Err(problem)) => return Plan::Wrong(problem.clone()),
            Some(Ok(endpoint)) => endpoint,
        };
        let key = key_of(&endpoint.service, &endpoint.address);
        let value = Bytes::from(endpoint.encode_to_vec());
        match self.mirror.records.get(&key) {
            Some(held) if *held.value == *value && self.doubtful.get(&key) != Some(&held.revision) => {
                Plan::Put(key, value, None)
            }
            None if self.mirror.of(&sidecar.service).count() + added >= OF_A_SERVICE => {
                Plan::Wrong(no_more(&sidecar.service))
            }
            Some(_) | None => {
                let write = Write::put(key.clone(), value.clone()).expecting(self.mirror.expected(&key));
                Plan::Put(key, value, Some(write))
            }
        }
    }

    /// An instance has one address: what else it has goes.
    fn writes(&self, sidecar: &Sidecar, plan: &Plan) -> Vec<Write> {
        let delete = |key: String| {
            let expected = self.mirror.expected(&key);
            Write::delete(key).expecting(expected)
        };
        match plan {
            Plan::Wrong(_) => Vec::new(),
            Plan::Leave(keys) => keys.iter().cloned().map(delete).collect(),
            Plan::Put(key, _, write) => {
                let others = self.keys_of(sidecar).into_iter().filter(|other| other != key);
                others.map(delete).chain(write.clone()).collect()
            }
        }
    }

    /// What this very process has registered, wherever it did.
    fn keys_of(&self, sidecar: &Sidecar) -> Vec<String> {
        let own = self
            .mirror
            .of(&sidecar.service)
            .filter(|(_, held)| held.lease.boot == sidecar.boot && *held.lease.instance == *sidecar.instance);
        own.map(|(key, _)| key.clone()).collect()
    }

    /// Returns those that were not planned.
    fn done(&mut self, asked: Vec<Asked>, plans: Vec<(Plan, Vec<Write>)>, position: Position) -> Vec<Asked> {
        let mut asked = asked.into_iter();
        for ((plan, writes), Asked { stream, sidecar, answer, .. }) in plans.into_iter().zip(asked.by_ref()) {
            let Sidecar { service, instance, .. } = &sidecar;
            let outcome = match plan {
                Plan::Wrong(problem) => {
                    tracing::warn!(%service, %instance, problem, "an instance cannot be registered");
                    Err(problem)
                }
                Plan::Put(key, value, _) => {
                    self.silence.left(writes.iter().filter(|write| write.value.is_none()).map(|write| &write.key));
                    if !writes.is_empty() {
                        tracing::info!(%service, %instance, key, "an instance is registered");
                    }
                    self.silence.registered(stream, key, value);
                    Ok(position)
                }
                Plan::Leave(keys) => {
                    tracing::info!(%service, %instance, keys = keys.len(), "an instance has left");
                    self.silence.left(&keys);
                    Ok(position)
                }
            };
            let _gone = answer.send(outcome);
        }
        asked.collect()
    }

    /// Removes the endpoints of instances that are gone.
    async fn remove_silent(&mut self) -> Result<(), StoreError> {
        // Whoever comes while the store is used is heard after this.
        let now = Instant::now();
        for _ in 0..TRIES {
            let removed = self.remove_some(now).await;
            match removed {
                // Somebody came, or another policy service was faster: it may be too many by now.
                Err(StoreError::Append(AppendError::Conflict { .. } | AppendError::Moved { .. })) => {}
                Err(_) => {
                    self.silence.store_failed();
                    return removed;
                }
                Ok(()) => return removed,
            }
        }
        // The next look tries again.
        Ok(())
    }

    async fn remove_some(&mut self, now: Instant) -> Result<(), StoreError> {
        let read = self.mirror.catch_up().await?;
        let Mirror { records, .. } = &self.mirror;
        self.doubtful.retain(|key, revision| records.get(key).is_some_and(|held| held.revision == *revision));
        self.write_again().await?;
        let mut keys = self.silence.due(&self.mirror, now, |holder| self.holders.lives(holder));
        keys.truncate(REMOVED);
        if keys.is_empty() {
            return Ok(());
        }
        let delete = |key: &String| Write::delete(key.clone()).expecting(self.mirror.expected(key));
        let batch: Vec<Write> = keys.iter().map(delete).collect();
        // How many may go was decided from all that there are, and others decide at the same time.
        let removing = self.journal.append_at(read, batch.clone());
        match timeout(LATE, removing).await {
            Ok(Ok(_)) => {}
            Ok(Err(error @ (AppendError::Conflict { .. } | AppendError::Moved { .. }))) => return Err(error.into()),
            Ok(Err(error)) => {
                self.may_be_deleted(&batch);
                return Err(error.into());
            }
            Err(_late) => {
                self.may_be_deleted(&batch);
                return Err(StoreError::Busy);
            }
        }
        tracing::info!(?keys, "instances that fell silent are removed");
        self.silence.were_removed(keys);
        Ok(())
    }

    /// What live instances have registered and somebody removed.
    async fn write_again(&mut self) -> Result<(), StoreError> {
        let mut lost = self.silence.lost(&self.mirror);
        lost.truncate(REMOVED);
        if lost.is_empty() {
            return Ok(());
        }
        let keys: Vec<_> = lost.iter().map(|(key, _)| key.clone()).collect();
        let put = |(key, value): (String, Bytes)| {
            let expected = self.mirror.expected(&key);
            Write::put(key, value).expecting(expected)
        };
        let batch = lost.into_iter().map(put).collect();
        append(Arc::clone(&self.journal), batch).await?;
        tracing::warn!(?keys, "live instances that were removed as silent are registered again");
        self.mirror.catch_up().await?;
        Ok(())
    }

    /// Of these writes it is not known whether they were made, or are yet to be.
    fn may_be_deleted<'w>(&mut self, writes: impl IntoIterator<Item = &'w Write>) {
        for Write { key, value, .. } in writes {
            if let (None, Some(held)) = (value, self.mirror.records.get(key)) {
                self.doubtful.insert(key.clone(), held.revision);
            }
        }
    }
}

/// To whom it is told may not know how many there are, nor where.
fn no_more(service: &str) -> String {
    format!(
        "{service} has {OF_A_SERVICE} registered instances and no more are taken: `tenon policy status` lists them, those that \
         are gone go by themselves; or name this one in the LocalMesh of the policy files, and start it with --register false"
    )
}

async fn append(journal: Arc<dyn Journal>, batch: Vec<Write>) -> Result<Position, StoreError> {
    Ok(timeout(LATE, journal.append(batch)).await.map_err(|_| StoreError::Busy)??)
}
