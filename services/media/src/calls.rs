//! The one log line of each call.

use std::{error::Error, fmt::Write as _, time::Instant};

use tonic::{Code, Status, metadata::MetadataMap};

use crate::tenancy::{CALLER, REQUEST_ID, TENANT_ID};

/// The account of one call: started once, ended once, cancelled if dropped before.
#[derive(Debug)]
pub struct Call {
    rpc: &'static str,
    tenant: String,
    caller: String,
    request_id: String,
    started: Instant,
    ended: bool,
}

impl Call {
    /// Opens the account. `rpc` is the path without its first slash.
    pub fn start(rpc: &'static str, metadata: &MetadataMap) -> Self {
        let text = |name| metadata.get(name).and_then(|value| value.to_str().ok()).unwrap_or("-").to_owned();
        Self {
            rpc,
            tenant: text(TENANT_ID),
            caller: text(CALLER),
            request_id: text(REQUEST_ID),
            started: Instant::now(),
            ended: false,
        }
    }

    /// Writes the line and hands the answer on. Of a call whose answer is a stream it tells how the stream began.
    pub fn end<T>(mut self, answer: Result<T, Status>) -> Result<T, Status> {
        self.ended = true;
        match &answer {
            Ok(_) => self.log(Code::Ok, ""),
            Err(status) => self.log(status.code(), &with_sources(status)),
        }
        answer
    }

    fn log(&self, code: Code, message: &str) {
        let Self { rpc, tenant, caller, request_id, .. } = self;
        let milliseconds = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        if matches!(code, Code::Internal | Code::DataLoss | Code::ResourceExhausted | Code::Unknown) {
            tracing::warn!(rpc, tenant, caller, request_id, ?code, milliseconds, message, "call");
        } else {
            tracing::info!(rpc, tenant, caller, request_id, ?code, milliseconds, message, "call");
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.ended {
            self.log(Code::Cancelled, "the caller went away");
        }
    }
}

/// The message that the caller gets, and behind it the causes that only the log shows.
fn with_sources(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = status.source();
    while let Some(error) = cause {
        // Writing to a String cannot fail.
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}
