//! Any bytes as a public key, a private key, a key id, an environment: no panic, and what is accepted is of use.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_asap::env::Environment;
use mesh_asap::{Kid, PublicKey, SigningKey};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(key) = PublicKey::from_spki(bytes) {
        assert!(key.algorithms().count() > 0);
    }
    let kid: Kid = "issues/k1".parse().expect("a key id");
    if let Ok(key) = SigningKey::from_pkcs8(kid, bytes) {
        assert!(PublicKey::from_spki(&key.public_spki()).is_ok());
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let _ = PublicKey::from_pem(text);
    let _ = SigningKey::from_data_uri(text);
    if let Ok(kid) = text.parse::<Kid>() {
        let below = kid.join("https://keys.example/a");
        assert_eq!(below.strip_prefix("https://keys.example/a/"), Some(text));
        assert!(kid.segments().all(|segment| !matches!(segment, "" | "." | "..")));
    }
    let lines = text.lines().filter_map(|line| line.split_once('='));
    if let Ok(environment) = Environment::parse(lines.map(|(name, value)| (name, value.to_owned()))) {
        let _ = environment.signing_key();
    }
});
