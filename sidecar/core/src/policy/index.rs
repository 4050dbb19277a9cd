//! Finds the first rule that matches: each path knows its callers' first rules. Callers are numbers here, and paths that the
//! same rules name share what is known of their callers, so that a rule of many callers and many paths stays small. Each text
//! stands here once, however many rules name it.

use std::sync::Arc;

use ahash::{AHashMap, RandomState};
use bytes::Bytes;
use hashbrown::HashTable;

use super::prefix;
use crate::Peer;

mod builder;

pub(super) use builder::Builder;

/// Stands for no rule; every rule comes before it.
const NONE: u32 = u32::MAX;

/// Rules of one gRPC service that refusals look at, so that they stay cheap.
const LOOKED_AT: usize = 1_000;

/// Of the rules of one service, in deciding order. Rules, callers and paths are numbers that count up from 0.
#[derive(Debug, Default)]
pub(super) struct Index {
    numbers: AHashMap<Arc<str>, u32>,
    /// Of the callers with these numbers.
    names: Box<[Arc<str>]>,
    /// Callers with lower numbers are clients outside of the mesh, the others services.
    outside: u32,
    /// The record, in which the texts of paths stand.
    record: Bytes,
    /// Of texts of paths.
    hashes: RandomState,
    /// Numbers of paths, by `/package.Service/Method`.
    exact: HashTable<u32>,
    /// By `/package.Service/`, of rules on `/package.Service/*`.
    wildcard: HashTable<u32>,
    /// By their numbers.
    paths: Box<[Path]>,
    /// A caller and its first rule; each group has a range of them, in the order of callers.
    pairs: Box<[(u32, u32)]>,
    /// A bit for each caller; each group of one rule with many callers has a range of them.
    bits: Box<[u64]>,
    /// What refusals look at.
    whole: Whole,
    /// Each caller's first rule, [`NONE`] of callers without; only refusals look at it.
    first: Box<[u32]>,
    /// The first rule for any service.
    first_of_any: u32,
}

/// The rules as they were written, to say which one a call came close to.
#[derive(Debug, Default)]
struct Whole {
    /// By rule.
    patterns: Box<[Pattern]>,
    /// Callers that rules name; each rule has a range of them, in order, each once.
    callers: Box<[u32]>,
    /// Of `services`, by `/package.Service/`.
    by_prefix: HashTable<u32>,
    /// gRPC services that rules name anything of.
    services: Box<[Beside]>,
    /// The first rules that name anything of a gRPC service, in order; each has a range of them.
    beside: Box<[u32]>,
}

/// A path, or the part of it before `*`, and in the same place who may call it: a decision that finds one finds both.
#[derive(Clone, Copy, Debug)]
struct Path {
    text: Range,
    group: Group,
}

/// A gRPC service that rules name.
#[derive(Clone, Copy, Debug)]
struct Beside {
    /// Of its name, with both slashes.
    text: Range,
    /// Of [`Whole::beside`].
    rules: Range,
}

/// Who may call the paths that exactly these rules name.
#[derive(Clone, Copy, Debug)]
struct Group {
    /// The first of its rules.
    first: u32,
    /// Its first rule for any service, or [`NONE`].
    any: u32,
    callers: Callers,
}

/// The callers that the rules of a group name.
#[derive(Clone, Copy, Debug)]
enum Callers {
    /// This one: the group has one rule, which names no other.
    One(u32),
    /// A range of [`Index::pairs`].
    Pairs(Range),
    /// Where their bits begin in [`Index::bits`]: the group has one rule, and it is the first of each.
    Bits { start: u32 },
}

/// A part of a list.
#[derive(Clone, Copy, Debug, Default)]
struct Range {
    start: u32,
    length: u32,
}

impl Range {
    /// From `start` to where `list` ends now.
    fn since<T>(start: usize, list: &[T]) -> Result<Self, String> {
        Ok(Self { start: count(start)?, length: count(list.len() - start)? })
    }

    fn of<T>(self, list: &[T]) -> &[T] {
        list.get(self.start as usize..).and_then(|list| list.get(..self.length as usize)).unwrap_or_default()
    }
}

/// Whom a rule names.
#[derive(Clone, Copy, Debug)]
struct Pattern {
    /// `*`: all services.
    any: bool,
    callers: Range,
}

impl Index {
    /// Whether a client outside of the mesh has this name.
    pub(super) fn knows_outside(&self, name: &str) -> bool {
        self.numbers.get(name).is_some_and(|number| *number < self.outside)
    }

    /// The first rule for `caller` on `path`.
    pub(super) fn first(&self, caller: Peer<'_>, path: &str) -> Option<u32> {
        let (number, is_service) = (self.number(caller), matches!(caller, Peer::Service(_)));
        let of = |group: Option<&Group>| match group {
            Some(group) => self.first_in(group, number).min(if is_service { group.any } else { NONE }),
            None => NONE,
        };
        some(of(self.exact(path)).min(of(self.wildcard(path))))
    }

    /// Whether this caller is among those that a rule names: looked up once, for any number of rules.
    pub(super) fn is_among(&self, caller: Peer<'_>) -> impl Fn(u32) -> bool + use<'_> {
        let (number, is_service) = (self.number(caller), matches!(caller, Peer::Service(_)));
        move |rule| {
            let Some(pattern) = self.pattern(rule) else { return false };
            let named = pattern.callers.of(&self.whole.callers);
            let by_name = number.is_some_and(|number| named.binary_search(&number).is_ok());
            by_name || (pattern.any && is_service)
        }
    }

    /// Whom a rule names, `*` first.
    pub(super) fn callers_of(&self, rule: u32) -> impl Iterator<Item = &str> {
        let pattern = self.pattern(rule);
        let numbers = pattern.map(|pattern| pattern.callers.of(&self.whole.callers)).unwrap_or_default();
        let names = numbers.iter().filter_map(|number| Some(&**self.names.get(*number as usize)?));
        pattern.filter(|pattern| pattern.any).map(|_| "*").into_iter().chain(names)
    }

    fn pattern(&self, rule: u32) -> Option<&Pattern> {
        self.whole.patterns.get(rule as usize)
    }

    /// The first rule that names the path, whoever may call it.
    pub(super) fn first_on(&self, path: &str) -> Option<u32> {
        let first = |group: Option<&Group>| group.map_or(NONE, |group| group.first);
        some(first(self.exact(path)).min(first(self.wildcard(path))))
    }

    /// The first rules that name anything of the path's gRPC service.
    pub(super) fn beside(&self, path: &str) -> &[u32] {
        let Some(prefix) = prefix(path).map(str::as_bytes) else { return &[] };
        let Whole { by_prefix, services, beside, .. } = &self.whole;
        let is = |number: &u32| services.get(*number as usize).is_some_and(|it| it.text.of(&self.record) == prefix);
        let service =
            by_prefix.find(self.hashes.hash_one(prefix), is).and_then(|number| services.get(*number as usize));
        service.map(|service| service.rules.of(beside)).unwrap_or_default()
    }

    /// The caller's first rule, whatever its paths.
    pub(super) fn first_of(&self, caller: Peer<'_>) -> Option<u32> {
        let named = self.number(caller).and_then(|number| self.first.get(number as usize)).copied();
        some(named.unwrap_or(NONE).min(if matches!(caller, Peer::Service(_)) { self.first_of_any } else { NONE }))
    }

    fn exact(&self, path: &str) -> Option<&Group> {
        self.find(&self.exact, path)
    }

    fn wildcard(&self, path: &str) -> Option<&Group> {
        self.find(&self.wildcard, prefix(path)?)
    }

    fn find(&self, among: &HashTable<u32>, text: &str) -> Option<&Group> {
        if among.is_empty() {
            return None;
        }
        let path = |number: &u32| self.paths.get(*number as usize);
        let is = |number: &u32| path(number).is_some_and(|path| path.text.of(&self.record) == text.as_bytes());
        among.find(self.hashes.hash_one(text.as_bytes()), is).and_then(path).map(|path| &path.group)
    }

    /// Services and outside clients are apart, so that nobody passes as one of the others.
    fn number(&self, caller: Peer<'_>) -> Option<u32> {
        let number = *self.numbers.get(caller.name())?;
        let is_outside = number < self.outside;
        (is_outside == matches!(caller, Peer::Outside(_))).then_some(number)
    }

    fn first_in(&self, group: &Group, caller: Option<u32>) -> u32 {
        let Some(caller) = caller else { return NONE };
        match group.callers {
            Callers::One(number) => {
                if number == caller {
                    group.first
                } else {
                    NONE
                }
            }
            Callers::Pairs(range) => {
                let pairs = range.of(&self.pairs);
                pairs.binary_search_by_key(&caller, |pair| pair.0).map_or(NONE, |at| pairs[at].1)
            }
            Callers::Bits { start } => {
                let word = self.bits.get(start as usize + (caller / 64) as usize).copied().unwrap_or_default();
                if word >> (caller % 64) & 1 == 1 { group.first } else { NONE }
            }
        }
    }
}

fn some(rule: u32) -> Option<u32> {
    (rule != NONE).then_some(rule)
}

/// As a number that is not [`NONE`].
fn count(number: usize) -> Result<u32, String> {
    u32::try_from(number).ok().filter(|number| *number != NONE).ok_or_else(|| "the policy is too large".to_owned())
}
