//! The next SVID: at half life of the current one, soon after the mesh has another issuing CA, and after its end by
//! attesting again.

use std::sync::Arc;
use std::time::Duration;

use tenon_proto::identity::v1::RenewRequest;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::attest::{self, Issued, Request};
use super::membership::{Deed, Membership};
use super::state::{self, Attempt};
use super::{Config, JoinError, checked_pin};
use crate::{Identity, Svid, TrustBundle, clock, grpc};

/// The least wait: an issuer that hands out old certificates is not flooded.
pub(super) const LEAST: Duration = Duration::from_millis(if cfg!(test) { 20 } else { 1000 });

/// Renews until `shutdown`: new key pair, same ASAP key, over mTLS with the SVID that is still valid. The new one is used
/// from the next handshake on; nothing is closed. Failures are tried again with growing pauses, and as soon as the
/// identity service is heard again.
pub(super) async fn run(member: Arc<Membership>, config: Config, shutdown: CancellationToken) {
    let mut pause = None;
    let mut followed = None;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = due(&member, pause, followed) => {}
        }
        let announced = member.identity.bundle().rotation().issuing_authority;
        let attempt = async {
            if has_ended(&member.identity) { attest_again(&member, &config).await } else { renew(&member).await }
        };
        let outcome = tokio::select! {
            () = shutdown.cancelled() => return,
            outcome = attempt => outcome.and_then(|issued| take(&member.identity, issued)),
        };
        match outcome {
            Ok(()) => {
                let svid = member.identity.svid();
                tracing::info!(serial = svid.serial(), not_after = svid.not_after(), "SVID renewed");
                member.done(Deed::Renewal);
                (pause, followed) = (None, announced);
            }
            Err(error) => {
                report(&member, &error);
                pause = Some(member.timing.pause(pause));
            }
        }
    }
}

/// Until the next attempt. `pause` follows a failure; `followed` is the issuing CA for whose sake the SVID was renewed
/// last, so that a mesh that announces one and signs with another is not asked without end.
async fn due(member: &Membership, pause: Option<Duration>, followed: Option<[u8; 32]>) {
    let identity = &member.identity;
    let mut changes = identity.changes();
    let at_latest = Instant::now() + pause.unwrap_or_else(|| until_half_life(&identity.svid(), rand::random()));
    let mut soon = None;
    loop {
        let announced = identity.bundle().rotation().issuing_authority;
        let other = announced.is_some() && announced != identity.svid().issuing_authority() && announced != followed;
        if pause.is_none() && (other || has_ended(identity)) {
            soon.get_or_insert_with(|| Instant::now() + member.timing.soon());
        }
        let at = soon.map_or(at_latest, |soon| soon.min(at_latest));
        tokio::select! {
            () = tokio::time::sleep_until(at) => return,
            () = member.heard.notified(), if pause.is_some() => return,
            _ = changes.changed() => {}
        }
    }
}

/// Whether nobody takes the SVID any more.
fn has_ended(identity: &Identity) -> bool {
    let svid = identity.svid();
    clock::unix_seconds() > svid.not_after() || identity.revoked().serials.contains(svid.serial())
}

/// From now until half of the life is over, and up to a tenth of it longer, so that a mesh does not renew at once.
/// `random` is uniform over all values.
pub(super) fn until_half_life(svid: &Svid, random: u16) -> Duration {
    let life = Duration::from_secs(svid.not_after().saturating_sub(svid.not_before()));
    let jitter = life / 10 * u32::from(random) / u32::from(u16::MAX);
    let due = Duration::from_secs(svid.not_before()) + life / 2 + jitter;
    due.saturating_sub(clock::since_epoch()).max(LEAST)
}

/// One attempt, on a connection of its own: none lives longer than the SVID that it was opened with.
async fn renew(member: &Membership) -> Result<Issued, JoinError> {
    let id = member.identity.id();
    let request = Request::new(id)?;
    let asap_key = Arc::clone(&member.key.borrow());
    let renew = RenewRequest {
        csr: request.csr.clone().into(),
        asap_key: Some(attest::public_half(&asap_key)),
        instance: member.instance.to_string(),
    };
    let channel = grpc::channel(member.identity_address, &member.identity, &attest::identity_service());
    let answer = attest::deadline(attest::client(channel).renew(renew)).await.map_err(|status| JoinError::Call {
        address: member.identity_address,
        call: "Renew",
        status: Box::new(status),
    })?;
    request.accept(answer, id)
}

/// Gets in again as on the first start, with the ASAP key that peers know.
async fn attest_again(member: &Membership, config: &Config) -> Result<Issued, JoinError> {
    let proofs = config.attestation.proofs()?;
    if proofs.is_empty() {
        let why =
            "the identity service was not reached before the certificate ended: it is of no use any more".to_owned();
        return Err(JoinError::NoToken { why, dir: config.state_dir.clone(), service: config.service.clone() });
    }
    let (pin, known) = (checked_pin(&config.pin)?, TrustBundle::clone(&member.identity.bundle()));
    let bundle = attest::trusted_bundle(config, &pin, Some(known)).await?;
    let (asap_key, service) = (Arc::clone(&member.key.borrow()), member.service.clone());
    let attempt = match member.on_disk(move |dir| state::attempt(dir, &service)).await {
        Ok(attempt) => attempt,
        Err(error) => {
            tracing::warn!(%error, "attesting with keys that are not on disk");
            Attempt::fresh(&member.service)?
        }
    };
    let issued = attest::attest(config, bundle, &proofs, &attempt.key, &asap_key, &member.instance).await?;
    if let Err(error) = member.on_disk(state::forget_attempt).await {
        tracing::warn!(%error, "the keys of an attempt that has worked stay on disk");
    }
    Ok(issued)
}

/// A bundle that is older than what replication has brought meanwhile is left out.
fn take(identity: &Identity, issued: Issued) -> Result<(), JoinError> {
    let mismatch = |error: crate::Mismatch| JoinError::Answer(error.to_string());
    if issued.bundle.rotation().sequence >= identity.bundle().rotation().sequence {
        identity.set_bundle(issued.bundle).map_err(mismatch)?;
    }
    identity.set_svid(issued.svid).map_err(mismatch)
}

fn report(member: &Membership, error: &JoinError) {
    let news = member.failed(Deed::Renewal, error);
    if has_ended(&member.identity) {
        tracing::error!(%error, "the SVID has ended: every call fails until there is another one");
    } else if news {
        let minutes = member.standing().svid_seconds_left / 60;
        tracing::warn!(%error, minutes, "the SVID could not be renewed, the current one is still valid");
    }
}
