//! `SetLogLevel`.

use std::time::Duration;

use tenon_proto::admin::v1::{SetLogLevelRequest, SetLogLevelResponse};
use tonic::Status;

use crate::log_filter::{self, Filter};

/// The longest that a level is set for: a day.
const LONGEST_SECONDS: u32 = 86_400;

/// # Errors
/// INVALID_ARGUMENT names the field, and where in the filter; FAILED_PRECONDITION: the log is another one's.
pub(super) fn set(request: &SetLogLevelRequest) -> Result<SetLogLevelResponse, Status> {
    let SetLogLevelRequest { filter, seconds } = request;
    let parsed = Some(filter.trim()).filter(|filter| !filter.is_empty()).map(str::parse::<Filter>).transpose();
    let parsed = parsed.map_err(|error| Status::invalid_argument(format!("filter: {error}")))?;
    if *seconds > LONGEST_SECONDS {
        return Err(Status::invalid_argument(format!("seconds: expected {LONGEST_SECONDS} at most, or 0 to stay")));
    }
    let length = (*seconds > 0).then(|| Duration::from_secs((*seconds).into()));
    match log_filter::set(parsed, length) {
        Some(Ok((old, new))) => {
            let until = new.until.and_then(|until| i64::try_from(until).ok()).unwrap_or_default();
            Ok(SetLogLevelResponse { old: old.filter, new: new.filter, until_unix_seconds: until })
        }
        Some(Err(error)) => Err(Status::internal(format!("the filter cannot be put into effect: {error}"))),
        None => Err(Status::failed_precondition("the log of this process is not the sidecar's own")),
    }
}
