//! Makes the index of a policy. What it needs for that is gone afterwards.

use std::sync::Arc;

use ahash::{AHashMap, RandomState};
use bytes::Bytes;
use hashbrown::HashTable;

use super::{Beside, Callers, Group, Index, LOOKED_AT, NONE, Path, Pattern, Range, Whole, count};
use crate::policy::{prefix, record::Text};

/// Takes rules in deciding order.
#[derive(Debug, Default)]
pub(in crate::policy) struct Builder<'t> {
    numbers: AHashMap<&'t str, u32>,
    names: Vec<&'t str>,
    outside: u32,
    patterns: Vec<Pattern>,
    /// Of all rules, one behind the other.
    callers: Vec<u32>,
    /// `/package.Service/Method`, and `/package.Service/` for `/package.Service/*`.
    paths: Named<'t>,
    /// `/package.Service/`.
    prefixes: Named<'t>,
}

/// Texts that rules name, each with its rules; numbered as they come.
#[derive(Debug, Default)]
struct Named<'t> {
    numbers: AHashMap<&'t str, u32>,
    rules: Vec<(Text<'t>, Vec<u32>)>,
}

impl<'t> Named<'t> {
    /// Notes that `rule` names `text`, once, for up to `most` rules.
    fn note(&mut self, text: Text<'t>, rule: u32, most: usize) -> Result<(), String> {
        let number = match self.numbers.get(text.text) {
            Some(number) => *number,
            None => {
                let number = count(self.rules.len())?;
                self.numbers.insert(text.text, number);
                self.rules.push((text, Vec::new()));
                number
            }
        };
        let rules = &mut self.rules[number as usize].1;
        if rules.last() != Some(&rule) && rules.len() < most {
            rules.push(rule);
        }
        Ok(())
    }
}

impl<'t> Builder<'t> {
    /// `outside`: the names of all clients outside of the mesh.
    pub(in crate::policy) fn new(outside: impl IntoIterator<Item = &'t str>) -> Result<Self, String> {
        let mut builder = Builder::default();
        for name in outside {
            builder.number(name)?;
        }
        builder.outside = count(builder.names.len())?;
        Ok(builder)
    }

    /// Takes the next rule.
    pub(in crate::policy) fn push(
        &mut self,
        callers: impl IntoIterator<Item = &'t str>,
        paths: impl IntoIterator<Item = Text<'t>>,
    ) -> Result<(), String> {
        let rule = count(self.patterns.len())?;
        for path in paths {
            self.path(path, rule)?;
        }
        let (mut any, mut numbers) = (false, Vec::new());
        for caller in callers {
            match caller {
                "*" => any = true,
                name => numbers.push(self.number(name)?),
            }
        }
        numbers.sort_unstable();
        numbers.dedup();
        let start = self.callers.len();
        self.callers.append(&mut numbers);
        self.patterns.push(Pattern { any, callers: Range::since(start, &self.callers)? });
        Ok(())
    }

    fn path(&mut self, path: Text<'t>, rule: u32) -> Result<(), String> {
        let Text { text, start } = path;
        let Some(prefix) = prefix(text) else {
            return Err(format!("path {text:?} is neither /package.Service/Method nor /package.Service/*"));
        };
        let method = &text[prefix.len()..];
        if method != "*" && method.contains('*') {
            return Err(format!("path {text:?} has \"*\" for a part of a name"));
        }
        let prefix = Text { text: prefix, start };
        self.paths.note(if method == "*" { prefix } else { path }, rule, usize::MAX)?;
        self.prefixes.note(prefix, rule, LOOKED_AT)
    }

    fn number(&mut self, name: &'t str) -> Result<u32, String> {
        if let Some(number) = self.numbers.get(name) {
            return Ok(*number);
        }
        let number = count(self.names.len())?;
        self.names.push(name);
        self.numbers.insert(name, number);
        Ok(number)
    }

    /// The index of all rules that were pushed, whose texts stand in `record`.
    pub(in crate::policy) fn finish(self, record: Bytes) -> Result<Index, String> {
        let names: Box<[Arc<str>]> = self.names.iter().map(|name| Arc::from(*name)).collect();
        let mut groups = Groups::new(&self.patterns, &self.callers, names.len());
        let hashes = RandomState::new();
        let is_wildcard = |text: &Text<'_>| text.text.ends_with('/');
        let all = &self.paths.rules;
        let wildcards = all.iter().filter(|(text, _)| is_wildcard(text)).count();
        let mut paths = Vec::with_capacity(all.len());
        let (mut exact, mut wildcard) =
            (Numbers::new(&hashes, all.len() - wildcards), Numbers::new(&hashes, wildcards));
        for (text, rules) in self.paths.rules {
            let numbers = if is_wildcard(&text) { &mut wildcard } else { &mut exact };
            numbers.insert(text, count(paths.len())?);
            paths.push(Path { text: place(text)?, group: groups.group(rules)? });
        }
        let (pairs, bits) = (groups.pairs.into(), groups.bits.into());
        let (first, first_of_any) = first(&self.patterns, &self.callers, names.len());
        let mut by_prefix = Numbers::new(&hashes, self.prefixes.rules.len());
        let (mut services, mut beside) = (Vec::with_capacity(self.prefixes.rules.len()), Vec::new());
        for (text, rules) in self.prefixes.rules {
            by_prefix.insert(text, count(services.len())?);
            let start = beside.len();
            beside.extend(rules);
            services.push(Beside { text: place(text)?, rules: Range::since(start, &beside)? });
        }
        let (exact, wildcard, by_prefix) = (exact.table, wildcard.table, by_prefix.table);
        Ok(Index {
            numbers: (0..).zip(&names).map(|(number, name)| (Arc::clone(name), number)).collect(),
            names,
            outside: self.outside,
            record,
            hashes,
            exact,
            wildcard,
            paths: paths.into(),
            pairs,
            bits,
            whole: Whole {
                patterns: self.patterns.into(),
                callers: self.callers.into(),
                by_prefix,
                services: services.into(),
                beside: beside.into(),
            },
            first: first.into(),
            first_of_any,
        })
    }
}

/// Each caller's first rule, and the first for any service.
fn first(patterns: &[Pattern], callers: &[u32], names: usize) -> (Vec<u32>, u32) {
    let (mut first, mut first_of_any) = (vec![NONE; names], NONE);
    for (rule, pattern) in (0..).zip(patterns) {
        for number in pattern.callers.of(callers) {
            let first = &mut first[*number as usize];
            *first = rule.min(*first);
        }
        first_of_any = if pattern.any { rule.min(first_of_any) } else { first_of_any };
    }
    (first, first_of_any)
}

/// In the record.
fn place(text: Text<'_>) -> Result<Range, String> {
    Ok(Range { start: text.start, length: count(text.text.len())? })
}

/// Numbers by texts of which none comes twice.
struct Numbers<'b> {
    hashes: &'b RandomState,
    table: HashTable<u32>,
}

impl<'b> Numbers<'b> {
    /// For so many: it never grows.
    fn new(hashes: &'b RandomState, capacity: usize) -> Self {
        Self { hashes, table: HashTable::with_capacity(capacity) }
    }

    fn insert(&mut self, text: Text<'_>, number: u32) {
        let hash = self.hashes.hash_one(text.text.as_bytes());
        self.table.insert_unique(hash, number, |_| unreachable!("there is room"));
    }
}

/// The groups that were made so far.
struct Groups<'b> {
    patterns: &'b [Pattern],
    /// What the patterns have ranges of.
    named: &'b [u32],
    callers: usize,
    made: AHashMap<Vec<u32>, Group>,
    pairs: Vec<(u32, u32)>,
    bits: Vec<u64>,
    /// For each caller the number of the group, counted from 1, that has seen it last.
    seen: Vec<u32>,
}

impl<'b> Groups<'b> {
    fn new(patterns: &'b [Pattern], named: &'b [u32], callers: usize) -> Self {
        let seen = vec![0; callers];
        Groups { patterns, named, callers, made: AHashMap::new(), pairs: Vec::new(), bits: Vec::new(), seen }
    }

    /// The group of exactly these rules, at least one, which come in order.
    fn group(&mut self, rules: Vec<u32>) -> Result<Group, String> {
        if let Some(group) = self.made.get(&rules) {
            return Ok(*group);
        }
        let any = rules.iter().find(|rule| self.patterns.get(**rule as usize).is_some_and(|pattern| pattern.any));
        let words = self.callers.div_ceil(64);
        let callers = match rules[..] {
            [rule] if let [number] = self.callers_of(rule)[..] => Callers::One(number),
            // As pairs they would take as much.
            [rule] if self.callers_of(rule).len() >= words && words > 0 => self.bits_of(rule, words)?,
            _ => self.pairs_of(&rules)?,
        };
        let group = Group { first: rules.first().copied().unwrap_or(NONE), any: any.copied().unwrap_or(NONE), callers };
        self.made.insert(rules, group);
        Ok(group)
    }

    fn callers_of(&self, rule: u32) -> &'b [u32] {
        self.patterns.get(rule as usize).map(|pattern| pattern.callers.of(self.named)).unwrap_or_default()
    }

    fn bits_of(&mut self, rule: u32, words: usize) -> Result<Callers, String> {
        let start = self.bits.len();
        self.bits.resize(start + words, 0);
        for number in self.callers_of(rule) {
            self.bits[start + (number / 64) as usize] |= 1 << (number % 64);
        }
        Ok(Callers::Bits { start: count(start)? })
    }

    fn pairs_of(&mut self, rules: &[u32]) -> Result<Callers, String> {
        let (start, this) = (self.pairs.len(), count(self.made.len() + 1)?);
        for rule in rules {
            for number in self.callers_of(*rule) {
                let seen = &mut self.seen[*number as usize];
                if *seen != this {
                    *seen = this;
                    self.pairs.push((*number, *rule));
                }
            }
        }
        self.pairs[start..].sort_unstable();
        Ok(Callers::Pairs(Range::since(start, &self.pairs)?))
    }
}
