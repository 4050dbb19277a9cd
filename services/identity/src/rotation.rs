//! Rotations of roots, issuing CAs and ASAP keys, step by step. Never reads the clock.
//!
//! A step is refused before every live instance has acknowledged the one before it, so no process ever meets a
//! certificate that it does not trust. What follows from a step (this process's own identity, the replicated bundle) is
//! drawn from the CA's files alone: whoever is killed after a step was written comes up with all of its consequences.

mod rpc;
mod settle;

pub(crate) use rpc::rotate;
pub(crate) use settle::{OwnError, PublishError, own_svid, settle};

use std::collections::HashMap;

use journal::ReadError;
use mesh_config::names::ServiceName;
use mesh_identity::SpiffeId;
use tenon_proto::identity::v1::RotateResponse;
use tenon_proto::identity::v1::rotate_request::Step;
use tenon_proto::kind;

use crate::audit::{AuditError, Event};
use crate::authority::Authority;
use crate::ca::{Phase, RotateError, hex};
use crate::keys::KeyStoreError;
use crate::registry::Instance;
use crate::service::with_source;

/// What is to be done from time to time: a new issuing CA at half of the life of the present one, this process's own
/// certificate, whatever a step that was cut short has left to do, and what is read of writes that were not confirmed.
pub(crate) async fn maintain(authority: &Authority, now: u64) {
    let ca = std::sync::Arc::clone(&authority.ca);
    match tokio::task::spawn_blocking(move || ca.reload()).await {
        Ok(Ok(changed)) => {
            if changed {
                tracing::info!("another process has changed the CA");
            }
        }
        Ok(Err(error)) => tracing::error!(error = with_source(&error), "the files of the CA cannot be read"),
        Err(error) => tracing::error!(%error, "the files of the CA cannot be read"),
    }
    if authority.ca.issuing_is_due(now)
        && let Err(error) = authority.rotate(authority.identity.id(), Step::Issuing, now).await
    {
        tracing::error!(error = with_source(&error), "the issuing CA is not renewed, and will end");
    }
    if let Err(error) = settle(authority, now).await {
        tracing::error!(error = with_source(&error), "not everything follows from the CA yet");
    }
    if let Err(error) = authority.revocations.catch_up().await {
        tracing::error!(error = with_source(&error), "whether something is revoked is not known yet");
    }
    let ended = authority.registry.prune(now).await;
    if ended > 0 {
        tracing::info!(ended, "instances whose certificates have ended are forgotten");
    }
}

/// Why it is not known how a rotation stands, or a step was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StepError {
    #[error(transparent)]
    Rotate(#[from] RotateError),
    #[error(transparent)]
    Keys(#[from] KeyStoreError),
    #[error("the store of trust bundles cannot be read")]
    Read(#[from] ReadError),
    #[error(transparent)]
    Audit(#[from] AuditError),
    #[error("the step is done, but it cannot be published yet; that is tried again by itself")]
    Publish(#[from] PublishError),
    /// The thread that worked at it is gone.
    #[error("the step failed; the log of the identity service says why")]
    Gone,
}

/// Something that an instance may not hold yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lack {
    /// The present trust bundle.
    Bundle,
    /// An SVID below the root that signs.
    Root,
    /// An SVID of the issuing CA that signs.
    Svid,
    /// An ASAP key that was made after the last rotation of keys.
    AsapKey,
}

impl Lack {
    fn as_str(self) -> &'static str {
        match self {
            Self::Bundle => "trust-bundle",
            Self::Root => "root",
            Self::Svid => "svid",
            Self::AsapKey => "asap-key",
        }
    }
}

/// A live instance, and what it lacks.
struct Standing {
    instance: Instance,
    lacks: Vec<Lack>,
}

/// What a step needs everybody to hold before it.
fn needs(step: Step, phase: Phase) -> Option<Lack> {
    match (step, phase) {
        (Step::RootActivate, Phase::Prepared) => Some(Lack::Bundle),
        (Step::RootRetire, Phase::Activated) => Some(Lack::Root),
        (_, _) => None,
    }
}

fn name(step: Step) -> &'static str {
    match step {
        Step::Unspecified => "status",
        Step::RootPrepare => "root-prepare",
        Step::RootActivate => "root-activate",
        Step::RootRetire => "root-retire",
        Step::RootAbandon => "root-abandon",
        Step::Issuing => "issuing",
        Step::AsapKeys => "asap-keys",
    }
}

impl Authority {
    /// How things stand, and nothing else. Of a store that comes back it is not said that nobody is waited for.
    async fn rotation_status(&self, now: u64) -> Result<RotateResponse, StepError> {
        if self.ca.store_is_recovering() {
            return Ok(self.answer(false, RECOVERING.to_owned(), std::iter::empty()));
        }
        let standings = self.standings(now).await?;
        Ok(self.answer(true, String::new(), standings.into_iter().filter(|one| !one.lacks.is_empty())))
    }

    /// Does one step, or says what keeps it from being done. One step at a time.
    pub(crate) async fn rotate(&self, by: &SpiffeId, step: Step, now: u64) -> Result<RotateResponse, StepError> {
        if step == Step::Unspecified {
            return self.rotation_status(now).await;
        }
        let _alone = self.rotating.try_lock().map_err(|_| RotateError::Busy)?;
        let by = by.to_string();
        let refuse = |message: String, waiting: Vec<Standing>| {
            self.audit.record(Event::Rotate { by: &by, step: name(step), done: false, message: &message })?;
            Ok(self.answer(false, message, waiting.into_iter()))
        };
        if self.ca.store_is_recovering() {
            return refuse(RECOVERING.to_owned(), Vec::new());
        }
        if let Some(need) = needs(step, self.ca.phase()) {
            let mut waiting = self.standings(now).await?;
            waiting.retain(|one| one.lacks.contains(&need));
            if !waiting.is_empty() {
                return refuse(refusal(need, waiting.len()), waiting);
            }
        }
        self.audit.record(Event::Rotate { by: &by, step: name(step), done: true, message: "" })?;
        match self.change(step, now).await {
            Ok(()) => {}
            Err(StepError::Rotate(RotateError::OutOfTurn(message))) => return refuse(message.to_owned(), Vec::new()),
            Err(error) => {
                let message = error.to_string();
                self.audit.record(Event::Rotate { by: &by, step: name(step), done: false, message: &message })?;
                return Err(error);
            }
        }
        tracing::info!(by, step = name(step), sequence = self.ca.bundle().rotation().sequence, "rotation: step done");
        settle(self, now).await?;
        self.rotation_status(now).await
    }

    /// The change itself. Keys are encrypted with some effort, and files are synced: not on a thread of the runtime.
    async fn change(&self, step: Step, now: u64) -> Result<(), StepError> {
        let ca = std::sync::Arc::clone(&self.ca);
        let change = move || match step {
            Step::Unspecified => Ok(()),
            Step::RootPrepare => ca.prepare_root(now),
            Step::RootActivate => ca.activate_root(now),
            Step::RootRetire => ca.retire_root(now),
            Step::RootAbandon => ca.abandon_root(now),
            Step::Issuing => ca.renew_issuing(now),
            Step::AsapKeys => ca.rekey(now),
        };
        Ok(tokio::task::spawn_blocking(change).await.map_err(|_| StepError::Gone)??)
    }

    /// Whether an instance's service is revoked: it is let in nowhere, so nobody waits for it.
    pub(crate) fn is_revoked(&self, instance: &Instance) -> bool {
        ServiceName::try_from(instance.service.as_str()).is_ok_and(|name| self.revocations.names_service(&name))
    }

    /// Every live instance with what it lacks.
    async fn standings(&self, now: u64) -> Result<Vec<Standing>, StepError> {
        let bundle = self.ca.bundle();
        let rotation = bundle.rotation();
        let mut live = self.registry.live(now);
        live.retain(|instance| !self.is_revoked(instance));
        let behind = match self.bundle_position().await? {
            Some(position) => self.registry.behind(&live, self.ca.trust_domain(), kind::TRUST_BUNDLE, position),
            None => live.iter().collect(),
        };
        let old_keys = self.keys_created_before(rotation.rekey_created_before).await?;
        let standing = |instance: &Instance| {
            let holds = &instance.holds;
            let lacks = [
                (Lack::Bundle, behind.contains(&instance) && holds.sequence < rotation.sequence),
                (Lack::Root, !self.ca.is_of_active_root(&holds.issuing_authority)),
                (Lack::Svid, rotation.issuing_authority.is_some_and(|wanted| holds.issuing_authority != wanted[..])),
                (Lack::AsapKey, old_keys.contains_key(&instance.kid)),
            ];
            let lacks = lacks.into_iter().filter(|(_, lacking)| *lacking).map(|(lack, _)| lack).collect();
            Standing { instance: instance.clone(), lacks }
        };
        Ok(live.iter().map(standing).collect())
    }

    /// Ids of the keys that a rotation wants to be replaced, with their creation.
    async fn keys_created_before(&self, when: u64) -> Result<HashMap<String, u64>, StepError> {
        if when == 0 {
            return Ok(HashMap::new());
        }
        let keys = self.keys.list().await?.into_iter().filter(|key| key.created_unix_seconds < when);
        Ok(keys.map(|key| (key.kid, key.created_unix_seconds)).collect())
    }

    fn answer(&self, done: bool, message: String, waiting: impl Iterator<Item = Standing>) -> RotateResponse {
        let told = |Standing { instance, lacks }: Standing| {
            instance.to_proto(lacks.into_iter().map(|lack| lack.as_str().to_owned()).collect())
        };
        RotateResponse {
            done,
            message,
            waiting: waiting.map(told).collect(),
            trust_bundle: Some(self.ca.bundle().to_proto()),
            root_rotation: self.ca.phase().as_str().to_owned(),
        }
    }
}

const RECOVERING: &str = "the store is new or put back, and who lives is not known yet: try again in two minutes";

fn refusal(need: Lack, count: usize) -> String {
    let instances = if count == 1 { "1 live instance does".to_owned() } else { format!("{count} live instances do") };
    match need {
        Lack::Bundle => format!("{instances} not trust the new root yet"),
        Lack::Root => format!("{instances} not have a certificate below the new root yet"),
        Lack::Svid => format!("{instances} not have a certificate of the new issuing CA yet"),
        Lack::AsapKey => format!("{instances} not have a new ASAP key yet"),
    }
}

/// How logs name the issuing CA that signs.
fn authority_in_short(authority: Option<&[u8; 32]>) -> String {
    authority.map(|hash| hex(&hash[..8])).unwrap_or_default()
}

#[cfg(test)]
mod tests;
