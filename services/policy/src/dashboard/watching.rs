//! Calls as they end, a line of JSON each: what `tenon tap -o json` prints.

use axum::{
    body::{Body, Bytes},
    extract::{Query, State},
    http::header,
    response::{IntoResponse, Response},
};
use futures_util::StreamExt as _;
use mesh_identity::OperatorRole;
use serde::Deserialize;
use tenon_proto::policy::v1::{TapFilter, TapRequest, TapResponse, tap_response};

use super::{Problem, Shared, SignedIn};
use crate::json;

/// Calls a second that a page is sent: more cannot be read.
const RATE: u32 = 20;

/// Which calls. What is left out is any.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Wanted {
    service: String,
    caller: String,
    tenant: String,
    path: String,
    refused: bool,
}

/// Streams until the browser goes away, the session's operator is revoked or this service ends.
pub(super) async fn tap(
    State(dashboard): Shared,
    signed_in: SignedIn,
    Query(wanted): Query<Wanted>,
) -> Result<Response, Problem> {
    signed_in.must_be(OperatorRole::Operator)?;
    let Wanted { service, caller, tenant, path, refused } = wanted;
    let event = signed_in.does("Policy/Tap", &tenant);
    let event = event.detail("service", &service).detail("caller", &caller).detail("path", &path);
    dashboard.audit.record(event).await.map_err(tonic::Status::from)?;
    let filter = TapFilter { service, caller, tenant, path, refused, both_sides: false };
    let calls = dashboard.fleet.tap(TapRequest { filter: Some(filter), rate: RATE, headers: Vec::new() })?;
    let (identity, peer) = (dashboard.identity.clone(), signed_in.peer);
    let revoked = async move { peer.until_revoked(&identity).await };
    let lines = calls.take_until(Box::pin(revoked)).filter_map(|told| async move { line(told) });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response())
}

fn line(told: Result<TapResponse, tonic::Status>) -> Option<Result<Bytes, tonic::Status>> {
    let value = match told {
        Ok(TapResponse { response: Some(tap_response::Response::Call(call)) }) => json::tapped(&call),
        Ok(TapResponse { response: Some(tap_response::Response::State(state)) }) => {
            serde_json::json!({"sidecars": state.sidecars, "leftOut": state.left_out})
        }
        Ok(TapResponse { response: None }) => return None,
        Err(status) => return Some(Err(status)),
    };
    Some(Ok(format!("{value}\n").into()))
}
