//! Any text as a token: no panic, always a reason, no look-up before everything cheaper has passed, and no acceptance,
//! since there is no key.
#![no_main]

use std::cell::Cell;

use libfuzzer_sys::fuzz_target;
use mesh_asap::{Expect, Lookup, bearer, inspect, precheck, txn, verify};

const NOW: u64 = 1_700_000_000;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(token) = bearer([bytes]) {
        assert!(token.len() <= mesh_asap::MAX_TOKEN_BYTES);
    }
    let Ok(token) = std::str::from_utf8(bytes) else { return };
    let asked = Cell::new(0);
    let keys = |_: &str| {
        asked.set(asked.get() + 1);
        Lookup::Unknown
    };
    let error = verify(token, &Expect::new("media", None), &keys, NOW).expect_err("there is no key");
    assert!(error.reason().starts_with("ASAP_"));
    match precheck(token) {
        Ok(checked) => {
            assert_eq!((asked.get(), error.reason()), (1, "ASAP_KEY_UNKNOWN"));
            assert!(checked.kid.belongs_to(&checked.issuer));
            assert!(inspect(token).is_ok());
        }
        Err(same) => assert_eq!((asked.get(), &same), (0, &error)),
    }
    let expect = txn::Expect { trust_domain: "demo.example", leeway_seconds: 5 };
    let error = txn::verify(token, &expect, &|_: &str| Lookup::Unknown, NOW).expect_err("there is no key");
    assert_eq!(error.reason(), "TXN_INVALID");
});
