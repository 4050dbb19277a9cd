//! What a token costs: to mint, to verify, and to verify again. At the end, a table of the figures that are promised,
//! each beside what it is compared with in the same run.

use std::hint::black_box;
use std::sync::{Arc, Barrier};
use std::time::Instant;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ParsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use divan::Bencher;
use mesh_asap::{Expect, Keys, Lookup, Memory, Minted, PublicKey, SigningKey, txn, verify};
use serde_json::Map;

const NOW: u64 = 1_700_000_000;
const EXPECT: Expect<'static> = Expect { audience: "media", issuer: Some("issues"), leeway_seconds: 5, grants: &[] };

fn main() {
    divan::main();
    // `cargo bench -- --list`, `--test` and a filter ask for less than all.
    if std::env::args().skip(1).all(|argument| argument == "--bench") {
        table();
    }
}

fn fixture() -> (SigningKey, impl Keys + Clone + Send) {
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
fn refuse_another_issuers_key(bencher: Bencher) {
    let (key, keys) = fixture();
    let key = key.mint("media", NOW, 300);
    let stranger = Expect { issuer: Some("wiki"), ..EXPECT };
    let _ = verify(&key, &stranger, &keys, NOW);
    let (header, rest) = key.split_once('.').expect("three parts");
    let claims = URL_SAFE_NO_PAD.encode(r#"{"iss":"wiki","aud":"media","iat":1,"exp":2,"jti":"x"}"#);
    let token = format!("{header}.{claims}.{}", rest.split_once('.').expect("three parts").1);
    bencher.bench_local(|| verify(black_box(&token), &EXPECT, &keys, NOW).is_err());
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

#[divan::bench]
fn transaction_new(bencher: Bencher) {
    let (token, keys) = transaction();
    bencher.bench_local(|| txn::verify(black_box(&token), &DOMAIN, &keys, NOW).is_ok());
}

#[divan::bench]
fn transaction_remembered(bencher: Bencher) {
    let (token, keys) = transaction();
    let mut memory = txn::Memory::default();
    bencher.bench_local(|| memory.verify(black_box(&token), &DOMAIN, &keys, NOW).is_ok());
}

const DOMAIN: txn::Expect<'static> = txn::Expect { trust_domain: "demo.example", leeway_seconds: 5 };

fn transaction() -> (String, impl Keys) {
    let key = SigningKey::generate(txn::ISSUER).expect("a name");
    let public = Arc::new(PublicKey::from_spki(&key.public_spki()).expect("its own public half"));
    let new = txn::NewToken {
        trust_domain: DOMAIN.trust_domain,
        txn: None,
        subject: "ada",
        scope: "issue.create",
        tenant: Some("acme"),
        transaction_context: &Map::new(),
        requester_context: &Map::new(),
        requester: "edge",
        lifetime_seconds: txn::LIFETIME_SECONDS,
    };
    (key.mint_transaction(&new, NOW), move |_: &str| Lookup::Found(Arc::clone(&public)))
}

/// Promise by promise.
fn table() {
    println!("\nASAP tokens: what is promised                     measured      promise");
    let row = |what: &str, measured: String, promise: &str| println!("  {what:<46}{measured:>10}      {promise}");
    row("verify, a remembered token", micros(remembered()), "≤ 1 µs");
    let (ours, bare) = new_against_bare();
    row("verify, a new ES256 token", micros(ours), "");
    row("  the same signature by bare aws-lc-rs", micros(bare), "");
    row("  the first over the second", format!("{:.3}", ours / bare), "≤ 1.10");
    row("mint, cached", micros(minted_token()), "≤ 0.5 µs");
    let (ours, bare) = scaling();
    row("new tokens a second, two threads over one", format!("{ours:.2}"), "≥ 1.8");
    row("  bare aws-lc-rs, two threads over one", format!("{bare:.2}"), "this machine's own");
}

fn micros(nanoseconds: f64) -> String {
    format!("{:.3} µs", nanoseconds / 1000.0)
}

/// Nanoseconds a call of `work` in the middle one of many short rounds.
fn nanoseconds(mut work: impl FnMut()) -> f64 {
    const CALLS: u32 = 10_000;
    let round = || {
        let start = Instant::now();
        (0..CALLS).for_each(|_| work());
        start.elapsed().as_nanos() as f64 / f64::from(CALLS)
    };
    median(std::iter::repeat_with(round).take(101).collect())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn remembered() -> f64 {
    let (key, keys) = fixture();
    let mut memory = Memory::default();
    let tokens: Vec<String> = (0..64).map(|_| key.mint("media", NOW, 300)).collect();
    let mut next = tokens.iter().cycle();
    nanoseconds(|| {
        let token = next.next().expect("there are some");
        assert!(memory.verify(black_box(token), &EXPECT, &keys, NOW).is_ok());
    })
}

fn minted_token() -> f64 {
    let minted: Minted = Minted::new(Arc::new(fixture().0), 300, Into::into);
    nanoseconds(|| drop(black_box(minted.token(black_box("media"), NOW))))
}

/// A token as bare aws-lc-rs needs it: nothing left to read.
struct Bare {
    key: ParsedPublicKey,
    message: String,
    signature: Vec<u8>,
}

impl Bare {
    fn of(key: &SigningKey, token: &str) -> Self {
        let (message, signature) = token.rsplit_once('.').expect("three parts");
        Self {
            key: ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key.public_spki()).expect("its own public half"),
            message: message.to_owned(),
            signature: URL_SAFE_NO_PAD.decode(signature).expect("base64url"),
        }
    }

    fn verify(&self) {
        assert!(self.key.verify_sig(black_box(self.message.as_bytes()), &self.signature).is_ok());
    }
}

/// Nanoseconds to verify a token never seen before as a worker does, remembering it; and to verify its signature alone.
/// In turns, so that what else the machine does meets both.
fn new_against_bare() -> (f64, f64) {
    const TOKENS: usize = 64;
    let (key, keys) = fixture();
    let tokens: Vec<String> = (0..TOKENS).map(|_| key.mint("media", NOW, 300)).collect();
    let bare: Vec<Bare> = tokens.iter().map(|token| Bare::of(&key, token)).collect();
    let mut memory = Memory::default();
    let mut times = (Vec::new(), Vec::new());
    for _ in 0..401 {
        memory.forget_all();
        let start = Instant::now();
        for token in &tokens {
            assert!(memory.verify(black_box(token), &EXPECT, &keys, NOW).is_ok());
        }
        times.0.push(start.elapsed().as_nanos() as f64 / TOKENS as f64);
        let start = Instant::now();
        bare.iter().for_each(Bare::verify);
        times.1.push(start.elapsed().as_nanos() as f64 / TOKENS as f64);
    }
    (median(times.0), median(times.1))
}

/// How many times as many new tokens two threads verify as one does, each given a processor of its own; and the same of
/// bare signatures, which is this machine's own limit. By the time that the threads had a processor, so that it does not
/// count what else the machine does; of the quietest of several rounds.
fn scaling() -> (f64, f64) {
    let (key, keys) = fixture();
    let token = key.mint("media", NOW, 300);
    let bare = Bare::of(&key, &token);
    let ours = || {
        let (keys, token) = (keys.clone(), token.clone());
        move || assert!(verify(black_box(&token), &EXPECT, &keys, NOW).is_ok())
    };
    let bare = || || bare.verify();
    let (mut our, mut bares) = ([0.0_f64; 2], [0.0_f64; 2]);
    for _ in 0..10 {
        for threads in [1, 2] {
            our[threads - 1] = our[threads - 1].max(calls_a_second(threads, &ours));
            bares[threads - 1] = bares[threads - 1].max(calls_a_second(threads, &bare));
        }
    }
    (our[1] / our[0], bares[1] / bares[0])
}

/// Calls a second of all threads together, each with its own work.
fn calls_a_second<W: FnMut() + Send>(threads: usize, work: &dyn Fn() -> W) -> f64 {
    const CALLS: u32 = 2_000;
    let together = Barrier::new(threads);
    std::thread::scope(|scope| {
        let run = |mut work: W| {
            let together = &together;
            scope.spawn(move || {
                together.wait();
                let start = processor_seconds();
                (0..CALLS).for_each(|_| work());
                f64::from(CALLS) / (processor_seconds() - start)
            })
        };
        let running: Vec<_> = (0..threads).map(|_| run(work())).collect();
        running.into_iter().map(|thread| thread.join().expect("it only counts")).sum()
    })
}

/// What this thread has had of a processor.
fn processor_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
