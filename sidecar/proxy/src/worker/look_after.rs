//! What a worker does beside its calls: ends those whose time is over, and decides open ones again when something changed.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use mesh_identity::clock;
use sidecar_core::{
    Lookup, Named, Proven, Refusal, Token, Wanted,
    inbound::{self, Head, Stop, Waited},
};
use tokio::{task::JoinHandle, time::MissedTickBehavior};

use super::Worker;
use crate::{
    body::deadline_refusal,
    caller::check_key,
    decisions::Grounds,
    limits::Memory,
    open::{OpenCall, Question},
    tenants::{Answered, TenantRef},
};

/// Open calls are looked at this often.
const AGAIN: Duration = Duration::from_millis(250);
/// How often idle connections are looked for.
const PRUNE: Duration = Duration::from_secs(30);

impl Worker {
    /// Ends calls whose deadline has passed unnoticed, decides open calls again when something changed, and closes
    /// connections nobody uses, or whose peer is revoked.
    pub(super) async fn look_after(self: Arc<Self>) {
        self.live.pools.enter(&self.pool);
        let mut changes = self.live.changes();
        let mut trust = self.live.identity.changes();
        // Those who came before this was read have been looked at since.
        let mut outsiders = self.live.outside.tls.version();
        let mut prune = tokio::time::interval(PRUNE);
        let mut look = tokio::time::interval(AGAIN);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // One at a time; and whether there are calls that could not be decided yet.
        let mut asking: Option<JoinHandle<bool>> = None;
        let mut undecided = false;
        loop {
            tokio::select! {
                // At once, and not with the next look: a revocation is for now.
                Ok(()) = trust.changed() => self.trust_again(),
                _ = prune.tick() => self.pool.prune(),
                _ = look.tick() => {
                    for line in self.open.overdue(tokio::time::Instant::now() - AGAIN) {
                        line.hang_up(deadline_refusal());
                    }
                    self.seats.sweep();
                    self.spare_memory();
                    if let Some(asked) = asking.take_if(|asked| asked.is_finished()) {
                        undecided |= !asked.await.unwrap_or(false);
                    }
                    // A burst of changes costs one round.
                    let changed = changes.has_changed().is_ok_and(|changed| changed);
                    if changed {
                        changes.mark_unchanged();
                        let now = self.live.outside.tls.version();
                        if now != outsiders {
                            outsiders = now;
                            self.credentials().forget_clients();
                            self.look_at_callers();
                        }
                    }
                    if changed || undecided {
                        let unknown = self.decide_again();
                        undecided = !unknown.is_empty() && asking.is_some();
                        if !unknown.is_empty() && asking.is_none() {
                            asking = Some(tokio::spawn(Arc::clone(&self).ask_again(unknown)));
                        }
                    }
                }
            }
        }
    }

    /// Where memory is short, ends the calls whose answer has not been read for longest.
    fn spare_memory(&self) {
        let memory = &self.live.limits.memory;
        if let Some(before) = memory.ended_before() {
            let unread = self.open.unread(before);
            memory.count(unread.len());
            unread.iter().for_each(|line| line.drop_answer(Memory::refusal()));
        }
    }

    /// Ends what was begun on the strength of an identity or a key that is revoked by now, in both directions.
    fn trust_again(&self) {
        let revoked = self.live.identity.revoked();
        self.look_at_callers();
        self.pool.close_revoked();
        for call in self.open.snapshot() {
            if let Question::Inbound { caller, token, .. } = &call.question
                && let Err(refusal) = caller.check().and_then(|()| check_key(token.as_ref(), &revoked))
            {
                call.line.hang_up(refusal);
            }
        }
    }

    /// Closes the connections of those who may not be here any more.
    fn look_at_callers(&self) {
        let callers: Vec<_> = self.callers().iter().filter_map(Weak::upgrade).collect();
        for caller in callers {
            caller.look_again(&self.live.identity, &self.live.outside.tls);
        }
    }

    /// Ends what is not allowed any more. Returns the calls of tenants that are not held.
    fn decide_again(&self) -> Vec<(OpenCall, Wanted)> {
        let mut unknown = Vec::new();
        for call in self.open.snapshot() {
            match self.still(&call, None) {
                Still::Allowed => {}
                Still::Refused(refusal, grounds) => call.line.hang_up_on(refusal, grounds),
                Still::Unknown(wanted) => unknown.push((call, wanted)),
            }
        }
        unknown
    }

    /// Calls of tenants that are not held any more are decided by what the TCS says of them. While that cannot be asked
    /// they go on, since nothing is known against them; the answer says whether all were decided.
    async fn ask_again(self: Arc<Self>, unknown: Vec<(OpenCall, Wanted)>) -> bool {
        let (calls, wanted): (Vec<_>, Vec<_>) = unknown.into_iter().unzip();
        let answers = self.live.tenants.resolve_all(&wanted).await;
        let mut decided = true;
        for (call, answer) in calls.iter().zip(&answers) {
            match self.still(call, Some(answer)) {
                Still::Refused(refusal, grounds) => call.line.hang_up_on(refusal, grounds),
                Still::Allowed => {}
                Still::Unknown(_) => decided = false,
            }
            decided &= !matches!(answer, Lookup::NotHeld);
        }
        decided
    }

    /// Whether this open call would be allowed now. Its credentials were proven when it began.
    fn still(&self, call: &OpenCall, answer: Option<&Lookup<TenantRef>>) -> Still {
        match &call.question {
            Question::Inbound { caller, transaction, token: _ } => {
                if let Err(refusal) = caller.check() {
                    return Still::Refused(refusal, None);
                }
                let facts = &call.line.facts;
                let tenant = facts.tenant.as_ref();
                let tenant = tenant.map_or(Named::None, |id| Named::One(id.to_str().unwrap_or_default()));
                let (path, token, txn_token) = (facts.uri.path(), Token::One(b""), Named::One(""));
                let head = Head { path, token, tenant, tenant_revision: None, txn_token };
                let mut proven = Proven { transaction: *transaction };
                let (state, now) = (self.live.inbound(), clock::unix_seconds());
                let tenants = Answered { tenants: &self.live.tenants, answer };
                let waited = Waited { for_revision: true, for_tenant: false };
                match inbound::decide(&state, &tenants, &mut proven, caller.peer(), &head, now, waited) {
                    Ok(_) | Err(Stop::WaitFor(_)) => Still::Allowed,
                    Err(Stop::Refused(refusal)) => {
                        let grounds = Grounds::of(&state, &refusal, false);
                        Still::Refused(refusal, Some(grounds))
                    }
                    Err(Stop::Resolve(wanted)) => Still::Unknown(wanted),
                }
            }
            Question::Outbound => {
                let checked = self.live.outbound().quarantined.check(&self.service, &call.line.facts.service);
                checked.map_or_else(|refusal| Still::Refused(refusal, None), |()| Still::Allowed)
            }
        }
    }
}

/// What an open call has come to.
enum Still {
    Allowed,
    Refused(Refusal, Option<Box<Grounds>>),
    /// Its tenant is not held.
    Unknown(Wanted),
}
