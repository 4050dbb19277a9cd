//! Where this instance takes calls, as other sidecars are to know it.
//!
//! One task, off the path of every call, looks whether calls can be served: the sidecar is ready and its app accepts
//! connections. What comes of it stands in a [`Registration`], which the reporter tells the policy service on the stream that
//! it has open there in any case (`crate::report`). A service that only calls is never registered.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::{TcpStream, UnixStream},
    sync::{Notify, watch},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    config::{Config, LocalAddress},
    live::Live,
};

/// How often the app is tried that accepts connections, and one that did not the last time.
const EVERY: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_millis(300);
/// How long it may take to accept one.
const ACCEPTING: Duration = Duration::from_secs(1);
/// It is tried so often before this instance takes no more calls.
const FAILURES: u32 = 3;
/// How long after it was confirmed an instance must be on the list; and how often it is looked.
const LISTED: Duration = Duration::from_secs(5);

/// What the policy service is to know, and what it has confirmed.
#[derive(Debug)]
pub struct Registration {
    wanted: watch::Sender<Wanted>,
    /// The last of what is wanted that was answered.
    answered: watch::Sender<u64>,
    /// A call did not reach the app.
    unreachable: Notify,
}

/// What is to be known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Counts the changes; 0: there is nothing to tell.
    pub sequence: u64,
    /// Where this instance takes calls; `None`: it takes none.
    pub address: Option<SocketAddr>,
    /// For good.
    leaving: bool,
}

impl Registration {
    /// Of an instance that takes no calls yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            wanted: watch::Sender::default(),
            answered: watch::Sender::default(),
            unreachable: Notify::new(),
        })
    }

    /// A call did not reach the app: it is tried at once whether anything does.
    pub fn app_was_unreachable(&self) {
        self.unreachable.notify_one();
    }

    /// Has this instance taken off the list, and waits until no caller that reads it from then on finds it, or for `within`.
    /// It does not come back.
    ///
    /// Says whether anybody may have found it there before: who waits until all have heard of it need not when nobody had.
    pub async fn leave(&self, within: Duration) -> bool {
        let (mut leave, mut listed) = (0, false);
        self.wanted.send_modify(|wanted| {
            listed = wanted.address.is_some();
            wanted.sequence += u64::from(listed);
            (wanted.address, wanted.leaving, leave) = (None, true, wanted.sequence);
        });
        let mut answered = self.answered.subscribe();
        let _too_late = timeout(within, answered.wait_for(|answered| *answered >= leave)).await;
        listed
    }

    /// What the policy service is to be told.
    pub fn wanted(&self) -> watch::Receiver<Wanted> {
        self.wanted.subscribe()
    }

    /// It was told so much, and answered.
    pub fn answered(&self, sequence: u64) {
        self.answered.send_modify(|answered| *answered = sequence.max(*answered));
    }

    /// Has it told once more.
    pub fn again(&self) {
        self.wanted.send_modify(|wanted| wanted.sequence += 1);
    }

    /// Has it told, if it is something else.
    pub fn set(&self, address: Option<SocketAddr>) {
        self.wanted.send_if_modified(|wanted| {
            let news = !wanted.leaving && wanted.address != address;
            if news {
                (wanted.address, wanted.sequence) = (address, wanted.sequence + 1);
            }
            news
        });
    }
}

/// Looks until `shutdown` whether this instance can take calls.
pub async fn keep(live: Arc<Live>, shutdown: CancellationToken) {
    let Some(app) = live.config.app.clone().filter(|_| live.config.register) else { return };
    let _ended = shutdown.run_until_cancelled(look(&live, &app)).await;
}

async fn look(live: &Live, app: &LocalAddress) {
    let registration = &live.registration;
    while !live.missing().is_empty() {
        sleep(SOON).await;
    }
    let (mut failures, mut looked) = (0, Instant::now());
    loop {
        match accepts(app).await {
            true => {
                if failures >= FAILURES {
                    info!(%app, "the app accepts connections again");
                }
                failures = 0;
                // Where it cannot be found out, what was found before holds.
                if let Some(address) = advertised(&live.config) {
                    registration.set(Some(address));
                }
            }
            false => {
                failures += 1;
                if failures == FAILURES {
                    warn!(%app, "the app accepts no connections: this instance takes no calls until it does");
                    registration.set(None);
                }
            }
        }
        if looked.elapsed() >= LISTED {
            looked = Instant::now();
            register_again_if_forgotten(live);
        }
        // No oftener than that, however many calls fail.
        sleep(SOON).await;
        tokio::select! {
            () = sleep(EVERY - SOON), if failures == 0 => {}
            () = registration.unreachable.notified(), if failures == 0 => {}
            else => {}
        }
    }
}

/// An instance that was confirmed is on the list that this very sidecar follows. Where it is not, somebody has taken it off who
/// knew better for a while: another process that had its address, or a policy service that was cut off.
fn register_again_if_forgotten(live: &Live) {
    let wanted = live.registration.wanted.borrow().clone();
    let Some(address) = wanted.address.filter(|_| *live.registration.answered.borrow() == wanted.sequence) else {
        return;
    };
    let outbound = live.outbound();
    let own = outbound.destinations.as_ref().and_then(|all| all.get(live.config.service.as_str()));
    if own.is_some_and(|own| own.endpoints().all().iter().all(|endpoint| endpoint.address != address)) {
        live.registration.again();
    }
}

/// Whether the app takes a connection. Nothing is sent on it.
async fn accepts(app: &LocalAddress) -> bool {
    let connected = async {
        match app {
            LocalAddress::Tcp(address) => TcpStream::connect(address).await.map(drop),
            LocalAddress::Unix(path) => UnixStream::connect(path).await.map(drop),
        }
    };
    matches!(timeout(ACCEPTING, connected).await, Ok(Ok(())))
}

/// Where other sidecars reach this one: where it was told to say, or where it listens. On all addresses: at the one from which
/// the policy service is reached.
fn advertised(config: &Config) -> Option<SocketAddr> {
    let address = config.advertise.unwrap_or(config.inbound);
    if !address.ip().is_unspecified() {
        return Some(address);
    }
    let policy = config.policy.first()?.address;
    Some(SocketAddr::new(towards(policy)?, address.port()))
}

/// The local address from which datagrams to `there` would be sent. None is.
fn towards(there: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = match there {
        SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(there).ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_unspecified()).then_some(address)
}

#[cfg(test)]
mod tests;
