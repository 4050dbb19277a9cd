//! Header values of tenants that come often, made once: base64 and numbers as text cost more than a look-up.

use std::sync::{Mutex, PoisonError};

use http::HeaderValue;
use sidecar_core::{Position, tenancy::Tenant};

use crate::headers;

/// Tenants of one worker that are kept; another one in the same place takes it.
const PLACES: usize = 256;
/// Tokens for destinations, likewise.
const TOKENS: usize = 16;
/// Longer contexts are encoded for each call.
const LONGEST: usize = 1 << 10;

/// The values of one worker. The locks are the worker's own. Not to be printed: there are tokens in it.
pub struct Ready {
    places: Mutex<Box<[Place]>>,
    /// Of the sidecar's tokens, as all workers have them, and this worker's own copy of each.
    tokens: Mutex<[Option<(HeaderValue, HeaderValue)>; TOKENS]>,
}

#[derive(Clone, Debug, Default)]
struct Place {
    /// Of which the values are. While it is held here, nothing else has its address.
    tenant: Option<Tenant>,
    context: Option<HeaderValue>,
    revision: Option<(Position, HeaderValue)>,
}

impl Default for Ready {
    fn default() -> Self {
        Self { places: Mutex::new(vec![Place::default(); PLACES].into()), tokens: Mutex::default() }
    }
}

impl Ready {
    /// This worker's own copy of a token: its references are counted on each call, by no other core.
    pub fn token(&self, shared: &HeaderValue) -> HeaderValue {
        let address = |token: &HeaderValue| token.as_bytes().as_ptr().addr();
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let place = &mut tokens[(address(shared) >> 9 ^ address(shared) >> 13) % TOKENS];
        // While a token is held here, nothing else has its address.
        if let Some((_, own)) = place.as_ref().filter(|(of, _)| address(of) == address(shared)) {
            return own.clone();
        }
        let own = HeaderValue::from_bytes(shared.as_bytes()).unwrap_or_else(|_| shared.clone());
        place.insert((shared.clone(), own)).1.clone()
    }

    /// `x-tenant-context-bin` of this tenant.
    pub fn context(&self, tenant: &Tenant) -> Option<HeaderValue> {
        if tenant.context().len() > LONGEST {
            return headers::binary(tenant.context());
        }
        self.place(tenant, |place| {
            if place.context.is_none() {
                place.context = headers::binary(tenant.context());
            }
            place.context.clone()
        })
    }

    /// `x-tenant-revision` of this tenant, whose record stands at `position`.
    pub fn revision(&self, tenant: &Tenant, position: Position) -> Option<HeaderValue> {
        if tenant.context().len() > LONGEST {
            return revision(position);
        }
        self.place(tenant, |place| {
            if let Some((_, value)) = place.revision.as_ref().filter(|(of, _)| *of == position) {
                return Some(value.clone());
            }
            let value = revision(position)?;
            place.revision = Some((position, value.clone()));
            Some(value)
        })
    }

    fn place<T>(&self, tenant: &Tenant, with: impl FnOnce(&mut Place) -> T) -> T {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let address = tenant.address();
        // Records are some hundred bytes apart.
        let place = &mut places[(address >> 6 ^ address >> 14) % PLACES];
        if place.tenant.as_ref().map(Tenant::address) != Some(address) {
            *place = Place { tenant: Some(tenant.clone()), ..Place::default() };
        }
        with(place)
    }
}

fn revision(position: Position) -> Option<HeaderValue> {
    HeaderValue::try_from(position.to_string()).ok().map(headers::never_indexed)
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use tenon_proto::tcs::v1::TenantContext;

    use super::*;

    fn tenant(number: u64) -> Tenant {
        let context = TenantContext { tenant_id: format!("t-{number}"), ..TenantContext::default() };
        Tenant::decode(context.encode_to_vec()).unwrap()
    }

    #[test]
    fn a_copy_of_a_token_is_of_that_token() {
        let ready = Ready::default();
        for number in 0..1_000 {
            // Freed at once: the next may get the same memory, were it not held.
            let token = HeaderValue::try_from(format!("{number}.{}", "t".repeat(400))).unwrap();
            assert_eq!(ready.token(&token), token);
            let own = ready.token(&token);
            assert_eq!(own, token, "from memory");
            assert_ne!(own.as_bytes().as_ptr(), token.as_bytes().as_ptr());
            assert_eq!(own.as_bytes().as_ptr(), ready.token(&token).as_bytes().as_ptr());
        }
    }

    #[test]
    fn many_tenants_in_few_places_each_get_their_own_values() {
        let ready = Ready::default();
        let tenants: Vec<Tenant> = (0..10 * PLACES as u64).map(tenant).collect();
        for _ in 0..2 {
            for (number, tenant) in (1..).zip(&tenants) {
                assert_eq!(ready.context(tenant), headers::binary(tenant.context()));
                assert_eq!(ready.context(tenant), headers::binary(tenant.context()), "from memory");
                for position in [Position { epoch: 1, revision: number }, Position { epoch: 2, revision: number }] {
                    assert_eq!(ready.revision(tenant, position).unwrap(), position.to_string());
                }
            }
        }
    }

    #[test]
    fn another_record_of_the_tenant_has_another_context() {
        let ready = Ready::default();
        for number in 0..1_000 {
            // Freed at once: the next may get the same memory, were it not held.
            let tenant = tenant(number);
            assert_eq!(ready.context(&tenant), headers::binary(tenant.context()));
        }
    }
}
