use std::{cell::Cell, sync::Arc};

use mesh_asap::{
    PublicKey, SigningKey,
    txn::{self, NewToken},
};
use serde_json::Map;

use super::*;

const NOW: u64 = 1_800_000_000;

/// One transaction key, or none any more, and how often it was asked for.
struct OneKey {
    kid: String,
    key: Arc<PublicKey>,
    there: Cell<bool>,
    asked: Cell<usize>,
}

impl OneKey {
    fn of(key: &SigningKey) -> Self {
        let public = PublicKey::from_spki(&key.public_spki()).unwrap();
        Self { kid: key.kid().to_string(), key: Arc::new(public), there: Cell::new(true), asked: Cell::new(0) }
    }
}

impl Keys for OneKey {
    fn get(&self, kid: &str) -> Lookup {
        self.asked.set(self.asked.get() + 1);
        if kid == self.kid && self.there.get() { Lookup::Found(Arc::clone(&self.key)) } else { Lookup::Unknown }
    }
}

fn position(revision: u64) -> Option<Position> {
    Some(Position { epoch: 1, revision })
}

fn token(key: &SigningKey, tenant: Option<&str>, trust_domain: &str) -> String {
    let nothing = Map::new();
    let token = NewToken {
        trust_domain,
        txn: None,
        subject: "user-1",
        scope: "read",
        tenant,
        transaction_context: &nothing,
        requester_context: &nothing,
        requester: "edge",
        lifetime_seconds: txn::LIFETIME_SECONDS,
    };
    key.mint_transaction(&token, NOW)
}

fn transactions() -> Transactions {
    Transactions::new("demo.example".parse().unwrap())
}

#[test]
fn a_token_says_whether_its_tenant_is_the_calls() {
    let key = SigningKey::generate(txn::ISSUER).unwrap();
    let (keys, mut transactions) = (OneKey::of(&key), transactions());
    let (acme, nobody) = (token(&key, Some("acme"), "demo.example"), token(&key, None, "demo.example"));
    for (token, tenant, expected) in [
        (&acme, Named::One("acme"), Transaction::SameTenant),
        (&acme, Named::One("globex"), Transaction::OtherTenant),
        (&acme, Named::None, Transaction::OtherTenant),
        (&acme, Named::Many, Transaction::OtherTenant),
        (&nobody, Named::One("acme"), Transaction::OtherTenant),
        (&nobody, Named::None, Transaction::SameTenant),
        (&nobody, Named::Many, Transaction::OtherTenant),
    ] {
        assert_eq!(transactions.verify(&keys, position(1), token, tenant, NOW), Ok(expected), "{tenant:?}");
    }
}

#[test]
fn a_token_is_verified_once_and_remembered_until_it_ends_or_its_key_goes() {
    let key = SigningKey::generate(txn::ISSUER).unwrap();
    let (keys, mut transactions) = (OneKey::of(&key), transactions());
    let token = token(&key, Some("acme"), "demo.example");
    let mut at = |revision, now| transactions.verify(&keys, position(revision), &token, Named::One("acme"), now);
    for _ in 0..10 {
        assert!(at(1, NOW).is_ok());
    }
    assert_eq!(keys.asked.get(), 1, "the other nine came from memory");
    assert!(at(2, NOW).is_ok(), "another key came: this one is still there");
    keys.there.set(false);
    assert!(at(2, NOW).is_ok(), "nothing has changed that this worker knows of");
    assert_eq!(at(3, NOW).unwrap_err().reason, Reason::TxnInvalid);
    keys.there.set(true);
    let ends = NOW + txn::LIFETIME_SECONDS;
    assert!(at(4, ends + LEEWAY_SECONDS).is_ok());
    assert_eq!(at(4, ends + LEEWAY_SECONDS + 1).unwrap_err().reason, Reason::TxnExpired);
}

#[test]
fn a_token_whose_key_is_revoked_is_forgotten_at_once() {
    let key = SigningKey::generate(txn::ISSUER).unwrap();
    let (keys, mut transactions) = (OneKey::of(&key), transactions());
    let token = token(&key, None, "demo.example");
    assert!(transactions.verify(&keys, position(1), &token, Named::None, NOW).is_ok());
    keys.there.set(false);
    transactions.retain(|kid| kid != keys.kid);
    let refused = transactions.verify(&keys, position(1), &token, Named::None, NOW);
    assert_eq!(refused.unwrap_err().reason, Reason::TxnInvalid);
}

#[test]
fn what_is_no_transaction_token_of_this_mesh_is_invalid() {
    let key = SigningKey::generate(txn::ISSUER).unwrap();
    let (keys, mut transactions) = (OneKey::of(&key), transactions());
    let strange = SigningKey::generate(txn::ISSUER).unwrap();
    let good = token(&key, Some("acme"), "demo.example");
    let tokens = [
        String::new(),
        "a.b.c".to_owned(),
        format!("{good} "),
        token(&key, Some("acme"), "other.example"),
        token(&strange, Some("acme"), "demo.example"),
        // Signed by the right key, and an ASAP token.
        key.mint("media", NOW, 60),
    ];
    for token in &tokens {
        let refusal = transactions.verify(&keys, position(1), token, Named::One("acme"), NOW).unwrap_err();
        assert_eq!(refusal.reason, Reason::TxnInvalid, "{token}");
        assert!(!refusal.message.contains("acme") && !refusal.message.contains("example"), "{}", refusal.message);
    }
    assert!(transactions.verify(&keys, position(1), &good, Named::One("acme"), NOW).is_ok());
}

#[test]
fn the_names_of_mesh_asap_are_those_of_the_refusals() {
    use Error::{Algorithm, Expired, Key, Lifetime, Malformed, NotYetValid, Signature, TrustDomain};
    for error in [Malformed(""), Algorithm, Key, Signature, NotYetValid, Lifetime, TrustDomain, Expired] {
        assert_eq!(reason(&error).as_str(), error.reason());
    }
}
