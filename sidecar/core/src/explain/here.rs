//! What one sidecar says of a call from what it holds: for whoever asks it, and for `tenon policy explain`, which makes up
//! a sidecar from records.

use crate::{
    Named, Peer, Proven, Reason, Refusal, Tenants, Token, Transaction,
    inbound::{self, Stop, Verdict},
    policy::Policy,
};

use super::{Call, Explanation, limited, missed, named, passed, refused};

/// What the limits of a call that passes depend on.
#[derive(Debug)]
pub struct Granted<R> {
    /// The rule that decided, an index into [`Policy::rules`].
    pub rule: Option<u32>,
    /// Whose context the app would be handed.
    pub tenant: Option<R>,
}

/// What would happen, and where the call passes what its limits depend on.
pub type Asked<R> = Result<(Explanation, Option<Granted<R>>), Stop>;

/// What the callee's sidecar says of the call at `now` (Unix seconds), with the caller's credentials taken for good. Neither
/// what the rule's rate has left nor any other limit is looked at: that is for whoever asks, where the call passes so far.
///
/// # Errors
/// [`Stop::Resolve`]: the tenant is not held. Ask for it, and ask again with what was `waited` for. Never another one.
pub fn inbound<T: Tenants>(
    state: &inbound::State,
    tenants: &T,
    peer: Peer<'_>,
    call: &Call<'_>,
    now: u64,
    waited: inbound::Waited,
) -> Asked<T::Ref> {
    let nothing = Policy::empty();
    let policy = state.policy.as_deref().unwrap_or(&nothing);
    let (mut explanation, granted) = match ask(state, tenants, peer, call, now, waited) {
        Ok(Verdict { tenant, rule, audited, transaction: _ }) => {
            (passed(policy, rule, audited, Vec::new()), Some(Granted { rule, tenant }))
        }
        Err(Stop::Refused(refusal)) => (refused(policy, refusal, Vec::new()), None),
        Err(wait @ (Stop::WaitFor(_) | Stop::Resolve(_))) => return Err(wait),
    };
    let rule = explanation.rule_of(policy);
    if [explanation.reason, explanation.audited].contains(&Some(Reason::TenantNotAllowed)) {
        let tenant = call.tenant.and_then(|id| tenants.get(id).found());
        explanation.condition = missed(policy, rule, tenant.as_deref());
    }
    explanation.limited = rule.and_then(|rule| limited(rule, call));
    Ok((explanation, granted))
}

/// The callee's decision.
pub(super) fn ask<T: Tenants>(
    state: &inbound::State,
    tenants: &T,
    peer: Peer<'_>,
    call: &Call<'_>,
    now: u64,
    waited: inbound::Waited,
) -> Result<Verdict<T::Ref>, Stop> {
    let tenant = named(call);
    let txn_token = call.transaction.map_or(Named::None, |_| Named::One(""));
    let transaction = call.transaction.map(|token| Transaction::compare(token.tenant, tenant));
    let head = inbound::Head { path: call.path, token: Token::One(b""), tenant, tenant_revision: None, txn_token };
    inbound::decide(state, tenants, &mut Proven { transaction }, peer, &head, now, waited)
}

/// Why a caller that TLS proves nothing of is refused. The mesh itself ends its connection without a reason.
pub fn stranger(policy: &Policy, call: &Call<'_>) -> Refusal {
    let Call { caller, service, path, .. } = *call;
    let message = format!(
        "{caller} is neither a service of the mesh nor a client outside of it that a rule of {service} names: it cannot \
         connect"
    );
    // No `*` is meant for it.
    let nearest = policy.nearest(Peer::Outside(caller), path).map(Box::new);
    Refusal { nearest, ..Refusal::new(Reason::PathNotAllowed, message) }
}
