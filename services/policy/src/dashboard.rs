//! The dashboard: pages and JSON over HTTP, for a browser on this machine (docs/dashboard.md).
//!
//! Nothing is told without a session, and a session begins with a code that an operator asks for over mTLS (`SignIn`). It
//! carries what that operator may do and ends with its time, or as soon as the operator or its certificate is revoked. The
//! browser holds it in the storage of this origin, not in a cookie: cookies go to every port of a host.
//!
//! `sessions` is who is signed in, `rates` what is called now, `answers` what is told, `watching` calls as they end,
//! `files` the pages. Keeps nothing on disk, and decides nothing: what it changes goes the way of the RPCs.

mod answers;
mod files;
mod rates;
mod service_page;
mod sessions;
mod watching;

use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{FromRequestParts, Request, State},
    http::{HeaderValue, StatusCode, header, request::Parts, uri::Authority},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use journal::{
    Publisher,
    audit::{Audit, Event},
};
use mesh_config::names::{ServiceName, control_plane};
use mesh_identity::{Identity, OperatorRole, Peer, clock, grpc};
use tenon_proto::{
    policy::v1::{DescribeResponse, FlowsRequest, FlowsResponse, SignInResponse},
    tcs::v1::tenants_client::TenantsClient,
};
use tokio::{
    net::TcpListener,
    task::{AbortHandle, JoinSet},
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, transport::Channel};

use crate::{
    engine::{Engine, kind_positions},
    fleet::Fleet,
    rollout::Rollouts,
    service::{described, unreadable},
};
use {rates::Rates, sessions::Sessions};

/// Connections that are open at once. Beyond, the oldest goes: nobody keeps others out.
const CONNECTIONS: usize = 256;
/// How long the header of a request may take to come, also where the connection is open already.
const HEADER: Duration = Duration::from_secs(15);
/// How old the flow record may be that is shown, in seconds.
const RECORD: u64 = 15;
/// Spans of which it is kept.
const RECORDS: usize = 4;
/// After this long it is tried again to listen, where the address is taken.
const AGAIN: Duration = Duration::from_secs(1);
/// After this long it is tried again to accept, where there are too many open files.
const PAUSE: Duration = Duration::from_millis(100);

/// What the dashboard shows, and to whom.
pub(crate) struct Dashboard {
    engine: Arc<Engine>,
    fleet: Arc<Fleet>,
    rollouts: Arc<Rollouts>,
    publishers: Vec<Publisher>,
    identity: Arc<Identity>,
    /// Whom tenants are asked of; `None`: nobody said where the TCS is.
    tcs: Option<TenantsClient<Channel>>,
    audit: Audit,
    sessions: Sessions,
    rates: Rates,
    /// Where it listens, once it does.
    address: OnceLock<SocketAddr>,
    /// The policy as it was read last: it is asked for often, and changes seldom.
    described: Mutex<Option<Arc<DescribeResponse>>>,
    /// The flow record as it was added up last, by hours, and when that was: it reads the store.
    records: tokio::sync::Mutex<BTreeMap<u32, (u64, Arc<FlowsResponse>)>>,
}

/// What the dashboard shows.
pub(crate) struct Shown {
    pub engine: Arc<Engine>,
    pub fleet: Arc<Fleet>,
    pub rollouts: Arc<Rollouts>,
    pub publishers: Vec<Publisher>,
    pub identity: Arc<Identity>,
    pub audit: Audit,
}

impl Dashboard {
    /// Of this process. Tenants are asked of the first TCS that answers.
    pub fn new(shown: Shown, tcs: &[SocketAddr]) -> Self {
        let Shown { engine, fleet, rollouts, publishers, identity, audit } = shown;
        let name =
            ServiceName::try_from(control_plane::TCS).expect("the names of the control plane follow the grammar");
        let tcs = (!tcs.is_empty()).then(|| TenantsClient::new(grpc::channel_to_any(tcs, &identity, &name)));
        Self {
            engine,
            fleet,
            rollouts,
            publishers,
            identity,
            tcs,
            audit,
            sessions: Sessions::default(),
            rates: Rates::default(),
            address: OnceLock::new(),
            described: Mutex::default(),
            records: tokio::sync::Mutex::default(),
        }
    }

    /// A link that signs a browser in as `peer`, once.
    ///
    /// # Errors
    /// Too many were asked for and not used; or it cannot listen.
    pub fn sign_in(&self, peer: Peer) -> Result<SignInResponse, Status> {
        let address = self.address.get().ok_or_else(|| {
            Status::unavailable("the dashboard cannot listen: end what listens on its address, its log has which")
        })?;
        let (code, until) = self.sessions.invite(peer, clock::unix_seconds())?;
        let link = format!("http://{address}/#code={code}");
        Ok(SignInResponse { link, expires_unix_seconds: i64::try_from(until).unwrap_or(i64::MAX) })
    }

    /// Serves at `address` until `shutdown`; open answers end with it. A taken address keeps no service from its work: it is
    /// tried again.
    pub async fn serve(self: Arc<Self>, address: SocketAddr, shutdown: CancellationToken) {
        let Some(listener) = shutdown.run_until_cancelled(listen(address)).await else { return };
        if let Ok(address) = listener.local_addr() {
            let _ = self.address.set(address);
            tracing::info!(%address, "the dashboard is served");
        }
        let counting = tokio::spawn({
            let (dashboard, shutdown) = (Arc::clone(&self), shutdown.clone());
            async move { shutdown.run_until_cancelled(dashboard.rates.count(dashboard.fleet.reports())).await }
        });
        let service = TowerToHyperService::new(self.router());
        let (mut tasks, mut open) = (JoinSet::new(), VecDeque::<AbortHandle>::new());
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                Some(_) = tasks.join_next() => {
                    open.retain(|connection| !connection.is_finished());
                    continue;
                }
                accepted = listener.accept() => accepted,
            };
            let Ok((stream, _)) = accepted else {
                sleep(PAUSE).await;
                continue;
            };
            if open.len() >= CONNECTIONS
                && let Some(oldest) = open.pop_front()
            {
                oldest.abort();
            }
            let service = service.clone();
            open.push_back(tasks.spawn(async move {
                let mut http = http1::Builder::new();
                http.timer(TokioTimer::new()).header_read_timeout(HEADER);
                let _whoever_looked_is_gone = http.serve_connection(TokioIo::new(stream), service).await;
            }));
        }
        tasks.shutdown().await;
        let _ = counting.await;
    }

    fn router(self: Arc<Self>) -> Router {
        let router = Router::new()
            .route("/api/session", post(answers::begin).get(answers::session).delete(answers::end))
            .route("/api/mesh", get(answers::mesh))
            .route("/api/services/{name}", get(service_page::service))
            .route("/api/refusals", get(answers::refusals))
            .route("/api/explain/{id}", get(answers::explain))
            .route("/api/tenants/{name}", get(answers::tenant))
            .route("/api/sidecars", get(answers::sidecars))
            .route("/api/rollouts", get(answers::rollouts))
            .route("/api/rollout/end", post(answers::end_rollout))
            .route("/api/tap", get(watching::tap))
            .fallback(files::file);
        router.layer(middleware::from_fn(guard)).with_state(self)
    }

    /// The policy in force, read anew only where it has changed.
    async fn described(&self) -> Result<Arc<DescribeResponse>, Problem> {
        let heads = self.engine.journals().heads().await.map_err(|error| unreadable(&error))?;
        let positions = kind_positions(heads);
        let fresh = self.known().as_ref().filter(|known| known.positions == positions).map(Arc::clone);
        let read = match fresh {
            Some(known) => known,
            None => Arc::new(described(&self.engine, "").await.map_err(|error| unreadable(&error))?),
        };
        *self.known() = Some(Arc::clone(&read));
        Ok(read)
    }

    /// The flow record of the last `hours`, the present one among them; 0: all that is kept. Added up for all who look at
    /// once, and not again within [`RECORD`].
    async fn record(&self, hours: u32) -> Result<Arc<FlowsResponse>, Problem> {
        let now = clock::unix_seconds();
        let mut records = self.records.lock().await;
        records.retain(|_, (at, _)| now.saturating_sub(*at) < RECORD);
        if let Some((_, record)) = records.get(&hours) {
            return Ok(Arc::clone(record));
        }
        let since = match hours {
            0 => 0,
            hours => i64::try_from(now.saturating_sub(u64::from(hours - 1) * 3_600)).unwrap_or(0),
        };
        let request = FlowsRequest { since_unix_seconds: since, service: String::new() };
        let record = Arc::new(self.fleet.flows(request).await?);
        if records.len() >= RECORDS {
            records.pop_first();
        }
        records.insert(hours, (now, Arc::clone(&record)));
        Ok(record)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Option<Arc<DescribeResponse>>> {
        self.described.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn listen(address: SocketAddr) -> TcpListener {
    let mut said = false;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(error) if !said => {
                tracing::error!(%address, %error, "cannot serve the dashboard: end what listens there, or name another address with --dashboard");
                said = true;
            }
            Err(_) => {}
        }
        sleep(AGAIN).await;
    }
}

/// Whether what a browser calls this machine can be nobody else's name: a page from elsewhere whose name leads here is not
/// served (DNS rebinding).
fn is_here(host: &HeaderValue) -> bool {
    let authority = host.to_str().ok().and_then(|text| text.parse::<Authority>().ok());
    authority.is_some_and(|authority| {
        let name = authority.host().trim_start_matches('[').trim_end_matches(']');
        name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    })
}

/// Before and after every answer.
async fn guard(request: Request, next: Next) -> Response {
    let mut response = match request.headers().get(header::HOST) {
        Some(host) if is_here(host) => next.run(request).await,
        Some(_) | None => {
            let text = "the dashboard is for this machine: open it by 127.0.0.1 or localhost";
            Problem::new(StatusCode::MISDIRECTED_REQUEST, text).into_response()
        }
    };
    for (name, value) in [
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Why there is no answer, as `{"error": …}`.
#[derive(Debug)]
struct Problem(StatusCode, String);

impl Problem {
    fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self(status, text.into())
    }
}

impl From<Status> for Problem {
    fn from(status: Status) -> Self {
        let http = match status.code() {
            Code::InvalidArgument | Code::OutOfRange => StatusCode::BAD_REQUEST,
            Code::NotFound => StatusCode::NOT_FOUND,
            Code::FailedPrecondition | Code::Aborted | Code::AlreadyExists => StatusCode::CONFLICT,
            Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            Code::PermissionDenied => StatusCode::FORBIDDEN,
            Code::Unauthenticated => StatusCode::UNAUTHORIZED,
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => StatusCode::SERVICE_UNAVAILABLE,
            Code::Ok | Code::Unknown | Code::Unimplemented | Code::Internal | Code::DataLoss => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        };
        Self(http, status.message().to_owned())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        (self.0, Json(serde_json::json!({"error": self.1}))).into_response()
    }
}

/// Who is signed in, proved by the request.
struct SignedIn {
    peer: Arc<Peer>,
    token: String,
    /// Unix seconds.
    until: u64,
}

impl SignedIn {
    fn role(&self) -> OperatorRole {
        self.peer.role.unwrap_or(OperatorRole::Viewer)
    }

    /// # Errors
    /// The operator may only look.
    fn must_be(&self, least: OperatorRole) -> Result<(), Problem> {
        let (id, role) = (&self.peer.id, self.role());
        match role >= least {
            true => Ok(()),
            false => Err(Problem::new(
                StatusCode::FORBIDDEN,
                format!(
                    "{id} is {role}, and this is for {least}: an admin issues that role (`tenon identity operator`)"
                ),
            )),
        }
    }

    /// What the operator does, for the audit record.
    fn does(&self, action: &str, what: &str) -> Event {
        let (by, role) = (self.peer.id.to_string(), self.role().as_str());
        tracing::info!(target: "tenon::audit", by, serial = self.peer.serial, role, action, what, "an operator's call of the dashboard");
        Event::new(by, action, what).detail("serial", &self.peer.serial).detail("role", role).detail("via", "dashboard")
    }
}

impl FromRequestParts<Arc<Dashboard>> for SignedIn {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, dashboard: &Arc<Dashboard>) -> Result<Self, Problem> {
        let value = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = value.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
        let found = dashboard.sessions.find(token, clock::unix_seconds());
        let (peer, until) = found.filter(|(peer, _)| !dashboard.identity.is_revoked(peer)).ok_or_else(|| {
            Problem::new(
                StatusCode::UNAUTHORIZED,
                "you are not signed in: `tenon dashboard` prints a link that does it",
            )
        })?;
        Ok(Self { peer, token: token.to_owned(), until })
    }
}

type Shared = State<Arc<Dashboard>>;
type Answer = Result<Json<serde_json::Value>, Problem>;

#[cfg(test)]
mod tests;
