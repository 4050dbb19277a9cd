use std::collections::HashSet;

use super::*;

const NOW: u64 = 1_700_000_000;

fn minted() -> Minted {
    Minted::new(Arc::new(SigningKey::generate("issues").unwrap()), 300, Into::into)
}

fn exp(token: &str) -> u64 {
    crate::inspect(token).unwrap().claims["exp"].as_u64().unwrap()
}

#[test]
fn a_token_is_reused_until_80_percent_of_its_life_is_over() {
    let minted = minted();
    let first = minted.token("media", NOW);
    assert_eq!(exp(&first), NOW + 300);
    assert_eq!(minted.token("media", NOW + 239), first);
    let second = minted.token("media", NOW + 240);
    assert_ne!(second, first);
    assert_eq!(exp(&second), NOW + 540);
    assert_eq!(minted.token("media", NOW + 241), second);
}

#[test]
fn each_audience_has_a_token_of_its_own() {
    let minted = minted();
    let audience = |token: &str| crate::inspect(token).unwrap().claims["aud"].as_str().unwrap().to_owned();
    assert_eq!(audience(&minted.token("media", NOW)), "media");
    assert_eq!(audience(&minted.token("wiki", NOW)), "wiki");
}

#[test]
fn a_clock_that_went_back_gets_a_token_that_is_valid_there() {
    let minted = minted();
    minted.token("media", NOW);
    assert_eq!(exp(&minted.token("media", NOW - 1000)), NOW - 700);
}

#[test]
fn a_new_key_signs_every_token_from_then_on() {
    let minted = minted();
    minted.token("media", NOW);
    let key = Arc::new(SigningKey::generate("issues").unwrap());
    minted.set_key(Arc::clone(&key), NOW);
    let header = crate::inspect(&minted.token("media", NOW)).unwrap().header;
    assert_eq!(header["kid"], key.kid().as_str());
}

#[test]
fn what_is_due_is_renewed_ahead_of_any_call() {
    let minted = minted();
    let first = minted.token("media", NOW);
    minted.renew_due(NOW + 250);
    let ahead = minted.token("media", NOW + 250);
    assert_ne!(ahead, first);
    assert_eq!(exp(&ahead), NOW + 550);
}

#[test]
fn many_threads_share_few_tokens_and_never_see_an_expired_one() {
    let minted = Arc::new(minted());
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let minted = Arc::clone(&minted);
            std::thread::spawn(move || {
                let step = |now: u64| {
                    let token = minted.token("media", now);
                    assert!(exp(&token) > now);
                    token
                };
                (NOW..NOW + 2000).map(step).collect::<HashSet<Arc<str>>>()
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}
