//! Finds the first rule that matches: each path knows its callers' first rules. Callers are numbers here, and paths that the
//! same rules name share what is known of their callers, so that a rule of many callers and many paths stays small.

use std::{
    borrow::Borrow,
    hash::{Hash, Hasher},
    sync::Arc,
};

use ahash::{AHashMap, AHashSet};
use triomphe::ThinArc;

use super::prefix;
use crate::Peer;

/// Stands for no rule; every rule comes before it.
const NONE: u32 = u32::MAX;

/// Rules of one gRPC service that refusals look at, so that they stay cheap.
const LOOKED_AT: usize = 1_000;

/// Of the rules of one service, in deciding order. Rules and callers are numbers that count up from 0.
#[derive(Debug, Default)]
pub(super) struct Index {
    numbers: AHashMap<Arc<str>, u32>,
    /// Of the callers with these numbers.
    names: Box<[Arc<str>]>,
    /// Callers with lower numbers are clients outside of the mesh, the others services.
    outside: u32,
    /// By `/package.Service/Method`.
    exact: AHashSet<Path>,
    /// By `/package.Service/`, of rules on `/package.Service/*`.
    wildcard: AHashSet<Path>,
    /// A caller and its first rule; each group has a range of them, in the order of callers.
    pairs: Box<[(u32, u32)]>,
    /// A bit for each caller; each group of one rule with many callers has a range of them.
    bits: Box<[u64]>,
    /// By `/package.Service/`: the first rules that name anything of it, in order. Only refusals look at it.
    by_prefix: AHashMap<Arc<str>, Box<[u32]>>,
    /// Each caller's first rule, [`NONE`] of callers without; only refusals look at it.
    first: Box<[u32]>,
    /// The first rule for any service.
    first_of_any: u32,
}

/// A path, or the part of it before `*`, and in the same place who may call it: a decision that finds one finds both.
#[derive(Debug)]
struct Path(ThinArc<Group, u8>);

impl Path {
    fn group(&self) -> &Group {
        &self.0.header.header
    }
}

impl Borrow<[u8]> for Path {
    fn borrow(&self) -> &[u8] {
        &self.0.slice
    }
}

impl Hash for Path {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.slice.hash(state);
    }
}

impl PartialEq for Path {
    fn eq(&self, other: &Self) -> bool {
        self.0.slice == other.0.slice
    }
}

impl Eq for Path {}

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
    /// A range of [`Index::pairs`].
    Pairs { start: u32, length: u32 },
    /// Where their bits begin in [`Index::bits`]: the group has one rule, and it is the first of each.
    Bits { start: u32 },
}

/// What a rule matches.
#[derive(Clone, Debug)]
pub(super) struct Pattern {
    pub(super) callers: Named,
    /// Exact paths, and `/package.Service/*`, in the rule's order.
    pub(super) paths: Box<[Arc<str>]>,
}

/// Whom a rule names, as numbers.
#[derive(Clone, Debug, Default)]
pub(super) struct Named {
    /// `*`: all services.
    any: bool,
    /// In order, each once.
    numbers: Box<[u32]>,
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

    /// Whether this caller is among those that are named: looked up once, for any number of rules.
    pub(super) fn is_among(&self, caller: Peer<'_>) -> impl Fn(&Named) -> bool + use<> {
        let (number, is_service) = (self.number(caller), matches!(caller, Peer::Service(_)));
        move |named| {
            let by_name = number.is_some_and(|number| named.numbers.binary_search(&number).is_ok());
            by_name || (named.any && is_service)
        }
    }

    /// The names of `named`, `*` first.
    pub(super) fn names_of<'s>(&'s self, named: &'s Named) -> impl Iterator<Item = &'s str> {
        let names = named.numbers.iter().filter_map(|number| Some(&**self.names.get(*number as usize)?));
        named.any.then_some("*").into_iter().chain(names)
    }

    /// The first rule that names the path, whoever may call it.
    pub(super) fn first_on(&self, path: &str) -> Option<u32> {
        let first = |group: Option<&Group>| group.map_or(NONE, |group| group.first);
        some(first(self.exact(path)).min(first(self.wildcard(path))))
    }

    /// The first rules that name anything of the path's gRPC service.
    pub(super) fn beside(&self, path: &str) -> &[u32] {
        prefix(path).and_then(|prefix| self.by_prefix.get(prefix)).map(AsRef::as_ref).unwrap_or_default()
    }

    /// The caller's first rule, whatever its paths.
    pub(super) fn first_of(&self, caller: Peer<'_>) -> Option<u32> {
        let named = self.number(caller).and_then(|number| self.first.get(number as usize)).copied();
        some(named.unwrap_or(NONE).min(if matches!(caller, Peer::Service(_)) { self.first_of_any } else { NONE }))
    }

    fn exact(&self, path: &str) -> Option<&Group> {
        self.exact.get(path.as_bytes()).map(Path::group)
    }

    fn wildcard(&self, path: &str) -> Option<&Group> {
        prefix(path).and_then(|prefix| self.wildcard.get(prefix.as_bytes())).map(Path::group)
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
            Callers::Pairs { start, length } => {
                let pairs = self.pairs.get(start as usize..).and_then(|pairs| pairs.get(..length as usize));
                let pairs = pairs.unwrap_or_default();
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

/// Takes rules in deciding order.
#[derive(Debug, Default)]
pub(super) struct Builder {
    numbers: AHashMap<Arc<str>, u32>,
    names: Vec<Arc<str>>,
    outside: u32,
    rules: Vec<Named>,
    exact: AHashMap<Arc<str>, Vec<u32>>,
    wildcard: AHashMap<Arc<str>, Vec<u32>>,
    by_prefix: AHashMap<Arc<str>, Vec<u32>>,
}

impl Builder {
    /// `outside`: the names of all clients outside of the mesh.
    pub(super) fn new<'n>(outside: impl IntoIterator<Item = &'n str>) -> Result<Self, String> {
        let mut builder = Builder::default();
        for name in outside {
            builder.number(name)?;
        }
        builder.outside = count(builder.names.len())?;
        Ok(builder)
    }

    /// Takes the next rule.
    pub(super) fn push<'t>(
        &mut self,
        callers: impl IntoIterator<Item = &'t str>,
        paths: impl IntoIterator<Item = &'t str>,
    ) -> Result<Pattern, String> {
        let rule = count(self.rules.len())?;
        let paths = paths.into_iter().map(|path| self.path(path, rule)).collect::<Result<_, String>>()?;
        let (mut any, mut numbers) = (false, Vec::new());
        for caller in callers {
            match caller {
                "*" => any = true,
                name => numbers.push(self.number(name)?),
            }
        }
        numbers.sort_unstable();
        numbers.dedup();
        let callers = Named { any, numbers: numbers.into() };
        self.rules.push(callers.clone());
        Ok(Pattern { callers, paths })
    }

    fn path(&mut self, path: &str, rule: u32) -> Result<Arc<str>, String> {
        let Some(prefix) = prefix(path) else {
            return Err(format!("path {path:?} is neither /package.Service/Method nor /package.Service/*"));
        };
        let prefix = named(&mut self.by_prefix, prefix, rule, LOOKED_AT);
        match &path[prefix.len()..] {
            "*" => {
                named(&mut self.wildcard, &prefix, rule, usize::MAX);
                Ok(path.into())
            }
            method if method.contains('*') => Err(format!("path {path:?} has \"*\" for a part of a name")),
            _ => Ok(named(&mut self.exact, path, rule, usize::MAX)),
        }
    }

    fn number(&mut self, name: &str) -> Result<u32, String> {
        if let Some(number) = self.numbers.get(name) {
            return Ok(*number);
        }
        let (number, name) = (count(self.names.len())?, Arc::<str>::from(name));
        self.names.push(Arc::clone(&name));
        self.numbers.insert(name, number);
        Ok(number)
    }

    /// The index of all rules that were pushed.
    pub(super) fn finish(mut self) -> Result<Index, String> {
        let mut groups = Groups { rules: &self.rules, callers: self.names.len(), ..Groups::new(self.names.len()) };
        let mut grouped = |paths: AHashMap<Arc<str>, Vec<u32>>| {
            let path = |(path, rules): (Arc<str>, _)| {
                Ok(Path(ThinArc::from_header_and_slice(groups.group(rules)?, path.as_bytes())))
            };
            paths.into_iter().map(path).collect::<Result<AHashSet<_>, String>>()
        };
        let (exact, wildcard) = (grouped(std::mem::take(&mut self.exact))?, grouped(self.wildcard)?);
        let (pairs, bits) = (groups.pairs.into(), groups.bits.into());
        let mut first = vec![NONE; self.names.len()];
        let mut first_of_any = NONE;
        for (rule, named) in (0..).zip(&self.rules) {
            for number in &named.numbers {
                let first = &mut first[*number as usize];
                *first = rule.min(*first);
            }
            first_of_any = if named.any { rule.min(first_of_any) } else { first_of_any };
        }
        self.numbers.shrink_to_fit();
        Ok(Index {
            numbers: self.numbers,
            names: self.names.into(),
            outside: self.outside,
            exact,
            wildcard,
            pairs,
            bits,
            by_prefix: self.by_prefix.into_iter().map(|(prefix, rules)| (prefix, rules.into())).collect(),
            first: first.into(),
            first_of_any,
        })
    }
}

/// Notes that `rule` names `text`, once, for up to `most` rules.
fn named(names: &mut AHashMap<Arc<str>, Vec<u32>>, text: &str, rule: u32, most: usize) -> Arc<str> {
    let (text, rules) = match names.get_key_value(text) {
        Some((known, _)) => {
            let known = Arc::clone(known);
            let rules = names.entry(Arc::clone(&known)).or_default();
            (known, rules)
        }
        None => {
            let text = Arc::<str>::from(text);
            let rules = names.entry(Arc::clone(&text)).or_default();
            (text, rules)
        }
    };
    if rules.last() != Some(&rule) && rules.len() < most {
        rules.push(rule);
    }
    text
}

/// The groups that were made so far.
struct Groups<'b> {
    rules: &'b [Named],
    callers: usize,
    made: AHashMap<Vec<u32>, Group>,
    pairs: Vec<(u32, u32)>,
    bits: Vec<u64>,
    /// For each caller the number of the group, counted from 1, that has seen it last.
    seen: Vec<u32>,
}

impl Groups<'_> {
    fn new(callers: usize) -> Self {
        let seen = vec![0; callers];
        Groups { rules: &[], callers, made: AHashMap::new(), pairs: Vec::new(), bits: Vec::new(), seen }
    }

    /// The group of exactly these rules, at least one, which come in order.
    fn group(&mut self, rules: Vec<u32>) -> Result<Group, String> {
        if let Some(group) = self.made.get(&rules) {
            return Ok(*group);
        }
        let named = |rule: &u32| self.rules.get(*rule as usize);
        let any = rules.iter().find(|rule| named(rule).is_some_and(|named| named.any));
        let words = self.callers.div_ceil(64);
        let callers = match rules[..] {
            // As pairs they would take as much.
            [rule] if named(&rule).is_some_and(|named| named.numbers.len() >= words && words > 0) => {
                self.bits_of(rule, words)?
            }
            _ => self.pairs_of(&rules)?,
        };
        let group = Group { first: rules.first().copied().unwrap_or(NONE), any: any.copied().unwrap_or(NONE), callers };
        self.made.insert(rules, group);
        Ok(group)
    }

    fn bits_of(&mut self, rule: u32, words: usize) -> Result<Callers, String> {
        let start = self.bits.len();
        self.bits.resize(start + words, 0);
        for number in self.rules.get(rule as usize).iter().flat_map(|named| &named.numbers) {
            self.bits[start + (number / 64) as usize] |= 1 << (number % 64);
        }
        Ok(Callers::Bits { start: count(start)? })
    }

    fn pairs_of(&mut self, rules: &[u32]) -> Result<Callers, String> {
        let (start, this) = (self.pairs.len(), count(self.made.len() + 1)?);
        for rule in rules {
            for number in self.rules.get(*rule as usize).iter().flat_map(|named| &named.numbers) {
                let seen = &mut self.seen[*number as usize];
                if *seen != this {
                    *seen = this;
                    self.pairs.push((*number, *rule));
                }
            }
        }
        self.pairs[start..].sort_unstable();
        Ok(Callers::Pairs { start: count(start)?, length: count(self.pairs.len() - start)? })
    }
}

/// As a number that is not [`NONE`].
fn count(number: usize) -> Result<u32, String> {
    u32::try_from(number).ok().filter(|number| *number != NONE).ok_or_else(|| "the policy is too large".to_owned())
}
