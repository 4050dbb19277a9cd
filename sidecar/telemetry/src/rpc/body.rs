//! Bodies that are counted as they pass.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tonic::Code;

use super::{Messages, Rpcs, status};

/// A call that has begun; dropped, it has ended.
#[derive(Debug)]
pub(super) struct Call {
    rpcs: Arc<Rpcs>,
    place: usize,
    began: Instant,
    /// Bytes of messages; the request's body counts into the second.
    sent: u64,
    received: Arc<AtomicU64>,
    /// Absent until the answer says it: who goes away before has cancelled.
    code: Option<Code>,
}

impl Call {
    pub(super) fn begin(rpcs: &Arc<Rpcs>, path: &str) -> Self {
        let place = rpcs.place(path);
        rpcs.started(place);
        Self { rpcs: Arc::clone(rpcs), place, began: Instant::now(), sent: 0, received: Arc::default(), code: None }
    }

    pub(super) fn received(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.received)
    }

    pub(super) fn says(&mut self, code: Option<Code>) {
        self.code = self.code.or(code);
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let code = self.code.unwrap_or(Code::Cancelled);
        self.rpcs.ended(self.place, code, self.began.elapsed(), self.sent, self.received.load(Relaxed));
    }
}

pin_project! {
    /// What is received.
    pub(super) struct Received<B> {
        #[pin]
        inner: B,
        messages: Messages,
        bytes: Arc<AtomicU64>,
    }
}

impl<B> Received<B> {
    pub(super) fn new(inner: B, bytes: Arc<AtomicU64>) -> Self {
        Self { inner, messages: Messages::default(), bytes }
    }
}

impl<B: Body<Data = Bytes>> Body for Received<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.project();
        let frame = ready!(this.inner.poll_frame(cx));
        if let Some(data) = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()) {
            this.bytes.fetch_add(this.messages.pass(data), Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

pin_project! {
    /// What is sent, and with it the call.
    pub(super) struct Sent<B> {
        #[pin]
        inner: B,
        messages: Messages,
        call: Call,
    }
}

impl<B> Sent<B> {
    pub(super) fn new(inner: B, call: Call) -> Self {
        Self { inner, messages: Messages::default(), call }
    }
}

impl<B: Body<Data = Bytes>> Body for Sent<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.project();
        let frame = ready!(this.inner.poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    this.call.sent += this.messages.pass(data);
                } else if let Some(trailers) = frame.trailers_ref() {
                    this.call.says(status::of_trailers(trailers));
                }
            }
            // An end without a status is one to the caller, who makes UNKNOWN of it.
            Some(Err(_)) | None => this.call.says(Some(Code::Unknown)),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
