//! The tenants that the app is serving at this moment, for services that do not originate calls (DESIGN §6).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Counts inbound calls by tenant, shared by all workers. The lock is held for one map operation.
#[derive(Debug, Default)]
pub struct InFlight(Mutex<HashMap<Box<str>, usize>>);

/// One inbound call for one tenant; it counts until it is dropped.
#[derive(Debug)]
pub struct Serving {
    tenants: Arc<InFlight>,
    tenant: Box<str>,
}

impl InFlight {
    /// A call for this tenant has begun.
    pub fn enter(self: &Arc<Self>, tenant: &str) -> Serving {
        *self.lock().entry(tenant.into()).or_default() += 1;
        Serving { tenants: Arc::clone(self), tenant: tenant.into() }
    }

    /// Whether a call for this tenant is being served.
    pub fn contains(&self, tenant: &str) -> bool {
        self.lock().contains_key(tenant)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Box<str>, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let mut tenants = self.tenants.lock();
        if let Some(count) = tenants.get_mut(&self.tenant) {
            *count -= 1;
            if *count == 0 {
                tenants.remove(&self.tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_is_in_flight_until_its_last_call_has_ended() {
        let tenants = Arc::new(InFlight::default());
        let (first, second) = (tenants.enter("acme"), tenants.enter("acme"));
        drop(first);
        assert!(tenants.contains("acme"));
        assert!(!tenants.contains("globex"));
        drop(second);
        assert!(!tenants.contains("acme"));
        assert!(tenants.lock().is_empty());
    }
}
