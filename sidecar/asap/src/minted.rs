//! Tokens minted ahead, one an audience (A11: reuse until expiry is legal).

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;

use crate::SigningKey;

/// The tokens of one process, shared by its workers. Reading takes no lock. `T` is the form in which a token is wanted:
/// text, or a header value that was made once.
///
/// The set of audiences only grows, so callers ask for services that exist, never for what a client names.
pub struct Minted<T = Arc<str>> {
    key: ArcSwap<SigningKey>,
    lifetime_seconds: u64,
    wrap: fn(String) -> T,
    slots: ArcSwap<Slots<T>>,
}

type Slots<T> = HashMap<Box<str>, Arc<Slot<T>>, ahash::RandomState>;

struct Slot<T> {
    current: ArcSwap<Token<T>>,
    /// Set while one caller mints the next token; the others go on with the current one.
    renewing: AtomicBool,
}

/// Times are Unix seconds.
struct Token<T> {
    value: T,
    minted_at: u64,
    /// 80 % of its life.
    renew_at: u64,
    /// A tenth of its life before it expires: nobody is handed a token that may be refused on arrival.
    last_use: u64,
}

impl<T: Clone> Minted<T> {
    /// Mints with `key` tokens that live `lifetime_seconds` (Tenon's own: [`crate::DEFAULT_LIFETIME_SECONDS`]) and
    /// keeps what `wrap` makes of each.
    pub fn new(key: Arc<SigningKey>, lifetime_seconds: u64, wrap: fn(String) -> T) -> Self {
        Self { key: ArcSwap::new(key), lifetime_seconds, wrap, slots: ArcSwap::from_pointee(Slots::default()) }
    }

    /// The token for `audience`. The first call for an audience, and one call each time 80 % of a token's life is
    /// over, mints (some 20 µs); all others read.
    pub fn token(&self, audience: &str, now: u64) -> T {
        self.look_at(audience, now, T::clone)
    }

    /// The same for who does not want one of its own: counting references to what all workers have costs each of them.
    pub fn look_at<R>(&self, audience: &str, now: u64, look: impl FnOnce(&T) -> R) -> R {
        let slots = self.slots.load();
        let Some(slot) = slots.get(audience) else { return look(&self.first(audience, now)) };
        let token = slot.current.load();
        if (token.minted_at..token.renew_at).contains(&now) {
            return look(&token.value);
        }
        if slot.renewing.swap(true, Ordering::Acquire) {
            let usable = (token.minted_at..token.last_use).contains(&now);
            return if usable { look(&token.value) } else { look(&self.mint(&self.key.load(), audience, now).value) };
        }
        let value = self.renew(slot, audience, now);
        slot.renewing.store(false, Ordering::Release);
        look(&value)
    }

    /// Mints what is due, for a task that runs each second or so, so that no call ever has to.
    pub fn renew_due(&self, now: u64) {
        for audience in self.slots.load().keys() {
            self.token(audience, now);
        }
    }

    /// From the return of this on every token is one of `key`.
    pub fn set_key(&self, key: Arc<SigningKey>, now: u64) {
        self.key.store(key);
        for (audience, slot) in self.slots.load().iter() {
            self.renew(slot, audience, now);
        }
    }

    /// The key that mints now.
    pub fn key(&self) -> Arc<SigningKey> {
        self.key.load_full()
    }

    fn first(&self, audience: &str, now: u64) -> T {
        let key = self.key.load_full();
        let token = self.mint(&key, audience, now);
        let value = token.value.clone();
        let slot = Arc::new(Slot { current: ArcSwap::from_pointee(token), renewing: AtomicBool::new(false) });
        self.slots.rcu(|slots| {
            let mut slots = Slots::clone(slots);
            slots.entry(audience.into()).or_insert_with(|| Arc::clone(&slot));
            slots
        });
        // A key that came meanwhile may not have seen this slot.
        if Arc::ptr_eq(&key, &self.key.load()) {
            value
        } else {
            self.renew(&self.slots.load()[audience], audience, now)
        }
    }

    /// Repeats when the key was replaced meanwhile, so that a slow caller never puts an old key's token back.
    fn renew(&self, slot: &Slot<T>, audience: &str, now: u64) -> T {
        loop {
            let key = self.key.load_full();
            let token = self.mint(&key, audience, now);
            let value = token.value.clone();
            slot.current.store(Arc::new(token));
            if Arc::ptr_eq(&key, &self.key.load()) {
                return value;
            }
        }
    }

    fn mint(&self, key: &SigningKey, audience: &str, now: u64) -> Token<T> {
        let life = self.lifetime_seconds;
        Token {
            value: (self.wrap)(key.mint(audience, now, life)),
            minted_at: now,
            renew_at: now.saturating_add(life * 4 / 5),
            last_use: now.saturating_add(life * 9 / 10),
        }
    }
}

impl<T> fmt::Debug for Minted<T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Minted").field("key", &self.key.load()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
