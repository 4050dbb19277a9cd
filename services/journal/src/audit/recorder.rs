//! Which calls of a control-plane server are recorded, and how.

use std::sync::Arc;

use futures_util::{FutureExt as _, future::BoxFuture};
use mesh_identity::{
    Peer, Workload,
    grpc::{Recorded, Recorder, Subject},
};
use tonic::Status;

use super::{Audit, Begun, Event, Outcome, of_status};

/// What operators may ask and what tells nothing of a tenant and no secret. `List` of the audit record records itself.
const UNRECORDED: &[&str] = &[
    "/tenon.audit.v1.Audit/Head",
    "/tenon.audit.v1.Audit/List",
    "/tenon.identity.v1.Identity/ListKeys",
    "/tenon.identity.v1.Identity/ListRevocations",
    "/tenon.identity.v1.Identity/Renew",
    "/tenon.policy.v1.Policy/Describe",
    "/tenon.policy.v1.Policy/Flows",
    "/tenon.policy.v1.Policy/History",
    "/tenon.policy.v1.Policy/Rollout",
    "/tenon.tcs.v1.Operations/GetGuard",
];
/// The same of whole services.
const UNRECORDED_SERVICES: &[&str] = &["/grpc.", "/tenon.replication.v1."];

/// What takes something away is made whether or not it can be recorded first: a full disk must keep nobody's access open.
/// `Apply`, `Rollback` and `EndRollout` are how a quarantine is made.
const ANYWAY: &[&str] = &[
    "/tenon.identity.v1.Identity/Revoke",
    "/tenon.policy.v1.Policy/Apply",
    "/tenon.policy.v1.Policy/EndRollout",
    "/tenon.policy.v1.Policy/Rollback",
    "/tenon.tcs.v1.Tenants/Delete",
    "/tenon.tcs.v1.Tenants/Suspend",
];

/// What services change, too often to wait for a record of each: recorded once it has ended.
const AFTERWARDS: &[&str] = &["/tenon.tcs.v1.Lifecycle/Apply"];

/// `Tenants/Suspend` of `/tenon.tcs.v1.Tenants/Suspend`.
pub(super) fn action(path: &str) -> &str {
    let start = path.rfind('/').and_then(|end| path[..end].rfind(['.', '/'])).map_or(0, |dot| dot + 1);
    &path[start..]
}

impl Recorder for Audit {
    fn begin(
        &self,
        peer: &Arc<Peer>,
        path: &str,
        subject: Subject,
    ) -> Option<BoxFuture<'static, Result<Box<dyn Recorded>, Status>>> {
        if AFTERWARDS.contains(&path) {
            let call = Afterwards { audit: self.clone(), event: Some(event(peer, path)), subject };
            return Some(std::future::ready(Ok(Box::new(call) as Box<dyn Recorded>)).boxed());
        }
        let operator = matches!(peer.id.workload(), Workload::Operator(_));
        if !operator
            || UNRECORDED.contains(&path)
            || UNRECORDED_SERVICES.iter().any(|service| path.starts_with(service))
        {
            return None;
        }
        let (audit, event, anyway) = (self.clone(), event(peer, path), ANYWAY.contains(&path));
        Some(
            async move {
                let begun = if anyway { audit.begin_anyway(event).await } else { audit.begin(event).await? };
                Ok(Box::new(Call { begun: Some(begun), subject }) as Box<dyn Recorded>)
            }
            .boxed(),
        )
    }

    fn refused(&self, peer: &Peer, path: &str, status: &Status) {
        // What sidecars may not ask is in the log; who tries an operator's calls may be an intruder.
        if matches!(peer.id.workload(), Workload::Operator(_)) {
            self.note_limited(event(peer, path).outcome(Outcome::Refused).detail("why", status.message()));
        }
    }
}

fn event(peer: &Peer, path: &str) -> Event {
    let event = Event::new(peer.id.to_string(), action(path), "").detail("serial", &peer.serial);
    match peer.role {
        Some(role) => event.detail("role", role.as_str()),
        None => event,
    }
}

/// Recorded before it is made.
struct Call {
    /// Absent once it has ended.
    begun: Option<Begun>,
    subject: Subject,
}

impl Recorded for Call {
    fn ended(mut self: Box<Self>, outcome: Result<(), &Status>) {
        let Some(begun) = self.begun.take() else { return };
        let about = |event: Event| event.about(self.subject.text());
        match outcome {
            Ok(()) => begun.end(Outcome::Done, about),
            Err(status) => begun.end(of_status(status), |event| about(event).detail("why", status.message())),
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if let Some(begun) = self.begun.take() {
            begun.end(Outcome::Unknown, |event| event.about(self.subject.text()));
        }
    }
}

/// Recorded once it has ended, or nobody waits for it any more.
struct Afterwards {
    audit: Audit,
    event: Option<Event>,
    subject: Subject,
}

impl Recorded for Afterwards {
    fn ended(mut self: Box<Self>, outcome: Result<(), &Status>) {
        let Some(event) = self.event.take() else { return };
        let event = event.about(self.subject.text());
        match outcome {
            Ok(()) => self.audit.note(event),
            // Whoever may only ask must not fill the disk.
            Err(status) => {
                self.audit.note_limited(event.outcome(of_status(status)).detail("why", status.message()));
            }
        }
    }
}

impl Drop for Afterwards {
    fn drop(&mut self) {
        if let Some(event) = self.event.take() {
            self.audit.note(event.about(self.subject.text()).outcome(Outcome::Unknown));
        }
    }
}

#[cfg(test)]
mod tests;
