//! Telling the identity service that this process lives, what it holds, and which ASAP key it has.

use std::sync::Arc;
use std::time::Duration;

use mesh_asap::SigningKey;
use tenon_proto::identity::v1::{ConfirmRequest, ConfirmResponse};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use super::JoinError;
use super::attest;
use super::membership::{Deed, Membership};
use crate::grpc;

/// The least time between two confirmations, however often one is asked for.
const LEAST: Duration = Duration::from_millis(if cfg!(test) { 1 } else { 500 });

/// How long the end of a process may be held up by saying good-bye.
const GOOD_BYE: Duration = Duration::from_secs(1);

/// Confirms the key that signs every minute until `shutdown`; at once at the start, with a new SVID, with a new key, and
/// whenever somebody asks for it. At the end it says that this process need not be waited for.
pub(super) async fn run(member: Arc<Membership>, shutdown: CancellationToken) {
    let mut line = Line::new(Arc::clone(&member));
    stay(&member, &mut line, &shutdown).await;
    // Whoever is not heard is waited for until its SVID has ended, as one that was killed is.
    let key = Arc::clone(&member.key.borrow());
    let _not_heard = tokio::time::timeout(GOOD_BYE, line.leave(&key)).await;
}

async fn stay(member: &Arc<Membership>, line: &mut Line, shutdown: &CancellationToken) {
    let mut pause = None;
    loop {
        let key = Arc::clone(&member.key.borrow());
        let outcome = tokio::select! {
            () = shutdown.cancelled() => return,
            outcome = line.confirm(&key) => outcome,
        };
        let wait = match outcome {
            Ok(_) => {
                member.done(Deed::Confirmation);
                pause = None;
                member.timing.confirm.mul_f64(1.0 - rand::random::<f64>() / 10.0)
            }
            Err(error) => {
                if member.failed(Deed::Confirmation, &error) {
                    tracing::warn!(%error, "this process is not confirmed: its key may be forgotten if that lasts");
                }
                *pause.insert(member.timing.pause(pause))
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
            () = asked(member, line, &key) => {}
        }
    }
}

/// Until there is a reason not to wait.
async fn asked(member: &Membership, line: &Line, confirmed: &Arc<SigningKey>) {
    tokio::time::sleep(LEAST).await;
    let (mut changes, mut keys) = (member.identity.changes(), member.key.subscribe());
    loop {
        if line.is_old() || !Arc::ptr_eq(confirmed, &keys.borrow_and_update()) {
            return;
        }
        tokio::select! {
            () = member.confirm.notified() => return,
            _ = changes.changed() => {}
            _ = keys.changed() => {}
        }
    }
}

/// A connection to the identity service that is made anew with each SVID, so that none outlives what it was opened with.
pub(super) struct Line {
    member: Arc<Membership>,
    channel: Channel,
    /// Of the SVID that `channel` was made with.
    serial: String,
}

impl Line {
    pub(super) fn new(member: Arc<Membership>) -> Self {
        let (channel, serial) = open(&member);
        Self { member, channel, serial }
    }

    /// Has `key` published, or noted as still in use.
    pub(super) async fn confirm(&mut self, key: &SigningKey) -> Result<ConfirmResponse, JoinError> {
        if self.is_old() {
            (self.channel, self.serial) = open(&self.member);
        }
        self.send(key, false).await
    }

    /// Says that this process ends.
    async fn leave(&mut self, key: &SigningKey) -> Result<ConfirmResponse, JoinError> {
        self.send(key, true).await
    }

    async fn send(&self, key: &SigningKey, leaving: bool) -> Result<ConfirmResponse, JoinError> {
        let svid = self.member.identity.svid();
        let request = ConfirmRequest {
            asap_key: Some(attest::public_half(key)),
            instance: self.member.instance.to_string(),
            issuing_authority: svid.issuing_authority().map(|hash| hash.to_vec().into()).unwrap_or_default(),
            svid_not_after_unix_seconds: svid.not_after(),
            leaving,
        };
        let mut client = attest::client(self.channel.clone());
        attest::deadline(client.confirm(request)).await.map_err(|status| JoinError::Call {
            address: self.member.identity_address,
            call: "Confirm",
            status: Box::new(status),
        })
    }

    fn is_old(&self) -> bool {
        self.serial != self.member.identity.svid().serial()
    }
}

fn open(member: &Membership) -> (Channel, String) {
    let serial = member.identity.svid().serial().to_owned();
    (grpc::channel(member.identity_address, &member.identity, &attest::identity_service()), serial)
}
