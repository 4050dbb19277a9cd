use std::cell::Cell;
use std::sync::Arc;

use super::*;
use crate::{Lookup, PublicKey, SigningKey};

const NOW: u64 = 1_700_000_000;

struct Fixture {
    key: SigningKey,
    public: Arc<PublicKey>,
    asked: Cell<u32>,
}

impl Fixture {
    fn new() -> Self {
        let key = SigningKey::generate("issues").unwrap();
        let public = Arc::new(PublicKey::from_spki(&key.public_spki()).unwrap());
        Self { key, public, asked: Cell::new(0) }
    }

    fn keys(&self) -> impl Fn(&str) -> Lookup {
        |_| {
            self.asked.set(self.asked.get() + 1);
            Lookup::Found(Arc::clone(&self.public))
        }
    }
}

fn expect<'a>(audience: &'a str, issuer: &'a str) -> Expect<'a> {
    Expect::new(audience, Some(issuer))
}

#[test]
fn a_remembered_token_needs_no_key_until_it_expires() {
    let (fixture, mut memory) = (Fixture::new(), Memory::default());
    let token = fixture.key.mint("media", NOW, 300);
    for now in [NOW, NOW + 1, NOW + 300] {
        memory.verify(&token, &expect("media", "issues"), &fixture.keys(), now).unwrap();
    }
    assert_eq!(fixture.asked.get(), 1);
    assert!(memory.get(&token, &expect("media", "issues"), NOW).is_some());
    assert!(memory.get(&token, &expect("media", "issues"), NOW + 301).is_none());
    let late = memory.verify(&token, &expect("media", "issues"), &fixture.keys(), NOW + 306);
    assert_eq!(late, Err(VerifyError::Expired));
}

#[test]
fn a_remembered_token_is_still_bound_to_peer_and_audience() {
    let (fixture, mut memory) = (Fixture::new(), Memory::default());
    let token = fixture.key.mint("media", NOW, 300);
    memory.verify(&token, &expect("media", "issues"), &fixture.keys(), NOW).unwrap();
    let stolen = memory.verify(&token, &expect("media", "wiki"), &fixture.keys(), NOW);
    assert_eq!(stolen, Err(VerifyError::Issuer));
    let elsewhere = memory.verify(&token, &expect("wiki", "issues"), &fixture.keys(), NOW);
    assert_eq!(elsewhere, Err(VerifyError::Audience));
    assert!(memory.get(&token, &expect("media", "wiki"), NOW).is_none());
}

#[test]
fn a_token_that_differs_in_one_byte_is_not_remembered() {
    let (fixture, mut memory) = (Fixture::new(), Memory::default());
    let token = fixture.key.mint("media", NOW, 300);
    memory.verify(&token, &expect("media", "issues"), &fixture.keys(), NOW).unwrap();
    let mut other = token.into_bytes();
    let last = other.len() - 10;
    other[last] = if other[last] == b'A' { b'B' } else { b'A' };
    let other = String::from_utf8(other).unwrap();
    let answer = memory.verify(&other, &expect("media", "issues"), &fixture.keys(), NOW);
    assert_eq!(answer, Err(VerifyError::Signature));
}

#[test]
fn memory_is_bounded_and_keeps_what_is_in_use() {
    let (fixture, mut memory) = (Fixture::new(), Memory::with_capacity(8));
    let used = fixture.key.mint("media", NOW, 300);
    for _ in 0..100 {
        let token = fixture.key.mint("media", NOW, 300);
        memory.verify(&token, &expect("media", "issues"), &fixture.keys(), NOW).unwrap();
        memory.verify(&used, &expect("media", "issues"), &fixture.keys(), NOW).unwrap();
        assert!(memory.len() <= 16);
    }
    assert_eq!(fixture.asked.get(), 101);
}

#[test]
fn what_a_gone_key_or_a_revoked_issuer_signed_is_forgotten() {
    let (fixture, mut memory) = (Fixture::new(), Memory::default());
    let token = fixture.key.mint("media", NOW, 300);
    memory.verify(&token, &expect("media", "issues"), &fixture.keys(), NOW).unwrap();
    memory.retain(|verified| &*verified.issuer != "wiki");
    assert_eq!(memory.len(), 1);
    memory.retain(|verified| *verified.kid != *fixture.key.kid().as_str());
    assert!(memory.is_empty());
    let gone = memory.verify(&token, &expect("media", "issues"), &|_: &str| Lookup::Unknown, NOW);
    assert_eq!(gone, Err(VerifyError::KeyUnknown));
}
