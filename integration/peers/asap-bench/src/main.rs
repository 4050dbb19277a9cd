//! RS256 side by side with the crate `asap`: the same tokens, the key already in memory on both sides, in turns, so that
//! what else the machine does meets both.

use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use asap::validator::Validator;
use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::KeyPair as _;
use mesh_asap::{Expect, Lookup, Memory, PublicKey, SigningKey, verify};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

const ISSUER: &str = "issues";
const AUDIENCE: &str = "media";
const TOKENS: usize = 64;

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(compare());
}

async fn compare() {
    let pair = KeyPair::generate(KeySize::Rsa2048).expect("a key");
    let pkcs8: Pkcs8V1Der<'_> = pair.as_der().expect("PKCS#8");
    let key = SigningKey::from_pkcs8("issues/k1".parse().expect("a key id"), pkcs8.as_ref()).expect("RSA");
    let public = Arc::new(PublicKey::from_spki(&key.public_spki()).expect("its own public half"));
    let keys = |_: &str| Lookup::Found(Arc::clone(&public));

    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let tokens: Vec<String> = (0..TOKENS).map(|_| key.mint(AUDIENCE, now, 3600)).collect();
    // It takes PKCS#1 where the specification says SubjectPublicKeyInfo.
    let repository = repository(pair.public_key().as_ref().to_vec()).await;
    let theirs = Validator::builder(format!("http://{repository}/"), AUDIENCE.to_owned()).leeway(5).build();
    let expect = Expect::new(AUDIENCE, Some(ISSUER));
    let mut memory = Memory::default();
    for token in &tokens {
        theirs.decode(token, &[ISSUER]).await.expect("theirs verifies ours");
        memory.verify(token, &expect, &keys, now).expect("ours verifies ours");
    }

    let (mut new, mut remembered, mut peer) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..201 {
        let start = Instant::now();
        for token in &tokens {
            assert!(verify(black_box(token), &expect, &keys, now).is_ok());
        }
        new.push(micros(start));
        let start = Instant::now();
        for token in &tokens {
            assert!(memory.verify(black_box(token), &expect, &keys, now).is_ok());
        }
        remembered.push(micros(start));
        let start = Instant::now();
        for token in &tokens {
            assert!(theirs.decode(black_box(token), &[ISSUER]).await.is_ok());
        }
        peer.push(micros(start));
    }
    let (new, remembered, peer) = (median(new), median(remembered), median(peer));
    println!("\nRS256, 2048 bits, the key known: side by side with the crate asap 0.14");
    println!("  verify, a new token                           {new:>8.3} µs");
    println!("  verify, a remembered token                    {remembered:>8.3} µs");
    println!("  verify, the crate asap                        {peer:>8.3} µs");
    println!("  new over the crate asap                       {:>8.3}", new / peer);
    println!("  remembered over the crate asap                {:>8.4}", remembered / peer);
}

fn micros(start: Instant) -> f64 {
    start.elapsed().as_nanos() as f64 / 1000.0 / TOKENS as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A key repository that has this one key under every name.
async fn repository(key: Vec<u8>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("it is bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            // Requests of this client come in one piece.
            let _ = stream.read(&mut [0; 4096]).await;
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", key.len());
            let _ = stream.write_all(&[head.as_bytes(), &key].concat()).await;
        }
    });
    address
}
