//! Endpoints that sidecars register: records of the kind `endpoint` beside those of the policy files.
//!
//! A registered endpoint holds for as long as the stream is open on which its sidecar reports. `keeper` is the one task that
//! writes these records; `mirror` is what it knows of the journal, `silence` decides which instances are gone, `holders`
//! which other policy services are. Several policy services may keep the leases of one mesh: each record names its holder, and
//! is only changed as it was last read.
//!
//! What is removed by mistake costs calls; what stays by mistake costs a caller one failed attempt before its own sidecar puts
//! the instance aside. So whoever leaves is removed at once, who falls silent after some seconds, and when more than half of
//! the instances of a service, or of all, fall silent at once, none of these is: then it is likelier that this policy service
//! is cut off from them than that all of them are dead.

mod holders;
mod keeper;
mod mirror;
mod places;
mod silence;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use journal::{Journal, Position, Publisher};
use tenon_proto::policy::v1::{report_request::Register, report_response::Registered};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

pub(crate) use places::Places;

/// How long it is waited until followers are told of what is durable. It is answered then in any case.
const PUBLISHING: Duration = Duration::from_secs(1);

/// What stands in the place of the region in the key of a registered endpoint. No region has this name, so these keys are never
/// those of the policy files ("service/region/address").
const LEASED: &str = "@lease";

/// Key of the record of an instance of `service` at `address`.
fn key_of(service: &str, address: &str) -> String {
    format!("{service}/{LEASED}/{address}")
}

/// Whether the record of this key was registered by a sidecar, and is none of the policy files.
pub(crate) fn is_leased(key: &str) -> bool {
    key.split('/').nth(1) == Some(LEASED)
}

/// Whose stream it is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Sidecar {
    /// That it proved to be.
    service: Arc<str>,
    /// Name of its process.
    instance: Arc<str>,
    /// Of this start of it.
    boot: u64,
}

/// What came of a registration.
type Outcome = Result<Position, String>;

enum Command {
    Register {
        stream: u64,
        sidecar: Sidecar,
        register: Register,
        answer: oneshot::Sender<Outcome>,
    },
    /// The stream has ended, without the sidecar having left.
    Ended {
        stream: u64,
    },
}

/// Takes registrations. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Leases {
    /// Not bounded: a stream has one command on its way, and one when it ends.
    commands: mpsc::UnboundedSender<Command>,
    streams: Arc<AtomicU64>,
    /// Of the kind `endpoint`.
    publisher: Option<Publisher>,
}

/// What leases are kept in.
pub(crate) struct Keeping {
    /// Of the kind `endpoint`.
    pub endpoints: Arc<dyn Journal>,
    /// Where policy services say that they live; `None`: there are no others.
    pub holders: Option<Arc<dyn Journal>>,
    /// Name of this policy service, the same after a restart.
    pub holder: Arc<str>,
    /// Which registrations are right.
    pub places: Arc<dyn Places>,
    /// Of the kind `endpoint`; `None`: it is answered when it is durable.
    pub publisher: Option<Publisher>,
}

impl Leases {
    /// Keeps leases until `shutdown`; then nothing is removed any more.
    pub fn keep(keeping: Keeping, shutdown: CancellationToken) -> (Self, JoinHandle<()>) {
        let (commands, arriving) = mpsc::unbounded_channel();
        let publisher = keeping.publisher.clone();
        let keeper = keeper::Keeper::new(keeping);
        let task =
            tokio::spawn(async move { shutdown.run_until_cancelled(keeper.run(arriving)).await.unwrap_or_default() });
        (Self { commands, streams: Arc::default(), publisher }, task)
    }

    /// A stream of this sidecar.
    pub fn stream(&self, service: Arc<str>, instance: Arc<str>, boot: u64) -> Stream {
        let id = self.streams.fetch_add(1, Ordering::Relaxed);
        Stream { leases: self.clone(), id, sidecar: Sidecar { service, instance, boot } }
    }
}

/// A sidecar that may register. When it is dropped, the instance has fallen silent.
pub(crate) struct Stream {
    leases: Leases,
    id: u64,
    sidecar: Sidecar,
}

impl Stream {
    /// Comes back when everybody is about to be told. It is done to the end, also when this is dropped.
    pub fn register(&self, register: Register) -> impl Future<Output = Registered> + Send + use<> {
        let (answer, answered) = oneshot::channel();
        let sequence = register.sequence;
        let sidecar = self.sidecar.clone();
        let _ending = self.leases.commands.send(Command::Register { stream: self.id, sidecar, register, answer });
        let publisher = self.leases.publisher.clone();
        async move {
            let problem = |problem: String| Registered { sequence, problem, ..Registered::default() };
            match answered.await {
                Ok(Ok(position)) => {
                    if let Some(publisher) = publisher {
                        let _late = timeout(PUBLISHING, publisher.published(position)).await;
                    }
                    let Position { epoch, revision } = position;
                    Registered { sequence, epoch, revision, problem: String::new() }
                }
                Ok(Err(why)) => problem(why),
                Err(_ended) => problem("this policy service ends: register again".to_owned()),
            }
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _ending = self.leases.commands.send(Command::Ended { stream: self.id });
    }
}

#[cfg(test)]
mod tests;
