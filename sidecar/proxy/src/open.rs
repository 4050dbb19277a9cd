//! Calls that are open at this moment, so that they can be decided again when what they were allowed by changes.

use std::sync::{Arc, Mutex, PoisonError};

use http::HeaderValue;
use sidecar_core::Transaction;
use tokio::time::Instant;

use crate::{call::Line, caller::Caller};

/// The open calls of one worker. The lock is the worker's own: calls and the task that decides again run on one thread.
#[derive(Debug, Default)]
pub struct OpenCalls(Mutex<Slots>);

#[derive(Debug, Default)]
struct Slots {
    entries: Vec<Option<OpenCall>>,
    free: Vec<usize>,
}

/// What deciding a call again needs of it.
#[derive(Debug, Clone)]
pub struct OpenCall {
    /// Where to end it.
    pub line: Arc<Line>,
    /// When it must be over.
    pub deadline: Option<Instant>,
    /// The question that was asked when it began.
    pub question: Question,
}

/// What was asked when the call began; the rest is in the facts of its line.
#[derive(Debug, Clone)]
pub enum Question {
    /// May this caller call this path for this tenant?
    Inbound {
        /// The peer of its connection.
        caller: Arc<Caller>,
        /// What its transaction token proved, where a rule looked at it. That the token ends does not end the call.
        transaction: Option<Transaction>,
        /// What held its ASAP token, as it came: its key may be revoked.
        token: Option<HeaderValue>,
    },
    /// May this service call that one?
    Outbound,
}

/// A call's place among the open ones; it is given back when dropped.
#[derive(Debug)]
pub struct Place {
    calls: Arc<OpenCalls>,
    index: usize,
}

impl OpenCalls {
    /// Registers a call until the place is dropped.
    pub fn enter(self: &Arc<Self>, call: OpenCall) -> Place {
        let mut slots = self.lock();
        let index = if let Some(index) = slots.free.pop() {
            slots.entries[index] = Some(call);
            index
        } else {
            slots.entries.push(Some(call));
            slots.entries.len() - 1
        };
        Place { calls: Arc::clone(self), index }
    }

    /// A copy of what is open now.
    #[must_use]
    pub fn snapshot(&self) -> Vec<OpenCall> {
        self.lock().entries.iter().flatten().cloned().collect()
    }

    /// The calls whose deadline passed before `now`.
    ///
    /// Each call looks at its own deadline while its answer is read; this is for those whose reader has stopped reading.
    #[must_use]
    pub fn overdue(&self, now: Instant) -> Vec<Arc<Line>> {
        let overdue = |call: &&OpenCall| call.deadline.is_some_and(|deadline| deadline < now);
        self.lock().entries.iter().flatten().filter(overdue).map(|call| Arc::clone(&call.line)).collect()
    }

    /// The calls whose answer was handed on before the tick `before` and has not been asked for since, or is not read.
    #[must_use]
    pub fn unread(&self, before: u32) -> Vec<Arc<Line>> {
        let unread = |call: &&OpenCall| call.line.unread_since().is_some_and(|since| since < before);
        self.lock().entries.iter().flatten().filter(unread).map(|call| Arc::clone(&call.line)).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Slots> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut slots = self.calls.lock();
        slots.entries[self.index] = None;
        slots.free.push(self.index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{call::Facts, said::Said};

    fn call() -> OpenCall {
        let request = http::Request::new(());
        let said = Said::of(request.headers());
        let facts = Facts::of(&request, &said, ("media".into(), "issues".into()), HeaderValue::from_static("1"));
        OpenCall { line: Arc::new(Line::new(facts)), deadline: None, question: Question::Outbound }
    }

    #[test]
    fn only_calls_past_their_deadline_are_overdue() {
        let calls = Arc::new(OpenCalls::default());
        let now = Instant::now();
        let later = now + std::time::Duration::from_secs(1);
        let _none = calls.enter(call());
        let _due = calls.enter(OpenCall { deadline: Some(now), ..call() });
        let _later = calls.enter(OpenCall { deadline: Some(later), ..call() });
        assert_eq!(calls.overdue(now).len(), 0);
        assert_eq!(calls.overdue(later).len(), 1);
    }

    #[test]
    fn a_place_is_given_back_and_used_again() {
        let calls = Arc::new(OpenCalls::default());
        let first = calls.enter(call());
        let second = calls.enter(call());
        assert_eq!(calls.snapshot().len(), 2);
        drop(first);
        assert_eq!(calls.snapshot().len(), 1);
        let third = calls.enter(call());
        assert_eq!(calls.lock().entries.len(), 2, "the freed place is used again");
        drop((second, third));
        assert!(calls.snapshot().is_empty());
    }
}
