//! Where this instance takes calls, as it is told on one stream after the other.

use std::{sync::Arc, time::Duration};

use tenon_proto::policy::v1::{
    ReportRequest,
    report_request::{Register, Request},
};
use tokio::{
    sync::{
        mpsc::{self, error::TrySendError},
        watch,
    },
    time::{Instant, sleep_until},
};
use tonic::Status;
use tracing::{info, warn};

use super::request;
use crate::{
    metrics::Reports,
    register::{Registration, Wanted},
};

/// After this long it is told again what could not be registered.
const AGAIN: Duration = Duration::from_secs(5);

pub struct Registering {
    registration: Arc<Registration>,
    wanted: watch::Receiver<Wanted>,
    counters: Arc<Reports>,
    region: String,
    zone: String,
    /// What was told on this stream.
    told: u64,
    /// When to tell it again.
    again: Option<Instant>,
    /// Why it was not registered, so that it is said once.
    problem: String,
}

impl Registering {
    pub fn new(registration: Arc<Registration>, counters: Arc<Reports>, region: String, zone: String) -> Self {
        let wanted = registration.wanted();
        Self { registration, wanted, counters, region, zone, told: 0, again: None, problem: String::new() }
    }

    /// Tells what was not told on this stream.
    pub fn send(&mut self, requests: &mpsc::Sender<ReportRequest>) -> Result<(), Status> {
        let Wanted { sequence, address, .. } = self.wanted.borrow_and_update().clone();
        if sequence <= self.told {
            return Ok(());
        }
        let address = address.map(|address| address.to_string()).unwrap_or_default();
        let (region, zone) = (self.region.clone(), self.zone.clone());
        match requests.try_send(request(Request::Register(Register { sequence, address, region, zone }))) {
            Ok(()) => (self.told, self.again) = (sequence, None),
            // It reads slowly.
            Err(TrySendError::Full(_)) => self.again = Some(Instant::now() + AGAIN),
            Err(TrySendError::Closed(_)) => return Err(Status::cancelled("the stream has ended")),
        }
        Ok(())
    }

    /// Comes back when there is something to tell.
    pub async fn due(&mut self) {
        let again = async {
            match self.again {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // Its sender lives as long as this does.
            _changed = self.wanted.changed() => {}
            () = again => {
                self.again = None;
                self.registration.again();
            }
        }
    }

    /// What was told is answered.
    pub fn answered(&mut self, sequence: u64, problem: String) {
        let Wanted { sequence: last, address, .. } = self.wanted.borrow().clone();
        self.registration.answered(sequence);
        if sequence != last {
            return;
        }
        self.counters.registered(address.is_some() && problem.is_empty());
        if !problem.is_empty() {
            self.again = Some(Instant::now() + AGAIN);
            if problem != self.problem {
                warn!(problem, "this instance cannot be registered: callers do not find it by that");
            }
        } else if let Some(address) = address {
            info!(%address, "this instance is registered");
        } else {
            info!("this instance is no longer registered");
        }
        self.problem = problem;
    }

    /// The stream has: what was told holds some seconds longer, and is told again on the next.
    pub fn ended(&mut self) {
        (self.told, self.again) = (0, None);
        self.counters.registered(false);
    }
}
