//! `POST /token`, beside gRPC on the same listener: HTTP/2 over mTLS.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, PRAGMA};
use http::{HeaderMap, Request};
use mesh_asap::txn;
use mesh_identity::grpc::{Rpc, Who};
use mesh_identity::{Peer, clock};

use super::error::OAuthError;
use super::exchange::{MAX_REQUEST_BYTES, TOKEN_TYPE};
use super::{Minted, exchange};
use crate::authority::Authority;

const PATH: &str = "/token";
const FORM: &str = "application/x-www-form-urlencoded";

/// Who may call it: the row of the server's authorization table.
pub(crate) const AUTHORIZATION: &[Rpc] = &[Rpc { path: PATH, who: Who::Services }];

/// The route, to be served beside others.
pub(crate) fn route(authority: Arc<Authority>) -> Router {
    Router::new().route(PATH, post(token)).with_state(authority)
}

async fn token(State(authority): State<Arc<Authority>>, request: Request<Body>) -> Response {
    match answer(&authority, request).await {
        Ok(Minted { token, .. }) => {
            // RFC 8693 §2.2.1; `N_A`, since it is no access token.
            let body = serde_json::json!({
                "access_token": token,
                "issued_token_type": TOKEN_TYPE,
                "token_type": "N_A",
                "expires_in": txn::LIFETIME_SECONDS,
            });
            ([(CACHE_CONTROL, "no-store"), (PRAGMA, "no-cache")], axum::Json(body)).into_response()
        }
        Err(refused) => refused.into_response(),
    }
}

async fn answer(authority: &Authority, request: Request<Body>) -> Result<Minted, OAuthError> {
    let (head, body) = request.into_parts();
    let peer = head.extensions.get::<Peer>().ok_or_else(OAuthError::invalid_client)?;
    if !is_form(&head.headers) {
        return Err(OAuthError::invalid_request(format!("content-type must be {FORM}")));
    }
    let form = axum::body::to_bytes(body, MAX_REQUEST_BYTES).await;
    let form = form.map_err(|_| {
        OAuthError::invalid_request(format!("the request is longer than {MAX_REQUEST_BYTES} bytes, or breaks off"))
    })?;
    exchange(authority, peer, &form, clock::unix_seconds()).await
}

/// With or without a parameter behind it.
fn is_form(headers: &HeaderMap) -> bool {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(FORM)
}
