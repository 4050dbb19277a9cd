//! A follower's life: from its state file, through streams that end, to its shutdown.

mod acks;
mod scrub;
mod stream;

pub(crate) use stream::rest;

use std::{path::PathBuf, sync::Arc, time::Duration};

use futures_util::future::join_all;
use tenon_proto::replication::v1::{FollowRequest, FollowResponse};
use tokio::{sync::Mutex, task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::{
    Event, Guard, Parent, Replica, Value,
    guard::Now,
    machine::{Accept, Break, Machine},
    persist,
    reader::Shared,
    state,
};

/// More records than these are not touched at once on the thread that runs the follower: below a millisecond's work.
const LIGHT: usize = 256;
/// Parents that are followed at once.
const PARENTS: usize = 2;

/// What to follow, and from whom.
#[derive(Debug)]
pub struct Follow<P = Channel> {
    /// The replicated kind, of `tenon_proto::kind`.
    pub kind: &'static str,
    /// Name of this process for operators: "media/us-east".
    pub instance: String,
    /// The parents, one or two, which are followed at once; of more than two the first two. A channel should connect lazily
    /// and reconnect by itself.
    pub parents: Vec<P>,
    /// Where the state is kept between runs; absent: nowhere.
    pub state_dir: Option<PathBuf>,
}

impl<P: Parent> Follow<P> {
    /// Loads what the last run left (before it returns, and with it the observer is called), then follows until
    /// `shutdown`; the task ends when the last state is on disk.
    ///
    /// Must be called within a tokio runtime, which then runs the follower.
    pub fn start<V: Value>(
        self,
        observer: impl FnMut(Event<'_, V>) + Send + 'static,
        shutdown: CancellationToken,
    ) -> (Replica<V>, JoinHandle<()>) {
        let guard = Guard::of(self.kind);
        self.start_guarded(guard, observer, shutdown)
    }

    /// As [`Follow::start`], and a record that decodes is refused (NACK) all the same where `accept` says why: for what
    /// depends on who follows, or on how it was told to be. It is asked once of each record and must not block.
    pub fn start_accepting<V: Value>(
        self,
        accept: impl Fn(&V) -> Result<(), String> + Send + Sync + 'static,
        observer: impl FnMut(Event<'_, V>) + Send + 'static,
        shutdown: CancellationToken,
    ) -> (Replica<V>, JoinHandle<()>) {
        let guard = Guard::of(self.kind);
        self.begin(guard, Arc::new(accept), observer, shutdown)
    }

    /// As [`Follow::start`], with another guard than the usual one.
    pub fn start_guarded<V: Value>(
        self,
        guard: Guard,
        observer: impl FnMut(Event<'_, V>) + Send + 'static,
        shutdown: CancellationToken,
    ) -> (Replica<V>, JoinHandle<()>) {
        self.begin(guard, Arc::new(|_| Ok(())), observer, shutdown)
    }

    fn begin<V: Value>(
        self,
        guard: Guard,
        accept: Accept<V>,
        observer: impl FnMut(Event<'_, V>) + Send + 'static,
        shutdown: CancellationToken,
    ) -> (Replica<V>, JoinHandle<()>) {
        let Self { kind, instance, mut parents, state_dir } = self;
        parents.truncate(PARENTS);
        let shared = Arc::new(Shared::new());
        let mut machine = Machine::new(Arc::clone(&shared), guard, parents.len(), observer).accepting(accept);
        for (status, parent) in shared.health().status.parents.iter_mut().zip(&parents) {
            parent.name().clone_into(&mut status.name);
        }
        let path = state_dir.map(|dir| state::path(&dir, kind));
        let mut recording = None;
        if let Some(path) = &path {
            match state::Reader::open(path, kind).and_then(|file| machine.start_from(file)) {
                Ok(found) => recording = found,
                Err(error) => {
                    tracing::warn!(kind, path = %path.display(), %error, "the state file is ignored and fetched again");
                }
            }
        }
        let saving = CancellationToken::new();
        let saver =
            path.map(|path| tokio::spawn(persist::run(Arc::clone(&shared), kind, path, recording, saving.clone())));
        let machine = Arc::new(Mutex::new(machine));
        let follower = Follower { kind, instance, shared: Arc::clone(&shared), machine, clock: Clock::start() };
        let task = tokio::spawn(async move {
            let stop_saving = saving.drop_guard();
            follower.run(parents, shutdown).await;
            drop(stop_saving);
            if let Some(saver) = saver {
                let _ = saver.await;
            }
        });
        (Replica::of(shared), task)
    }
}

struct Follower<V, O> {
    kind: &'static str,
    instance: String,
    shared: Arc<Shared<V>>,
    /// Held for one message at a time.
    machine: Arc<Mutex<Machine<V, O>>>,
    clock: Clock,
}

impl<V: Value, O: FnMut(Event<'_, V>) + Send + 'static> Follower<V, O> {
    async fn run<P: Parent>(self, parents: Vec<P>, shutdown: CancellationToken) {
        let streams = parents.iter().enumerate().map(|(number, parent)| self.follow(number, parent));
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = for_ever(streams) => {}
            () = self.scrub() => {}
        }
    }

    /// Takes a message in, off this thread where that takes long.
    async fn receive(&self, parent: usize, response: FollowResponse) -> Result<Option<FollowRequest>, Break> {
        let now = self.clock.now();
        let mut machine = Arc::clone(&self.machine).lock_owned().await;
        if machine.weight(&response) <= LIGHT {
            return machine.receive(parent, response, now);
        }
        let received = tokio::task::spawn_blocking(move || machine.receive(parent, response, now)).await;
        match received.map_err(tokio::task::JoinError::try_into_panic) {
            Ok(received) => received,
            Err(Ok(panic)) => std::panic::resume_unwind(panic),
            Err(Err(_)) => std::future::pending().await, // The runtime is shutting down.
        }
    }

    async fn drop_retired(&self) {
        let retired = self.machine.lock().await.drain_retired();
        if !retired.is_empty() {
            tokio::task::spawn_blocking(move || drop(retired));
        }
    }
}

async fn for_ever(streams: impl Iterator<Item = impl Future<Output = ()>>) {
    join_all(streams).await;
    std::future::pending().await // There are no parents.
}

/// Time of day that does not step: the system's clock is looked at once.
#[derive(Clone, Copy, Debug)]
struct Clock {
    started: Instant,
    unix: Duration,
}

impl Clock {
    fn start() -> Self {
        Self { started: Instant::now(), unix: mesh_identity::clock::since_epoch() }
    }

    fn now(&self) -> Now {
        let elapsed = self.started.elapsed();
        let unix_seconds = i64::try_from((self.unix + elapsed).as_secs()).unwrap_or(i64::MAX);
        Now { elapsed, unix_seconds }
    }
}

#[cfg(test)]
mod tests;
