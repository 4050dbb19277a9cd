//! One attempt of a call at one instance, and what it has come to.

use h2::RecvStream;
use http::Response;
use sidecar_core::{
    Named, Reason, Refusal,
    balance::{Endpoint, Shown, Slot, is_own_fault, shown_by_refusal},
    retry::{Ended, Pushback, Retries, UNAVAILABLE, code_of_http},
};

use crate::{
    call::Call,
    forward::{self, Answer, Failed, Outgoing},
    headers::{self, named},
    health::{now, ns},
    pool::Target,
    worker::Worker,
};

/// RESOURCE_EXHAUSTED.
const NO_ROOM: u32 = 8;

/// An attempt that has ended, with its answer or refusal should there be no other.
pub struct Tried {
    /// What that says of another attempt.
    pub ended: Ended,
    result: Result<Answer, Refusal>,
    slot: Option<Slot>,
}

/// Sends the call to `endpoint`, and notes how that does.
pub async fn attempt(
    worker: &Worker,
    endpoint: &Endpoint,
    target: &Target,
    outgoing: &mut Outgoing,
    retries: &Retries<'_>,
    call: &Call,
) -> Tried {
    let (slot, began) = (endpoint.load.start(), ns(call.now()));
    let result = forward::attempt(worker, target, outgoing, retries.previous_attempts(), call).await;
    Tried::of(result, slot, began, retries, call)
}

impl Tried {
    /// From what became of an attempt that began at `began`.
    pub fn of(result: Result<Answer, Failed>, slot: Slot, began: u64, retries: &Retries<'_>, call: &Call) -> Self {
        let ended = ended(&result, call.facts().grpc);
        let now = now();
        let took = now.saturating_sub(began);
        if let Some(shown) = shown(&result, ended, took) {
            slot.report(shown, now);
        }
        if ended == Ended::ForGood && result.is_ok() {
            retries.took(call.facts().uri.path(), took);
        }
        let result = result.map_err(Failed::into_refusal);
        Self { ended, result, slot: Some(slot) }
    }

    /// The call is over before anything has come of it.
    pub fn over(refusal: Refusal) -> Self {
        Self { ended: Ended::ForGood, result: Err(refusal), slot: None }
    }

    /// The answer of this attempt becomes the call's.
    pub fn hand_on(self, outgoing: Outgoing, call: &mut Call) -> Result<Response<RecvStream>, Refusal> {
        let answer = self.result?;
        call.slot = self.slot;
        Ok(answer.hand_on(outgoing, call))
    }
}

fn ended(result: &Result<Answer, Failed>, grpc: bool) -> Ended {
    match result {
        Ok(answer) => ended_by(&answer.response, grpc),
        Err(Failed::Unreachable(_)) => Ended::Unreachable,
        Err(Failed::Unbegun(_) | Failed::Refused(_)) => Ended::Unbegun,
        Err(Failed::Broken(_)) => Ended::Failed { code: UNAVAILABLE, pushback: Pushback::None },
        Err(Failed::Waiting(_) | Failed::Over(_)) => Ended::ForGood,
    }
}

/// Only of Trailers-Only answers is it known how they end, and nothing was handed on: once there are headers alone, the app
/// gets them (gRFC A6).
fn ended_by<B>(response: &Response<B>, grpc: bool) -> Ended {
    let (headers, status) = (response.headers(), response.status().as_u16());
    let code = match headers.get(&headers::GRPC_STATUS) {
        None if status < 300 => return Ended::ForGood,
        None => code_of_http(status),
        Some(code) => code.to_str().ok().and_then(|code| code.parse().ok()).unwrap_or(2),
    };
    if code == 0 {
        return Ended::ForGood;
    }
    if named(headers, &headers::UNSENT) == Named::One("1") {
        return if code == NO_ROOM || status == 429 { Ended::NoRoom } else { Ended::Unbegun };
    }
    if !grpc {
        return Ended::ForGood;
    }
    Ended::Failed { code, pushback: Pushback::parse(named(headers, &headers::PUSHBACK)) }
}

/// What an attempt has shown of the instance; nothing where the call was over for other reasons.
fn shown(result: &Result<Answer, Failed>, ended: Ended, took: u64) -> Option<Shown> {
    if let Some(reason) = result.as_ref().ok().and_then(|answer| refused(&answer.response)) {
        return Some(shown_by_refusal(reason, took));
    }
    match (result, ended) {
        (Err(Failed::Waiting(refusal)), _) => (refusal.reason == Reason::Deadline).then_some(Shown::Waited { took }),
        (Err(Failed::Over(refusal)), _) => (refusal.reason == Reason::Deadline).then_some(Shown::Silent { took }),
        (_, Ended::Unreachable) => Some(Shown::Unreachable),
        (_, Ended::NoRoom) | (Ok(_), Ended::Failed { code: NO_ROOM, .. }) => Some(Shown::Busy { took }),
        // It is about to go, and says so.
        (Err(_), Ended::Unbegun) => Some(Shown::Refused),
        // Its sidecar cannot reach its app.
        (Ok(_), Ended::Unbegun) | (Err(_), Ended::Failed { .. } | Ended::ForGood) => Some(Shown::Failed),
        (Ok(_), Ended::Failed { code, .. }) if is_own_fault(code) => Some(Shown::Failed),
        (Ok(answer), Ended::ForGood) if answer.response.status().is_server_error() => Some(Shown::Failed),
        (Ok(answer), Ended::ForGood) if answer.response.status().as_u16() == 429 => Some(Shown::Busy { took }),
        (Ok(_), Ended::Failed { .. } | Ended::ForGood) => Some(Shown::Answered { took }),
    }
}

/// Why the callee's own sidecar refused the call, where it did: its app's word is stripped of that.
fn refused<B>(response: &Response<B>) -> Option<Reason> {
    response.headers().get(&headers::REFUSED)?.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(status: u16, headers: &[(&str, &str)]) -> Response<()> {
        let mut response = Response::builder().status(status);
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        response.body(()).unwrap()
    }

    #[test]
    fn what_an_answers_head_says_of_another_attempt() {
        let failed = |code| Ended::Failed { code, pushback: Pushback::None };
        let unsent = ("x-mesh-unsent", "1");
        for (status, headers, expected) in [
            (200, vec![], Ended::ForGood),
            (200, vec![("grpc-status", "0")], Ended::ForGood),
            (200, vec![("grpc-status", "14")], failed(14)),
            (200, vec![("grpc-status", "?")], failed(2)),
            (503, vec![], failed(14)),
            (404, vec![], failed(12)),
            (200, vec![("grpc-status", "14"), unsent], Ended::Unbegun),
            (200, vec![("grpc-status", "8"), unsent], Ended::NoRoom),
            (200, vec![("grpc-status", "14"), ("x-mesh-unsent", "0")], failed(14)),
            // On an answer that has begun it means nothing.
            (200, vec![unsent], Ended::ForGood),
            (
                200,
                vec![("grpc-status", "14"), ("grpc-retry-pushback-ms", "-1")],
                Ended::Failed { code: 14, pushback: Pushback::Never },
            ),
        ] {
            assert_eq!(ended_by(&response(status, &headers), true), expected, "{status} {headers:?}");
        }
        assert_eq!(ended_by(&response(503, &[]), false), Ended::ForGood);
        assert_eq!(ended_by(&response(503, &[unsent]), false), Ended::Unbegun);
        assert_eq!(ended_by(&response(429, &[unsent]), false), Ended::NoRoom);
    }
}
