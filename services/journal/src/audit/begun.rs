//! What is recorded before it is made, and what became of it.

use super::{Audit, Event, Outcome};

/// A change that is recorded as begun. Dropped, it is of unknown outcome: whoever asked went away meanwhile.
#[derive(Debug)]
pub struct Begun {
    pub(super) audit: Audit,
    /// Absent once it has ended.
    pub(super) event: Option<Event>,
}

impl Begun {
    /// Records what became of it, without waiting. `adds` says more of it.
    pub fn end(mut self, outcome: Outcome, adds: impl FnOnce(Event) -> Event) {
        self.finish(outcome, adds);
    }

    /// Records the outcome of a call: done with what `adds` says of it; refused, or failed, with why.
    pub fn end_with<T>(self, outcome: &Result<T, tonic::Status>, adds: impl FnOnce(&T, Event) -> Event) {
        match outcome {
            Ok(done) => self.end(Outcome::Done, |event| adds(done, event)),
            Err(status) => self.end(of_status(status), |event| event.detail("why", status.message())),
        }
    }

    fn finish(&mut self, outcome: Outcome, adds: impl FnOnce(Event) -> Event) {
        let Some(event) = self.event.take() else { return };
        let Event { by, action, what, of, details, .. } = event;
        let mut ended = adds(Event { of, details, ..Event::new(by, action, what) }.outcome(outcome));
        ended.of = of;
        self.audit.note(ended);
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.finish(Outcome::Unknown, |event| event);
    }
}

/// Whether a call was refused, or should have worked.
#[must_use]
pub fn of_status(status: &tonic::Status) -> Outcome {
    use tonic::Code::{DataLoss, DeadlineExceeded, Internal, ResourceExhausted, Unavailable, Unknown};
    match status.code() {
        Unknown | DeadlineExceeded | Internal | Unavailable | DataLoss | ResourceExhausted => Outcome::Failed,
        tonic::Code::Ok
        | tonic::Code::Cancelled
        | tonic::Code::InvalidArgument
        | tonic::Code::NotFound
        | tonic::Code::AlreadyExists
        | tonic::Code::PermissionDenied
        | tonic::Code::FailedPrecondition
        | tonic::Code::Aborted
        | tonic::Code::OutOfRange
        | tonic::Code::Unimplemented
        | tonic::Code::Unauthenticated => Outcome::Refused,
    }
}
