//! A bad network on the way to one listener: a TCP relay that delays, loses and swallows.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};

/// What the way is like at the moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Way {
    /// As if it were not there.
    Clear,
    /// Every byte arrives so much later, in each direction.
    Slow(Duration),
    /// Of the packets this share is lost, and comes with the retransmission, and with it all that is behind it: one
    /// retransmission timeout of Linux, 200 ms at the least, later.
    Lossy(f64),
    /// Nothing arrives and nobody is told; connecting goes on working for as long as the relay's backlog has room.
    BlackHole,
}

/// The relay. Dropping it closes everything.
pub struct Relay {
    address: SocketAddr,
    way: watch::Sender<Way>,
    accepted: Arc<AtomicU32>,
    task: tokio::task::JoinHandle<()>,
}

/// The least that Linux waits before it sends again (`TCP_RTO_MIN`).
const RETRANSMISSION: Duration = Duration::from_millis(200);
/// About what one packet carries.
const PACKET: usize = 1_448;
/// Packets on their way in one direction.
const PACKETS: usize = 4_096;

impl Relay {
    /// Listens on a port of its own and passes everything on to `target`.
    ///
    /// # Errors
    /// No listener can be made.
    pub async fn start(target: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (way, seen) = watch::channel(Way::Clear);
        let accepted = Arc::<AtomicU32>::default();
        let task = tokio::spawn(accept(listener, target, seen, Arc::clone(&accepted)));
        Ok(Self { address, way, accepted, task })
    }

    /// What to connect to instead of the target.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections that it has accepted.
    #[must_use]
    pub fn accepted(&self) -> u32 {
        self.accepted.load(Relaxed)
    }

    /// From now on, for what is on its way too.
    pub fn set(&self, way: Way) {
        self.way.send_replace(way);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, target: SocketAddr, way: watch::Receiver<Way>, accepted: Arc<AtomicU32>) {
    let mut streams = tokio::task::JoinSet::new();
    let dice = Arc::new(Dice(AtomicU64::new(1)));
    while let Ok((near, _)) = listener.accept().await {
        accepted.fetch_add(1, Relaxed);
        let Ok(far) = TcpStream::connect(target).await else { continue };
        let _quick = (near.set_nodelay(true), far.set_nodelay(true));
        let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
        streams.spawn(carry(near_in, far_out, way.clone(), Arc::clone(&dice)));
        streams.spawn(carry(far_in, near_out, way.clone(), Arc::clone(&dice)));
    }
}

/// One direction: whoever reads stamps each packet with when it arrives, and nothing overtakes.
async fn carry(mut from: OwnedReadHalf, to: OwnedWriteHalf, way: watch::Receiver<Way>, dice: Arc<Dice>) {
    let (sender, packets) = mpsc::channel(PACKETS);
    let delivering = tokio::spawn(deliver(packets, to, way.clone()));
    let mut last = Instant::now();
    loop {
        let mut packet = vec![0; PACKET];
        let Ok(length) = from.read(&mut packet).await else { break };
        packet.truncate(length);
        let late = match *way.borrow() {
            Way::Clear | Way::BlackHole => Duration::ZERO,
            Way::Slow(by) => by,
            Way::Lossy(share) if dice.roll() < share => RETRANSMISSION,
            Way::Lossy(_) => Duration::ZERO,
        };
        last = last.max(Instant::now() + late);
        if sender.send((last, packet)).await.is_err() || length == 0 {
            break;
        }
    }
    drop(sender);
    let _ended = delivering.await;
}

async fn deliver(
    mut packets: mpsc::Receiver<(Instant, Vec<u8>)>,
    mut to: OwnedWriteHalf,
    mut way: watch::Receiver<Way>,
) {
    let mut waiting = VecDeque::new();
    while let Some(packet) = packets.recv().await {
        waiting.push_back(packet);
        while let Some((at, packet)) = waiting.pop_front() {
            sleep_until(at).await;
            // Swallowed for as long as it lasts; a peer that is still there then gets it, as from a retransmission.
            if way.wait_for(|way| *way != Way::BlackHole).await.is_err() {
                return;
            }
            let done = if packet.is_empty() { to.shutdown().await } else { to.write_all(&packet).await };
            if done.is_err() {
                return;
            }
        }
    }
}

/// Reproducible chance.
struct Dice(AtomicU64);

impl Dice {
    /// From 0 to 1: splitmix64.
    fn roll(&self) -> f64 {
        let mut z = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let address = listener.local_addr().expect("its address");
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    let _ended = tokio::io::copy(&mut from, &mut to).await;
                });
            }
        });
        address
    }

    async fn round_trip(stream: &mut TcpStream) -> Duration {
        let begun = Instant::now();
        stream.write_all(b"ping").await.expect("sent");
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).await.expect("answered");
        begun.elapsed()
    }

    #[tokio::test]
    async fn what_a_way_does_is_done_to_a_connection_that_is_open() {
        let relay = Relay::start(echo().await).await.expect("a relay");
        let mut stream = TcpStream::connect(relay.address()).await.expect("connected");
        round_trip(&mut stream).await;
        relay.set(Way::Slow(Duration::from_millis(50)));
        assert!(round_trip(&mut stream).await >= Duration::from_millis(100));
        relay.set(Way::Lossy(1.0));
        assert!(round_trip(&mut stream).await >= 2 * RETRANSMISSION);
        relay.set(Way::BlackHole);
        let swallowed = tokio::time::timeout(Duration::from_millis(300), round_trip(&mut stream)).await;
        assert!(swallowed.is_err());
        relay.set(Way::Clear);
        let mut late = [0; 4];
        stream.read_exact(&mut late).await.expect("it comes after all");
    }
}
