//! The flow record: who called what and what was decided, by the hour, for 30 days (DESIGN §8).
//!
//! A sidecar's batch is written, together with the sidecar's mark, before the sidecar is told that it is taken; until then
//! the sidecar keeps it and sends it again. So nothing that a sidecar has counted is lost with a policy service, and the mark
//! tells what is counted already, also to another policy service. While the store cannot be written, sidecars go on
//! counting where they are, in one batch each.
//!
//! `counts` bounds an hour of one service, `stored` is what lies in the store, `recorder` writes it, `others` reads what
//! other policy services write, `prune` lets go of what is old, `sum` adds up, `passed` knows which calls ever passed.
//!
//! What it takes: a flow is about 10 bytes of the store for each hour that has it, and each name and path once for each
//! service and hour; a service is at most 600 KB an hour. In memory are the present hour, one entry for each call that ever
//! passed (at most 500,000), and batches that wait (at most 64 MB); nothing of the past, which is read from the store a
//! few records at a time.

mod counts;
mod intake;
mod others;
mod passed;
mod prune;
mod recorder;
mod stored;
mod sum;

use std::{io, path::Path, sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use journal::{Journal, OpenError, Options, Part, ReadError, Store};
use mesh_config::names::TrustDomain;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

pub(crate) use counts::FlowKey;
pub(crate) use intake::Intake;
use passed::Passed;
use recorder::Recorder;
use stored::HourKey;
pub(crate) use sum::sum;

const HOUR: u64 = 60 * 60;
/// How long the last write may take.
const LAST_WRITE: Duration = Duration::from_secs(3);
/// Hours that are kept beside the present one.
const KEPT_HOURS: u64 = 30 * 24;

/// Changes are kept for the other policy services, which read them as they come. Who falls behind reads everything.
const RETAINED: Options =
    Options { retention: Duration::from_secs(HOUR), retained_changes: 50_000, retained_bytes: 32 << 20 };

/// What the file in the state folder is called that keeps the writer's name.
const WRITER_FILE: &str = "flow-writer";

/// The tasks that write the record. Dropped they end soon, and [`Recording::end`] waits for that.
pub(crate) struct Recording {
    stop: DropGuard,
    tasks: Vec<JoinHandle<()>>,
}

impl Recording {
    /// Writes what came until now, if that takes no longer than [`LAST_WRITE`], and lets go of the store.
    pub async fn end(self) {
        drop(self.stop);
        for mut task in self.tasks {
            match tokio::time::timeout(LAST_WRITE, &mut task).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%error, "recording flows failed"),
                // Sidecars keep what they were not told is taken.
                Err(_) => {
                    task.abort();
                    let _ = task.await;
                }
            }
        }
    }
}

/// Opens the journal of flows: in a file beside an embedded store, or as a kind of its own.
pub(crate) async fn open(
    store: &Store,
    trust_domain: &TrustDomain,
    state_dir: &Path,
) -> Result<Arc<dyn Journal>, OpenError> {
    let store = match store {
        Store::Embedded(file) => {
            let mut flows = file.clone().into_os_string();
            flows.push(".flows");
            Store::Embedded(flows.into())
        }
        Store::Nats(servers) => Store::Nats(servers.clone()),
    };
    journal::open(&store, trust_domain, &state_dir.join("journal-flows"), RETAINED).await?.kind("flow").await
}

/// Begins to record what comes by the intake. `others`: other policy services write to the same journal.
///
/// # Errors
/// When the journal cannot be read.
pub(crate) async fn record(
    journal: Arc<dyn Journal>,
    writer: Arc<str>,
    others: bool,
    shutdown: &CancellationToken,
) -> Result<(Arc<Intake>, Recording), ReadError> {
    let stop = shutdown.child_token();
    let head = journal.head().await?;
    let (intake, arriving) = Intake::new(passed(&*journal).await?);
    let recorder = Recorder::new(Arc::clone(&journal), Arc::clone(&writer), Arc::clone(&intake), arriving);
    let mut tasks = vec![tokio::spawn(recorder.run(stop.clone()))];
    if others {
        let following = others::follow(journal, writer, Arc::clone(&intake), head);
        let stop = stop.clone();
        tasks.push(tokio::spawn(async move { stop.run_until_cancelled(following).await.unwrap_or_default() }));
    }
    Ok((intake, Recording { stop: stop.drop_guard(), tasks }))
}

/// The name under which this policy service counts: made once, and kept in the state folder.
///
/// # Errors
/// When the folder can be neither read nor written.
pub(crate) fn writer(state_dir: &Path) -> io::Result<Arc<str>> {
    let file = state_dir.join(WRITER_FILE);
    let well_formed = |name: &str| name.len() == 16 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    match std::fs::read_to_string(&file) {
        Ok(name) if well_formed(&name) => return Ok(name.into()),
        // Another name does no harm: counts are added up over all of them.
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut random = [0; 8];
    aws_lc_rs::rand::fill(&mut random).map_err(io::Error::other)?;
    let name = format!("{:016x}", u64::from_be_bytes(random));
    std::fs::create_dir_all(state_dir)?;
    let new = state_dir.join(format!("{WRITER_FILE}.new"));
    std::fs::write(&new, &name)?;
    std::fs::rename(new, file)?;
    Ok(name.into())
}

/// The calls that ever passed, from the store.
async fn passed(journal: &dyn Journal) -> Result<Passed, ReadError> {
    let mut passed = Passed::default();
    let mut parts = journal.history().await?.parts;
    while let Some(read) = parts.next().await {
        for part in read? {
            let Part::Record(record) = part else { return Ok(passed) };
            if let Some(HourKey { hour, .. }) = HourKey::parse(&record.key) {
                let (counts, _) = stored::decode(&record.value);
                counts.iter().for_each(|(flow, _)| passed.note(flow, hour * HOUR));
            }
        }
    }
    Ok(passed)
}
