//! The name of this process among those of its service.

use std::path::Path;
use std::sync::Arc;

use mesh_config::names::ServiceName;

use super::{JoinError, state};

const FILE: &str = "instance.id";

/// `<service>-<16 hex digits>`, the same for as long as the state folder lives. The identity service counts live
/// instances by it, and what each follows, so two processes never share one: nor do they share a state folder.
pub(super) fn of(state_dir: &Path, service: &ServiceName) -> Result<Arc<str>, JoinError> {
    if let Ok(stored) = state::read(state_dir, FILE)
        && is_name(stored.trim(), service)
    {
        return Ok(stored.trim().into());
    }
    let fresh = format!("{service}-{:016x}", rand::random::<u64>());
    state::create(state_dir)?;
    state::write(state_dir, FILE, fresh.as_bytes())?;
    Ok(fresh.into())
}

fn is_name(text: &str, service: &ServiceName) -> bool {
    let id = text.strip_prefix(service.as_str()).and_then(|rest| rest.strip_prefix('-'));
    id.is_some_and(|id| id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit()))
}
