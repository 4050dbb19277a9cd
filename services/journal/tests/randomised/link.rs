//! What lies between a follower and the publisher: messages are lost, doubled, delayed, overtaken, and streams are cut.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures_util::StreamExt as _;
use journal::{FollowStream, Publisher};
use mesh_config::names::{ServiceName, TrustDomain};
use mesh_identity::{Peer, SpiffeId};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use replica::{Parent, Responses};
use tenon_proto::replication::v1::{FollowRequest, FollowResponse, follow_request::Request};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// Where followers find the publisher, while there is one.
#[derive(Debug, Default)]
pub struct Hub(Mutex<Option<Publisher>>);

impl Hub {
    pub fn publish(&self, publisher: Publisher) {
        *self.0.lock().unwrap() = Some(publisher);
    }

    pub fn unpublish(&self) {
        *self.0.lock().unwrap() = None;
    }

    pub fn refresh(&self) {
        if let Some(publisher) = self.0.lock().unwrap().as_ref() {
            publisher.refresh_views();
        }
    }
}

/// What goes wrong on one link.
#[derive(Debug)]
pub struct Faults {
    random: StdRng,
    /// Share of the messages that something happens to.
    pub rate: f64,
    /// Time that each message takes.
    pub delay: Duration,
    /// The present stream ends with the next message.
    pub cut: bool,
}

impl Faults {
    pub fn new(seed: u64) -> Self {
        Self { random: StdRng::seed_from_u64(seed), rate: 0.02, delay: Duration::ZERO, cut: false }
    }

    pub fn heal(&mut self) {
        self.rate = 0.0;
        self.delay = Duration::ZERO;
    }

    fn fate(&mut self) -> Fate {
        if std::mem::take(&mut self.cut) {
            return Fate::Cut;
        }
        if !self.random.random_bool(self.rate) {
            return Fate::Arrives;
        }
        match self.random.random_range(0..10) {
            0..4 => Fate::Lost,
            4..6 => Fate::Twice,
            6..9 => Fate::Overtaken,
            _ => Fate::Cut,
        }
    }
}

enum Fate {
    Arrives,
    Lost,
    Twice,
    Overtaken,
    Cut,
}

/// One follower's way to a publisher.
#[derive(Clone)]
pub struct Link {
    pub hub: Arc<Hub>,
    pub service: String,
    pub faults: Arc<Mutex<Faults>>,
}

impl Link {
    pub fn new(hub: &Arc<Hub>, service: &str, seed: u64) -> Self {
        let faults = Arc::new(Mutex::new(Faults::new(seed)));
        Self { hub: Arc::clone(hub), service: service.to_owned(), faults }
    }
}

#[tonic::async_trait]
impl Parent for Link {
    async fn follow(&self, mut requests: mpsc::Receiver<FollowRequest>) -> Result<Responses, Status> {
        let publisher = self.hub.0.lock().unwrap().clone();
        let publisher = publisher.ok_or_else(|| Status::unavailable("nobody publishes"))?;
        let Some(FollowRequest { request: Some(Request::Start(start)) }) = requests.recv().await else {
            panic!("the first request is not start");
        };
        let stream = publisher.follow(peer(&self.service), start, ReceiverStream::new(requests).map(Ok)).await?;
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(carry(stream, sender, Arc::clone(&self.faults)));
        Ok(Box::pin(ReceiverStream::new(receiver)))
    }
}

async fn carry(
    mut stream: FollowStream,
    sender: mpsc::Sender<Result<FollowResponse, Status>>,
    faults: Arc<Mutex<Faults>>,
) {
    let mut held_back: Option<Bytes> = None;
    loop {
        let message = tokio::select! {
            message = stream.next() => message,
            () = sender.closed() => return,
        };
        let message = match message {
            Some(Ok(message)) => message,
            Some(Err(status)) => return drop(sender.send(Err(status)).await),
            None => return,
        };
        let (fate, delay) = {
            let mut faults = faults.lock().unwrap();
            (faults.fate(), faults.delay)
        };
        tokio::time::sleep(delay).await;
        let mut arriving = Vec::new();
        match fate {
            Fate::Arrives => arriving.push(message),
            Fate::Lost => {}
            Fate::Twice => arriving.extend([message.clone(), message]),
            Fate::Overtaken if held_back.is_none() => {
                held_back = Some(message);
                continue;
            }
            Fate::Overtaken => arriving.push(message),
            Fate::Cut => return drop(sender.send(Err(Status::unavailable("cut"))).await),
        }
        arriving.extend(held_back.take());
        for message in arriving {
            let decoded = prost::Message::decode(message).expect("publishers send valid messages");
            if sender.send(Ok(decoded)).await.is_err() {
                return;
            }
        }
    }
}

pub fn peer(service: &str) -> Peer {
    let domain = TrustDomain::try_from("test.example").unwrap();
    let service = ServiceName::try_from(service).unwrap();
    Peer { id: SpiffeId::service(domain, service), serial: "1".to_owned(), not_after: u64::MAX, role: None }
}
