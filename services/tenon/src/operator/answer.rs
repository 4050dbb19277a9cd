//! What a failed call says of what became of it.

use std::error::Error;

use tonic::{Code, ConnectError, Status};

use super::{is_another_mesh, reason};

/// Whether this side made the status, for want of an answer. One that a service sent has no source.
pub fn from_the_connection(status: &Status) -> bool {
    status.source().is_some()
}

/// Whether the write that failed with this may have been made all the same: the connection broke after the request was
/// on its way, or the service answers that it does not know.
pub fn may_be_done(status: &Status) -> bool {
    let unclear = [Code::Unavailable, Code::Unknown, Code::Cancelled, Code::Internal, Code::DeadlineExceeded];
    let text = reason(status);
    let told = text.contains(NOTHING_HAS_CHANGED) || is_another_mesh(&text);
    unclear.contains(&status.code()) && !told && !never_connected(status)
}

/// Whether the policy service has taken the policy, and goes on writing what follows from it.
pub fn is_taken(status: &Status) -> bool {
    status.code() == Code::Unavailable && status.message().starts_with(TAKEN)
}

/// How the policy service says so.
const TAKEN: &str = "the policy is taken";

/// How services say that a write was not made: the journal's words.
const NOTHING_HAS_CHANGED: &str = "nothing has changed";

fn never_connected(status: &Status) -> bool {
    std::iter::successors(status.source(), |error| (*error).source()).any(|error| error.is::<ConnectError>())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Named after a message that was not true: the connection broke, and the TCS went on to apply the file.
    #[test]
    fn a_write_was_not_made_only_where_that_is_known() {
        for (status, unknown) in [
            (Status::unavailable("http2 error"), true),
            (Status::unknown("h2 protocol error: error reading a body from connection"), true),
            (Status::unavailable("the store did not confirm the write, which may have been made"), true),
            (Status::from_error(Box::new(ConnectError("Connection refused (os error 111)".into()))), false),
            (Status::unknown("invalid peer certificate: UnknownIssuer"), false),
            (Status::unavailable("the store failed: nothing has changed"), false),
            (Status::resource_exhausted("no room left on the disk"), false),
            (Status::invalid_argument("a chunk without tenants"), false),
            (Status::not_found("there is no tenant acme"), false),
        ] {
            assert_eq!(may_be_done(&status), unknown, "{status}");
        }
    }
}
