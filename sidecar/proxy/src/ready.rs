//! Header values of tenants, made once: base64 and numbers as text cost more than a look-up. And which tenants come often.

use std::sync::{Mutex, PoisonError};

use http::HeaderValue;
use sidecar_core::{Position, tenancy::Tenant};

use crate::headers;

/// Tenants of one worker that are kept; another one in the same place takes it.
const PLACES: usize = 256;
/// Tokens for destinations, likewise.
const TOKENS: usize = 16;
/// Longer contexts are encoded for each call, and their tenants never come often.
const LONGEST: usize = 1 << 10;
/// Calls of a worker after which it is seen anew which tenants come often.
const WINDOW: u32 = 256;
/// Of these, calls of a tenant that comes often: it has more than a sixteenth of them, so that there are fewer than 16 such
/// tenants, and what is said of them fits into HPACK's table of 4 KiB beside a token.
const OFTEN: u32 = WINDOW / 16;

/// The values of one worker. The locks are the worker's own. Not to be printed: there are tokens in it.
pub struct Ready {
    places: Mutex<Places>,
    /// Of the sidecar's tokens, as all workers have them, and this worker's own copy of each.
    tokens: Mutex<[Option<(HeaderValue, HeaderValue)>; TOKENS]>,
}

struct Places {
    all: Box<[Place]>,
    /// Since the last [`WINDOW`] ended.
    calls: u32,
}

#[derive(Clone, Debug, Default)]
struct Place {
    /// Of which the values are. While it is held here, nothing else has its address.
    tenant: Option<Tenant>,
    context: Option<HeaderValue>,
    revision: Option<(Position, HeaderValue)>,
    /// In this [`WINDOW`].
    calls: u32,
    /// In the last one it came [`OFTEN`].
    often: bool,
}

/// What is said of a tenant beside its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// The header's value: to be indexed where its tenant comes often.
    pub value: HeaderValue,
    /// Whether its tenant comes often: then HPACK's table is a good place for what is said of it. Of the others each value
    /// would push out what is needed again, the token before all ([`headers::never_indexed`]).
    pub often: bool,
}

impl Default for Ready {
    fn default() -> Self {
        let places = Places { all: vec![Place::default(); PLACES].into(), calls: 0 };
        Self { places: Mutex::new(places), tokens: Mutex::default() }
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

    /// `x-tenant-context-bin` of this tenant, for the app that one of its calls goes to.
    pub fn context(&self, tenant: &Tenant) -> Option<Value> {
        self.place(tenant, |place| match &place.context {
            Some(value) => Some(value.clone()),
            None => Some(place.context.insert(headers::binary(tenant.context())?).clone()),
        })
    }

    /// `x-tenant-revision` of this tenant, whose record stands at `position`, for the sidecar that one of its calls goes to.
    pub fn revision(&self, tenant: &Tenant, position: Position) -> Option<Value> {
        self.place(tenant, |place| {
            if let Some((_, value)) = place.revision.as_ref().filter(|(of, _)| *of == position) {
                return Some(value.clone());
            }
            Some(place.revision.insert((position, revision(position)?)).1.clone())
        })
    }

    /// Counts a call of the tenant.
    fn place(&self, tenant: &Tenant, value: impl FnOnce(&mut Place) -> Option<HeaderValue>) -> Option<Value> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let mut apart = Place::default();
        let place = places.of(tenant).unwrap_or(&mut apart);
        place.calls += 1;
        let (often, value) = (place.often, value(place));
        let mut value = value?;
        value.set_sensitive(!often);
        Some(Value { value, often })
    }
}

impl Places {
    /// The place of a tenant, which may take it from another one; none of a large record, since it would be held here, nor
    /// where a tenant that comes often has it.
    fn of(&mut self, tenant: &Tenant) -> Option<&mut Place> {
        self.calls += 1;
        if self.calls == WINDOW {
            self.begin_window();
        }
        let address = tenant.address();
        // Records are some hundred bytes apart.
        let place = &mut self.all[(address >> 6 ^ address >> 14) % PLACES];
        if place.tenant.as_ref().map(Tenant::address) != Some(address) {
            if place.often || tenant.context().len() > LONGEST {
                return None;
            }
            *place = Place { tenant: Some(tenant.clone()), ..Place::default() };
        }
        Some(place)
    }

    fn begin_window(&mut self) {
        self.calls = 0;
        for place in &mut self.all {
            place.often = std::mem::take(&mut place.calls) > OFTEN;
        }
    }
}

fn revision(position: Position) -> Option<HeaderValue> {
    HeaderValue::try_from(position.to_string()).ok()
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
                for context in [ready.context(tenant), ready.context(tenant)] {
                    assert_eq!(context.map(|it| it.value), headers::binary(tenant.context()));
                }
                for position in [Position { epoch: 1, revision: number }, Position { epoch: 2, revision: number }] {
                    assert_eq!(ready.revision(tenant, position).unwrap().value, position.to_string());
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
            assert_eq!(ready.context(&tenant).unwrap().value, headers::binary(tenant.context()).unwrap());
        }
    }

    #[test]
    fn only_what_is_said_of_tenants_that_come_often_is_indexed() {
        let ready = Ready::default();
        let (often, others) = (tenant(0), (1..=200).map(tenant).collect::<Vec<_>>());
        let both = |tenant| {
            let said = [ready.context(tenant).unwrap(), ready.revision(tenant, Position::default()).unwrap()];
            assert!(said.iter().all(|it| it.value.is_sensitive() != it.often), "{said:?}");
            said.map(|it| it.often)
        };
        assert_eq!(both(&often), [false; 2], "nobody knows yet");
        for turn in 0..20 {
            for other in &others[turn..turn + 20] {
                both(&often);
                assert_eq!(both(other), [false; 2]);
            }
        }
        assert_eq!(both(&often), [true; 2]);
        for other in others.iter().chain(&others) {
            both(other);
        }
        assert_eq!(both(&often), [false; 2], "it has not come lately");
    }
}
