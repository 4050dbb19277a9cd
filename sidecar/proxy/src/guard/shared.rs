//! What the guards of one worker share: what many connections may do together, and the account of those that were closed.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    fmt::Display,
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use mesh_identity::clock;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{
    budget::Budget,
    limits::{ALL_RESETS, From},
    why::Why,
};
use crate::{
    line_budget::LineBudget,
    metrics::{Closed, Direction},
};

/// Handshakes that a worker has in flight at most: 5 s each at most, 20 kB of memory each.
const HANDSHAKES: usize = 256;
/// Open connections of a worker by each listener. The limit of open files is usually reached first.
const CONNECTIONS: usize = 8_192;

/// Of one worker.
#[derive(Debug)]
pub struct Guarding {
    closed: Arc<Closed>,
    lines: LineBudget,
    /// By apps, and by clients outside. Connections between sidecars have none in common: they are policed at the other
    /// end.
    resets: [Mutex<Budget>; 2],
    handshakes: Mutex<Handshakes>,
    open: [AtomicUsize; Direction::ALL.len()],
}

#[derive(Debug, Default)]
struct Handshakes {
    next: u64,
    count: usize,
    /// By the network that they come from, and of each from the oldest to the newest. None is empty.
    in_flight: BTreeMap<Option<IpAddr>, BTreeMap<u64, CancellationToken>>,
}

/// A TLS handshake in flight, until it is dropped.
#[derive(Debug)]
pub struct Handshake {
    guarding: Arc<Guarding>,
    from: Option<IpAddr>,
    number: u64,
    pushed_out: CancellationToken,
}

/// A connection's place among those of its listener, until it is dropped.
#[derive(Debug)]
pub struct Place(Arc<Guarding>, Direction);

impl Guarding {
    /// Counts into `closed`.
    pub fn new(closed: Arc<Closed>) -> Arc<Self> {
        let now = Instant::now();
        let resets = [(), ()].map(|()| Mutex::new(Budget::new(ALL_RESETS, now)));
        Arc::new(Self {
            closed,
            lines: LineBudget::default(),
            resets,
            handshakes: Mutex::default(),
            open: Default::default(),
        })
    }

    /// Whether one more stream may be reset that was hardly opened.
    pub(super) fn reset(&self, from: From) -> bool {
        match from {
            From::Sidecar => true,
            From::App => lock(&self.resets[0]).take(ALL_RESETS, 1),
            From::Outside => lock(&self.resets[1]).take(ALL_RESETS, 1),
        }
    }

    /// A handshake begins. Where too many are in flight the oldest ends of those from where most come: whoever means it
    /// needs milliseconds, one who only takes up room is older than that, and one from far away is not to pay for a crowd.
    pub fn handshake(self: &Arc<Self>, address: Option<IpAddr>) -> Handshake {
        let (from, pushed_out) = (address.map(network), CancellationToken::new());
        let number = lock(&self.handshakes).begin(from, pushed_out.clone());
        Handshake { guarding: Arc::clone(self), from, number, pushed_out }
    }

    #[cfg(test)]
    pub(super) fn shaking_hands(&self) -> usize {
        lock(&self.handshakes).in_flight.values().map(BTreeMap::len).sum()
    }

    /// A place for one more connection; none when there are too many.
    pub fn place(self: &Arc<Self>, direction: Direction) -> Option<Place> {
        // Counted in any case, and given back with the place.
        let before = self.open[direction as usize].fetch_add(1, Relaxed);
        let place = Place(Arc::clone(self), direction);
        (before < CONNECTIONS).then_some(place)
    }

    /// A connection is closed, or asked to go, by this side.
    pub fn closed(&self, direction: Direction, why: Why, peer: &str, address: Option<&dyn Display>) {
        self.closed.count(direction, why);
        let (listener, address) = (direction.as_str(), address.map(tracing::field::display));
        if !why.is_abuse() {
            debug!(listener, peer, address, why = why.as_str(), "a connection is closed: {why}");
        } else if let Some(unlogged) = self.lines.take(clock::unix_seconds()) {
            warn!(listener, peer, address, why = why.as_str(), unlogged, "a connection is closed: {why}");
        }
    }

    /// A request has more header fields than it may; it alone is refused.
    pub fn too_many_fields(&self, direction: Direction, peer: &str, fields: usize) {
        if let Some(unlogged) = self.lines.take(clock::unix_seconds()) {
            let listener = direction.as_str();
            warn!(listener, peer, fields, unlogged, "a request is refused with 431: it has too many header fields");
        }
    }
}

impl Handshakes {
    /// The number of a new one.
    fn begin(&mut self, from: Option<IpAddr>, pushed_out: CancellationToken) -> u64 {
        let number = self.next;
        self.next += 1;
        self.count += 1;
        self.in_flight.entry(from).or_default().insert(number, pushed_out);
        if self.count > HANDSHAKES
            && let Some((from, oldest)) = self.most_crowded()
            && let Some(oldest) = self.end(from, oldest)
        {
            oldest.cancel();
        }
        number
    }

    /// Where most come from, the one with the oldest if there are several, and the oldest from there.
    fn most_crowded(&self) -> Option<(Option<IpAddr>, u64)> {
        let networks = self.in_flight.iter().filter_map(|(from, all)| Some((*from, all.len(), *all.keys().next()?)));
        networks.max_by_key(|(_, count, oldest)| (*count, Reverse(*oldest))).map(|(from, _, oldest)| (from, oldest))
    }

    /// None when it was pushed out before.
    fn end(&mut self, from: Option<IpAddr>, number: u64) -> Option<CancellationToken> {
        let all = self.in_flight.get_mut(&from)?;
        let ended = all.remove(&number)?;
        if all.is_empty() {
            self.in_flight.remove(&from);
        }
        self.count -= 1;
        Some(ended)
    }
}

/// All that one peer may well have: of IPv6 that is a /64 (RFC 6177 §2).
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
    }
}

impl Handshake {
    /// Ends when newer handshakes need the room.
    pub async fn pushed_out(&self) {
        self.pushed_out.cancelled().await;
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        lock(&self.guarding.handshakes).end(self.from, self.number);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.open[self.1 as usize].fetch_sub(1, Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
