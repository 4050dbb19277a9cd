//! The next SVID, at half life of the current one.

use std::time::Duration;

use tenon_proto::identity::v1::RenewRequest;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use super::attest::{self, Request};
use super::{Config, JoinError, Joined, state};
use crate::{Svid, clock, grpc};

/// Pauses after failed attempts: doubled each time, between these.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(if cfg!(test) { 20 } else { 1000 });
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Renews the SVID of `joined` at half life, with jitter, until `shutdown`: new key pair, same ASAP key, over mTLS with
/// the SVID that is still valid. The new one is used from the next handshake on; nothing is closed. Failures are
/// tried again with growing pauses. When the SVID has run out, only the process's operator can help: that is logged
/// as an error, and asking goes on, in case it was the clock.
pub fn keep_renewed(joined: &Joined, config: Config, shutdown: CancellationToken) -> JoinHandle<()> {
    let joined = joined.clone();
    tokio::spawn(async move {
        let channel = grpc::channel(config.identity_address, &joined.identity, &attest::identity_service());
        let mut pause = None;
        loop {
            let wait = pause.unwrap_or_else(|| until_half_life(&joined.identity.svid(), rand::random()));
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
            pause = match renew(&joined, &config, channel.clone()).await {
                Ok(()) => None,
                Err(error) => {
                    let expired = clock::unix_seconds() > joined.identity.svid().not_after();
                    if expired {
                        tracing::error!(%error, "the SVID has expired and cannot be renewed: restart with a new join token");
                    } else {
                        tracing::warn!(%error, "the SVID could not be renewed, the current one is still valid");
                    }
                    Some(pause.map_or(FIRST_PAUSE, |last: Duration| (last * 2).min(LONGEST_PAUSE)))
                }
            };
        }
    })
}

/// From now until half of the life is over, and up to a tenth of it longer, so that a mesh does not renew at once.
/// `random` is uniform over all values. Never at once: an issuer that hands out old certificates is not flooded.
pub(super) fn until_half_life(svid: &Svid, random: u16) -> Duration {
    let life = Duration::from_secs(svid.not_after().saturating_sub(svid.not_before()));
    let jitter = life / 10 * u32::from(random) / u32::from(u16::MAX);
    let due = Duration::from_secs(svid.not_before()) + life / 2 + jitter;
    due.saturating_sub(clock::since_epoch()).max(FIRST_PAUSE)
}

/// One attempt. State on disk is written after the live one is swapped: a full disk takes no certificate away.
pub(super) async fn renew(joined: &Joined, config: &Config, channel: Channel) -> Result<(), JoinError> {
    let id = joined.identity.id();
    let request = Request::new(id)?;
    let renew = RenewRequest {
        csr: request.csr.clone().into(),
        asap_key: Some(attest::public_half(&joined.asap_key)),
        ..RenewRequest::default()
    };
    let answer = attest::deadline(attest::client(channel).renew(renew)).await.map_err(|status| JoinError::Call {
        address: config.identity_address,
        call: "Renew",
        status: Box::new(status),
    })?;
    let issued = request.accept(answer, id)?;
    let mismatch = |error: crate::Mismatch| JoinError::Answer(error.to_string());
    joined.identity.set_bundle(issued.bundle).map_err(mismatch)?;
    joined.identity.set_svid(issued.svid).map_err(mismatch)?;
    let svid = joined.identity.svid();
    tracing::info!(serial = svid.serial(), not_after = svid.not_after(), "SVID renewed");
    if let Err(error) = state::store_svid(&config.state_dir, &svid, &joined.identity.bundle()) {
        tracing::warn!(%error, "the renewed SVID is in use but not on disk");
    }
    Ok(())
}
