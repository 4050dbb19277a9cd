//! The body of a request, and what of it is kept so that it can be sent again.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::Reason;
use http::HeaderMap;
use http_body::Body;
use mesh_telemetry::Messages;

use crate::headers;

/// Chunks that are kept of one request, at most: each takes a little more than its bytes.
const CHUNKS: usize = 256;
/// Below this a chunk other than the first is kept as a copy: it would keep all of the buffer that it was read into.
const SMALL: usize = 1 << 10;

/// A request on its way up. Whatever has been taken from the caller is kept until the call is committed to an answer, or
/// is longer than it may be.
pub struct Upload<B> {
    body: B,
    kept: Kept,
    /// Bytes that may still be kept; `None` once nothing is kept any more.
    room: Option<usize>,
    end: Option<End>,
    messages: Messages,
    received: u64,
}

/// In order, the first apart: of an ordinary unary call it is the only one, and costs no list.
#[derive(Default)]
struct Kept {
    first: Option<Bytes>,
    more: Vec<Bytes>,
}

/// How the request ended.
#[derive(Clone)]
enum End {
    Plain,
    Trailers(HeaderMap),
    /// The caller reset it, or went away.
    Broken(Reason),
}

/// One piece of a request.
pub enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
    Broken(Reason),
}

/// How far a request was sent on one stream.
#[derive(Debug, Default)]
pub struct Cursor(usize);

impl<B: Body<Data = Bytes> + Unpin> Upload<B>
where
    B::Error: std::error::Error + 'static,
{
    /// Of which `room` bytes may be kept.
    pub fn new(body: B, room: usize) -> Self {
        let end = body.is_end_stream().then_some(End::Plain);
        Self { body, kept: Kept::default(), room: Some(room), end, messages: Messages::default(), received: 0 }
    }

    /// Bytes of the messages that were taken from the caller, without their framing.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// There is no body: the head ends the request.
    pub fn is_empty(&self) -> bool {
        matches!(self.end, Some(End::Plain)) && self.kept.len() == 0 && self.room.is_some()
    }

    /// All that was taken from the caller is still here, so another stream can be given the same.
    pub fn is_kept(&self) -> bool {
        self.room.is_some() && !matches!(self.end, Some(End::Broken(_)))
    }

    /// The caller has nothing more to say, and all of it is here.
    pub fn is_complete(&self) -> bool {
        self.is_kept() && self.end.is_some()
    }

    /// It will not be sent again. What the cursor has not reached yet is still sent.
    pub fn commit(&mut self) {
        self.room = None;
    }

    /// Nothing comes after `cursor` but the end.
    pub fn ends_at(&self, cursor: &Cursor) -> bool {
        matches!(self.end, Some(End::Plain)) && cursor.0 == self.kept.len()
    }

    /// What comes after `cursor`: first what was kept, then what the caller sends.
    pub fn poll_next(&mut self, cx: &mut Context<'_>, cursor: &mut Cursor) -> Poll<Piece> {
        loop {
            if let Some(data) = self.kept.get(cursor.0) {
                cursor.0 += 1;
                return Poll::Ready(Piece::Data(data.clone()));
            }
            if self.room.is_none() {
                (self.kept, cursor.0) = (Kept::default(), 0);
            }
            if let Some(end) = &self.end {
                return Poll::Ready(match end {
                    End::Plain => Piece::End,
                    End::Trailers(trailers) => Piece::Trailers(trailers.clone()),
                    End::Broken(reason) => Piece::Broken(*reason),
                });
            }
            if let Some(data) = ready!(self.poll_body(cx)) {
                self.keep(&data);
                cursor.0 = self.kept.len();
                return Poll::Ready(Piece::Data(data));
            }
        }
    }

    /// The next chunk of the caller; nothing where the end was reached.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            self.end = Some(match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                None if self.body.is_end_stream() => End::Plain,
                // Without an end, and without an error that says why: not the end of the request.
                None => End::Broken(Reason::CANCEL),
                Some(Err(error)) => End::Broken(reason(&error)),
                Some(Ok(frame)) => match frame.into_data() {
                    // Nothing to send on, nothing to keep.
                    Ok(data) if data.is_empty() => continue,
                    Ok(data) => {
                        self.received += self.messages.pass(&data);
                        self.end = self.body.is_end_stream().then_some(End::Plain);
                        return Poll::Ready(Some(data));
                    }
                    Err(frame) => frame.into_trailers().map_or(End::Plain, |mut trailers| {
                        headers::strip_reserved(&mut trailers);
                        End::Trailers(trailers)
                    }),
                },
            });
            return Poll::Ready(None);
        }
    }

    fn keep(&mut self, data: &Bytes) {
        let left = self.room.and_then(|room| room.checked_sub(data.len()));
        self.room = left.filter(|_| self.kept.len() < CHUNKS);
        if self.room.is_some() {
            self.kept.push(data);
        } else {
            self.kept = Kept::default();
        }
    }
}

impl Kept {
    fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.more.len()
    }

    fn get(&self, index: usize) -> Option<&Bytes> {
        match index.checked_sub(1) {
            None => self.first.as_ref(),
            Some(index) => self.more.get(index),
        }
    }

    fn push(&mut self, data: &Bytes) {
        if self.first.is_none() {
            self.first = Some(data.clone());
        } else if data.len() < SMALL {
            self.more.push(Bytes::copy_from_slice(data));
        } else {
            self.more.push(data.clone());
        }
    }
}

/// The code with which the caller reset its request; CANCEL when it went away.
fn reason(error: &(dyn std::error::Error + 'static)) -> Reason {
    let mut source = Some(error);
    while let Some(error) = source {
        if let Some(reason) = error.downcast_ref::<h2::Error>().and_then(h2::Error::reason) {
            return reason;
        }
        source = error.source();
    }
    Reason::CANCEL
}

#[cfg(test)]
mod tests;
