//! How the two directions of a call reach each other.

use std::{
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use h2::{RecvStream, SendStream};
use sidecar_core::Refusal;

use super::Facts;
use crate::decisions::Grounds;

/// What the two directions of a call and whoever decides open calls again share.
///
/// A call is hung up at most once: by its deadline, or because what it was allowed by has changed.
#[derive(Debug)]
pub struct Line {
    /// For refusals, the log, and deciding it again.
    pub facts: Facts,
    pub(super) refusal: OnceLock<(Refusal, Option<Box<Grounds>>)>,
    /// The call has ended, however: what of the request is not sent yet never will be.
    over: AtomicBool,
    request: AtomicWaker,
    response: AtomicWaker,
    /// The sending half to the other side once the request is sent: with it the stream can be reset although nobody
    /// polls the answer, as when its reader has stopped reading.
    upstream: Mutex<Option<SendStream<Bytes>>>,
    /// The answer, once it has begun: what waits in it can be let go although nobody reads it.
    answer: Mutex<Option<RecvStream>>,
    /// Since which tick of [`crate::limits::Memory`] the reader has not asked for more than it was given; 0: it waits for more.
    pub(super) unread: AtomicU32,
    /// Bytes of the messages of the request so far, without their framing.
    pub received: AtomicU64,
}

impl Line {
    /// Of a call that has just come in.
    pub fn new(facts: Facts) -> Self {
        Self {
            facts,
            refusal: OnceLock::new(),
            over: AtomicBool::new(false),
            request: AtomicWaker::new(),
            response: AtomicWaker::new(),
            upstream: Mutex::default(),
            answer: Mutex::default(),
            unread: AtomicU32::new(0),
            received: AtomicU64::new(0),
        }
    }

    /// Ends the call with `refusal`: the stream to the other side is reset at once, and the caller told when it reads.
    pub fn hang_up(&self, refusal: Refusal) {
        self.hang_up_on(refusal, None);
    }

    /// The same, where it is known what the refusal was decided from.
    pub fn hang_up_on(&self, refusal: Refusal, grounds: Option<Box<Grounds>>) {
        if self.refusal.set((refusal, grounds)).is_ok() {
            self.end(true);
            self.response.wake();
        }
    }

    /// Ends the call, and lets go at once of what waits for its reader.
    pub fn drop_answer(&self, refusal: Refusal) {
        self.hang_up(refusal);
        let unread = self.answer().take();
        drop(unread);
    }

    /// The answer has begun.
    pub fn follow(&self, answer: RecvStream) {
        *self.answer() = Some(answer);
    }

    /// The answer has come to its end, and there is nothing more to be read.
    pub fn is_at_its_end(&self) -> bool {
        self.answer().as_ref().is_some_and(RecvStream::is_end_stream)
    }

    /// What is left of the answer.
    pub fn answer(&self) -> MutexGuard<'_, Option<RecvStream>> {
        self.answer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Since when nobody has asked for more.
    pub fn unread_since(&self) -> Option<u32> {
        Some(self.unread.load(Ordering::Relaxed)).filter(|tick| *tick > 0)
    }

    /// The call is over; unless the other side has answered to its end, it is told to stop.
    pub(super) fn end(&self, reset: bool) {
        self.over.store(true, Ordering::Release);
        self.request.wake();
        let upstream = self.upstream().take();
        if let (Some(mut stream), true) = (upstream, reset) {
            stream.send_reset(h2::Reason::CANCEL);
        }
    }

    /// The request is sent.
    pub fn sent(&self, mut stream: SendStream<Bytes>) {
        let mut upstream = self.upstream();
        if self.over.load(Ordering::Acquire) {
            stream.send_reset(h2::Reason::CANCEL);
        } else {
            *upstream = Some(stream);
        }
    }

    /// Ready once the call is over. For whoever pumps the request.
    pub fn poll_request(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.request.register(cx.waker());
        if self.over.load(Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Ready once the call was hung up. For whoever waits for the answer and pumps it.
    pub fn poll_response(&self, cx: &mut Context<'_>) -> Poll<&Refusal> {
        if self.refusal.get().is_none() {
            self.response.register(cx.waker());
        }
        self.refusal.get().map_or(Poll::Pending, |(refusal, _)| Poll::Ready(refusal))
    }

    /// Whether the call was hung up.
    pub(super) fn is_hung_up(&self) -> bool {
        self.refusal.get().is_some()
    }

    fn upstream(&self) -> MutexGuard<'_, Option<SendStream<Bytes>>> {
        self.upstream.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
