//! What a server tells the keeper of an audit record: who calls what, before and after.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use futures_util::future::BoxFuture;
use tonic::{Request, Status};

use crate::Peer;

/// Keeps a record of calls.
pub trait Recorder: fmt::Debug + Send + Sync {
    /// A call that its peer may make and that is about to be made. `None`: such calls are not recorded. An error is the
    /// caller's answer, and the call is not made.
    fn begin(
        &self,
        peer: &Arc<Peer>,
        path: &str,
        subject: Subject,
    ) -> Option<BoxFuture<'static, Result<Box<dyn Recorded>, Status>>>;

    /// A call that its peer may not make.
    fn refused(&self, peer: &Peer, path: &str, status: &Status);
}

/// A call that is recorded. Dropped, nobody waited for its answer.
pub trait Recorded: Send {
    /// What it came to; of a stream of answers, that it has begun.
    fn ended(self: Box<Self>, outcome: Result<(), &Status>);
}

/// What a call is about: whoever answers it says so, once it has read the request. Among the extensions of each request.
#[derive(Clone, Debug, Default)]
pub struct Subject(Arc<OnceLock<String>>);

impl Subject {
    /// That of a request.
    pub fn of<T>(request: &Request<T>) -> Self {
        request.extensions().get::<Self>().cloned().unwrap_or_default()
    }

    /// The tenant, service, revision or whatever it is. The first word counts.
    pub fn is(&self, what: impl Into<String>) {
        let _ = self.0.set(what.into());
    }

    /// Empty: nobody has said it.
    pub fn text(&self) -> &str {
        self.0.get().map_or("", String::as_str)
    }
}
