//! The request's body on its way to the other side: every byte with backpressure, every end as it came.

use std::{
    future::poll_fn,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, SendStream};
use hyper::body::Incoming;

use crate::{
    call::Line,
    replay::{Cursor, Piece, Upload},
};

/// Sends a request on one stream, until its end, until the other side wants no more, or until the call is over.
///
/// The last holds at every moment, also while the other side does not read: then the stream is reset, so that an app
/// that never looks at a request does not keep it for ever. Dropped before its end, it leaves the stream to be reset by
/// whoever drops the answer.
pub struct Pump {
    stream: SendStream<Bytes>,
    cursor: Cursor,
    /// What was taken of the request, and does not fit into the stream yet.
    rest: Bytes,
    done: bool,
}

impl Pump {
    /// For a stream whose head was sent; `done` where that was all.
    pub fn new(stream: SendStream<Bytes>, done: bool) -> Self {
        Self { stream, cursor: Cursor::default(), rest: Bytes::new(), done }
    }

    /// The request was sent to its end, or as far as anybody wants it.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// The stream, to be reset should the call end early.
    pub fn into_stream(self) -> SendStream<Bytes> {
        self.stream
    }

    /// Sends what there is and what there is room for; ready at the end.
    pub fn poll(&mut self, cx: &mut Context<'_>, upload: &mut Upload<Incoming>, line: &Line) -> Poll<()> {
        while !self.done {
            if let Err(reason) = ready!(self.poll_step(cx, upload, line)) {
                self.stream.send_reset(reason);
                self.done = true;
            }
        }
        Poll::Ready(())
    }

    fn poll_step(
        &mut self,
        cx: &mut Context<'_>,
        upload: &mut Upload<Incoming>,
        line: &Line,
    ) -> Poll<Result<(), Reason>> {
        if line.poll_request(cx).is_ready() {
            return Poll::Ready(Err(Reason::CANCEL));
        }
        if !self.rest.is_empty() {
            return self.poll_send(cx, upload);
        }
        if self.stream.poll_reset(cx).is_ready() {
            // The other side wants no more of it; its answer says the rest.
            self.done = true;
            return Poll::Ready(Ok(()));
        }
        match ready!(upload.poll_next(cx, &mut self.cursor)) {
            Piece::Data(data) => {
                self.rest = data;
                line.received.store(upload.received(), Relaxed);
            }
            Piece::Trailers(trailers) => {
                let _the_stream_has_ended = self.stream.send_trailers(trailers);
                self.done = true;
            }
            Piece::End => {
                let _the_stream_has_ended = self.stream.send_data(Bytes::new(), true);
                self.done = true;
            }
            Piece::Broken(reason) => return Poll::Ready(Err(reason)),
        }
        Poll::Ready(Ok(()))
    }

    /// Sends of one chunk what the other side has made room for.
    fn poll_send(&mut self, cx: &mut Context<'_>, upload: &Upload<Incoming>) -> Poll<Result<(), Reason>> {
        self.stream.reserve_capacity(self.rest.len());
        let room = match ready!(self.stream.poll_capacity(cx)) {
            Some(Ok(room)) => room,
            // Reset by the other side: sending on tells nobody anything.
            Some(Err(_)) | None => return Poll::Ready(Err(Reason::CANCEL)),
        };
        let chunk = self.rest.split_to(room.min(self.rest.len()));
        // The last chunk says so itself: one frame less.
        self.done = self.rest.is_empty() && upload.ends_at(&self.cursor);
        Poll::Ready(self.stream.send_data(chunk, self.done).map_err(|_| Reason::CANCEL))
    }
}

/// Sends the rest of a request beside its answer.
pub fn spawn(mut pump: Pump, mut upload: Upload<Incoming>, line: Arc<Line>) {
    tokio::spawn(async move {
        poll_fn(|cx| pump.poll(cx, &mut upload, &line)).await;
        line.sent(pump.into_stream());
    });
}
