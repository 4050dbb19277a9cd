//! What a token costs: to mint, to verify, and to verify again.

use std::sync::Arc;

use divan::{Bencher, black_box};
use mesh_asap::{Expect, Lookup, Memory, Minted, PublicKey, SigningKey, verify};

const NOW: u64 = 1_700_000_000;
const EXPECT: Expect<'static> = Expect { audience: "media", issuer: Some("issues"), leeway_seconds: 5, grants: &[] };

fn main() {
    divan::main();
}

fn fixture() -> (SigningKey, impl Fn(&str) -> Lookup) {
    let key = SigningKey::generate("issues").expect("a name");
    let public = Arc::new(PublicKey::from_spki(&key.public_spki()).expect("its own public half"));
    (key, move |_: &str| Lookup::Found(Arc::clone(&public)))
}

#[divan::bench]
fn verify_new(bencher: Bencher) {
    let (key, keys) = fixture();
    let token = key.mint("media", NOW, 300);
    bencher.bench_local(|| verify(black_box(&token), &EXPECT, &keys, NOW).is_ok());
}

#[divan::bench]
fn verify_remembered(bencher: Bencher) {
    let (key, keys) = fixture();
    let token = key.mint("media", NOW, 300);
    let mut memory = Memory::default();
    bencher.bench_local(|| memory.verify(black_box(&token), &EXPECT, &keys, NOW).is_ok());
}

#[divan::bench]
fn mint(bencher: Bencher) {
    let (key, _) = fixture();
    bencher.bench_local(|| key.mint(black_box("media"), NOW, 300));
}

#[divan::bench]
fn minted_ahead(bencher: Bencher) {
    let minted: Minted = Minted::new(Arc::new(fixture().0), 300, Into::into);
    bencher.bench_local(|| minted.token(black_box("media"), NOW));
}
