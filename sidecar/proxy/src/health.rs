//! What is watched of the instances that this sidecar calls, beside the calls themselves: success rates, ejections to tell of,
//! and where a `Route` asks for it their own word, over gRPC health. Never on the path of a call.

mod check;

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use mesh_config::names::ServiceName;
use mesh_identity::clock::Moment;
use sidecar_core::{
    balance::{Load, Turn},
    outbound::Destination,
    route::HealthCheck,
};
use tokio::{task::JoinHandle, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::check::Answer;
use crate::{live::Live, pool::Pool};

/// How often it is looked at the instances: [`sidecar_core::balance::Endpoints::sweep`] wants it so.
const LOOK: Duration = Duration::from_secs(1);
/// How often idle connections are looked for, in looks.
const PRUNE: u32 = 30;

/// Asks instances for their health, over connections of its own.
struct Asker {
    live: Arc<Live>,
    pool: Pool,
    /// Destinations whose instances do not say, and of which that was told.
    silent: Mutex<HashSet<ServiceName>>,
}

/// What instances have answered lately.
#[derive(Debug)]
struct Streak {
    healthy: bool,
    /// Answers in a row that say otherwise.
    against: u32,
}

/// Watches until `shutdown`. Only destinations that were called are looked at: nobody asks for the others' health.
pub async fn look_after(live: Arc<Live>, shutdown: CancellationToken) {
    let pool = Pool::new(Arc::clone(&live.identity));
    live.pools.enter(&pool);
    let asker = Arc::new(Asker { live: Arc::clone(&live), pool, silent: Mutex::default() });
    let mut asking: HashMap<(ServiceName, SocketAddr), JoinHandle<()>> = HashMap::new();
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for round in 0_u32.. {
        tokio::select! {
            () = shutdown.cancelled() => break,
            _ = look.tick() => {}
        }
        asking.retain(|_, task| !task.is_finished());
        let state = live.outbound();
        let destinations = state.destinations.iter().flat_map(|destinations| destinations.iter());
        for destination in destinations.filter(|destination| destination.endpoints().group().is_used()) {
            tell(destination);
            if destination.route().health_check.is_some() {
                for endpoint in destination.endpoints().all() {
                    let key = (destination.service().clone(), endpoint.address);
                    asking
                        .entry(key.clone())
                        .or_insert_with(|| tokio::spawn(Arc::clone(&asker).ask_again(key.0, key.1)));
                }
            }
        }
        asker.pool.close_revoked();
        if round % PRUNE == 0 {
            asker.pool.prune();
        }
    }
    asking.values().for_each(JoinHandle::abort);
}

/// Says what became of the instances of a destination.
fn tell(destination: &Destination) {
    let service = destination.service();
    for (address, turn) in destination.endpoints().sweep(now()) {
        match turn {
            Turn::Ejected(cause, nanoseconds) => warn!(
                %service, %address, cause = cause.as_str(), seconds = nanoseconds / 1_000_000_000,
                "an instance fails and gets no calls for a while"
            ),
            Turn::Unhealthy => warn!(%service, %address, "an instance says that it cannot serve, and gets no calls"),
            Turn::Returned => info!(%service, %address, "an instance gets calls again"),
        }
    }
}

/// Monotonic ns, as the data path counts them.
pub fn now() -> u64 {
    ns(Moment::now())
}

/// A moment as [`now`] tells it.
pub fn ns(moment: Moment) -> u64 {
    u64::try_from(moment.since_epoch.as_nanos()).unwrap_or(u64::MAX)
}

impl Asker {
    /// Asks one instance again and again, for as long as it is one and the `Route` wants it.
    async fn ask_again(self: Arc<Self>, service: ServiceName, address: SocketAddr) {
        let mut streak = Streak { healthy: true, against: 0 };
        // Not all at once.
        let mut pause = rand::random_range(0.0..1.0);
        while let Some((load, check)) = self.find(&service, address) {
            let Some(check) = check else {
                load.set_healthy(true, now());
                return;
            };
            tokio::time::sleep(check.interval.mul_f64(pause)).await;
            pause = rand::random_range(0.9..1.1);
            let asked = check::ask(&self.live, &self.pool, &service, address, &check.service);
            // Boxed: long pauses lie between two of them, and the state of one is some kilobytes.
            let answer = tokio::time::timeout(check.timeout, Box::pin(asked)).await;
            let answer = answer.unwrap_or_else(|_late| Answer::Bad("no answer in time".to_owned()));
            if let Answer::None(why) = &answer {
                self.cannot_be_asked(&service, why);
            }
            // Again each time: there may be room by now among those that are left out.
            load.set_healthy(streak.count(&answer, &check), now());
        }
    }

    /// Said once a destination.
    fn cannot_be_asked(&self, service: &ServiceName, why: &str) {
        if self.silent.lock().unwrap_or_else(PoisonError::into_inner).insert(service.clone()) {
            warn!(
                %service, why,
                "its instances do not say how they do and count as healthy: a rule must allow this service \
                 /grpc.health.v1.Health/Check, with tenant: none, and the app must serve it"
            );
        }
    }

    /// The instance as it is known now.
    fn find(&self, service: &ServiceName, address: SocketAddr) -> Option<(Arc<Load>, Option<HealthCheck>)> {
        let state = self.live.outbound();
        let destination = state.destinations.as_ref()?.get(service.as_str())?;
        let endpoint = destination.endpoints().all().iter().find(|endpoint| endpoint.address == address)?;
        Some((Arc::clone(&endpoint.load), destination.route().health_check.clone()))
    }
}

impl Streak {
    /// Whether it is healthy by now. So many answers in a row change that, and one that says nothing makes it so.
    fn count(&mut self, answer: &Answer, check: &HealthCheck) -> bool {
        let good = match answer {
            Answer::Good => true,
            Answer::Bad(why) => {
                tracing::debug!(why, "an instance is not well");
                false
            }
            Answer::Busy => return self.healthy,
            Answer::None(_) => {
                *self = Self { healthy: true, against: 0 };
                return true;
            }
        };
        self.against = if good == self.healthy { 0 } else { self.against + 1 };
        let enough = if self.healthy { check.unhealthy } else { check.healthy };
        if self.against >= enough.max(1) {
            *self = Self { healthy: good, against: 0 };
        }
        self.healthy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_answers_in_a_row_change_what_an_instance_is() {
        let check = HealthCheck {
            service: "".into(),
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            unhealthy: 3,
            healthy: 2,
        };
        let mut streak = Streak { healthy: true, against: 0 };
        let (good, bad, none) = (Answer::Good, Answer::Bad(String::new()), Answer::None(String::new()));
        let mut count =
            |answers: &[&Answer]| answers.iter().map(|answer| streak.count(answer, &check)).collect::<Vec<_>>();
        assert_eq!(
            count(&[&bad, &bad, &good, &bad, &bad, &Answer::Busy, &bad]),
            [true, true, true, true, true, true, false]
        );
        assert_eq!(count(&[&good, &bad, &good, &good]), [false, false, false, true]);
        assert_eq!(count(&[&bad, &bad, &bad, &none]), [true, true, false, true]);
    }
}
