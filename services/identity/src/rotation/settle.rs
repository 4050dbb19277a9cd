//! What follows from the CA's files: this process's own identity, and the replicated bundle.

use std::sync::Arc;

use journal::{AppendError, Expected, Journal, Position, ReadError, Write};
use mesh_config::names::{ServiceName, control_plane};
use mesh_identity::{Identity, Mismatch, Svid};
use prost::Message as _;
use tenon_proto::identity::v1::TrustBundle;

use super::authority_in_short;
use crate::audit::{Audit, Event};
use crate::authority::Authority;
use crate::ca::{RotateError, SVID_LIFETIME};
use crate::{Ca, IssueError};

/// The record may change under an attempt this often before it is given up.
const ATTEMPTS: usize = 4;

/// Why not everything follows from the CA's files yet.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    #[error("the trust bundle cannot be read from the store")]
    Read(#[from] ReadError),
    #[error("the trust bundle cannot be written to the store")]
    Write(#[from] AppendError),
    #[error("the sequence of the trust bundle cannot be moved on")]
    Sequence(#[from] RotateError),
    #[error(transparent)]
    Own(#[from] OwnError),
}

/// Why this process has no certificate of its own.
#[derive(Debug, thiserror::Error)]
pub enum OwnError {
    #[error("the identity service cannot have a certificate of its own")]
    Issue(#[from] IssueError),
    #[error("the CA is of another mesh")]
    Mismatch(#[from] Mismatch),
}

/// A certificate for this process.
pub(crate) fn own_svid(ca: &Ca, audit: &Audit, now: u64) -> Result<Svid, OwnError> {
    let service = ServiceName::try_from(control_plane::IDENTITY).expect("a constant that is a service name");
    let svid = ca.issue_service(&service, SVID_LIFETIME, now)?;
    let (service, serial, not_after) = (service.as_str(), svid.serial(), svid.not_after());
    let event = Event::Issue { method: "own", service, serial, not_after, kid: None, attested_by: None };
    if let Err(error) = audit.record(event) {
        // Without a certificate the service could not even say that its disk is full.
        tracing::error!(%error, "the own certificate is not in the audit log");
    }
    tracing::info!(method = "own", service, serial, not_after, "certificate issued");
    Ok(svid)
}

/// Has this process trust what the CA says, and show a certificate of the issuing CA that signs, renewed at half of its
/// life; and has the replicated record say what the CA says. Does nothing where it is so already.
pub(crate) async fn settle(authority: &Authority, now: u64) -> Result<(), PublishError> {
    let followed = follow(&authority.ca, &authority.identity, &authority.audit, now);
    publish(&authority.ca, &*authority.bundles, now).await?;
    Ok(followed?)
}

fn follow(ca: &Ca, identity: &Identity, audit: &Audit, now: u64) -> Result<(), OwnError> {
    let bundle = ca.bundle();
    if *identity.bundle() != bundle {
        // First the roots: a certificate below a root that this process does not trust is of no use to it.
        identity.set_bundle(bundle.clone())?;
    }
    let svid = identity.svid();
    let half = svid.not_before() + svid.not_after().saturating_sub(svid.not_before()) / 2;
    if now >= half || svid.issuing_authority() != bundle.rotation().issuing_authority {
        identity.set_svid(own_svid(ca, audit, now)?)?;
    }
    Ok(())
}

/// Makes the replicated record what the CA says, with a sequence that nobody has seen before. A revision is spent only
/// when it differs.
async fn publish(ca: &Arc<Ca>, journal: &dyn Journal, now: u64) -> Result<(), PublishError> {
    let mut attempt = 1;
    loop {
        let present = journal.get(ca.trust_domain().as_str()).await?;
        // After the record was read, so that never an older one is written over a newer one.
        let bundle = ca.bundle();
        let value = bundle.to_proto().encode_to_vec();
        if present.as_ref().is_some_and(|record| *record.value == *value) {
            return Ok(());
        }
        let published = present.as_ref().and_then(|record| TrustBundle::decode(record.value.clone()).ok());
        let sequence = published.map_or(0, |published| published.sequence);
        if sequence >= bundle.rotation().sequence {
            // The CA was put back from an older copy: followers have seen more than it knows of.
            let ca = Arc::clone(ca);
            let passed = tokio::task::spawn_blocking(move || ca.pass(sequence, now)).await;
            passed.unwrap_or(Err(RotateError::Busy))?;
            continue;
        }
        let expected = present.map_or(Expected::Absent, |record| Expected::Revision(record.revision));
        let key = bundle.trust_domain().as_str();
        match journal.append(vec![Write::put(key, value).expecting(expected)]).await {
            Ok(_) => {
                let authority = authority_in_short(bundle.rotation().issuing_authority.as_ref());
                let (sequence, roots) = (bundle.rotation().sequence, bundle.roots().len());
                tracing::info!(sequence, roots, authority, "trust bundle published");
                return Ok(());
            }
            Err(AppendError::Conflict { .. }) if attempt < ATTEMPTS => attempt += 1,
            Err(error) => return Err(error.into()),
        }
    }
}

impl PublishError {
    /// Somebody must make room.
    pub(super) fn disk_is_full(&self) -> bool {
        matches!(self, Self::Write(AppendError::Full(_)))
    }
}

impl Authority {
    /// Where the present bundle stands in its journal; none before it is published. Who has acknowledged an earlier one
    /// holds no part of this one.
    pub(super) async fn bundle_position(&self) -> Result<Option<Position>, ReadError> {
        let record = self.bundles.get(self.ca.trust_domain().as_str()).await?;
        let present = self.ca.bundle().to_proto().encode_to_vec();
        let Some(record) = record.filter(|record| *record.value == *present) else { return Ok(None) };
        Ok(Some(Position::new(self.bundles.head().await?.epoch, record.revision)))
    }
}
