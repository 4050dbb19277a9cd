//! Makes the index of a policy. What it needs for that is gone afterwards.

use std::sync::Arc;

use ahash::{AHashMap, AHashSet};
use triomphe::ThinArc;

use super::{Beside, Callers, Group, Index, LOOKED_AT, NONE, Path, Pattern, Range, Whole, count};
use crate::policy::prefix;

/// Takes rules in deciding order.
#[derive(Debug, Default)]
pub(in crate::policy) struct Builder<'t> {
    numbers: AHashMap<&'t str, u32>,
    names: Vec<&'t str>,
    outside: u32,
    patterns: Vec<Pattern>,
    /// Of all rules, one behind the other.
    callers: Vec<u32>,
    /// The same: numbers of `paths`.
    named: Vec<u32>,
    /// `/package.Service/Method`, and `/package.Service/` for `/package.Service/*`.
    paths: Named<'t>,
    /// `/package.Service/`.
    prefixes: Named<'t>,
    /// By the numbers of `prefixes`: the first path that begins so.
    first_paths: Vec<u32>,
}

/// Texts that rules name, each with its rules; numbered as they come.
#[derive(Debug, Default)]
struct Named<'t> {
    numbers: AHashMap<&'t str, u32>,
    rules: Vec<(&'t str, Vec<u32>)>,
}

impl<'t> Named<'t> {
    /// Notes that `rule` names `text`, once, for up to `most` rules; which number the text has.
    fn note(&mut self, text: &'t str, rule: u32, most: usize) -> Result<u32, String> {
        let number = match self.numbers.get(text) {
            Some(number) => *number,
            None => {
                let number = count(self.rules.len())?;
                self.numbers.insert(text, number);
                self.rules.push((text, Vec::new()));
                number
            }
        };
        let rules = &mut self.rules[number as usize].1;
        if rules.last() != Some(&rule) && rules.len() < most {
            rules.push(rule);
        }
        Ok(number)
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
        paths: impl IntoIterator<Item = &'t str>,
    ) -> Result<(), String> {
        let rule = count(self.patterns.len())?;
        let start = self.named.len();
        for path in paths {
            let number = self.path(path, rule)?;
            self.named.push(number);
        }
        let paths = Range::since(start, &self.named)?;
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
        self.patterns.push(Pattern { any, callers: Range::since(start, &self.callers)?, paths });
        Ok(())
    }

    fn path(&mut self, path: &'t str, rule: u32) -> Result<u32, String> {
        let Some(prefix) = prefix(path) else {
            return Err(format!("path {path:?} is neither /package.Service/Method nor /package.Service/*"));
        };
        let method = &path[prefix.len()..];
        if method != "*" && method.contains('*') {
            return Err(format!("path {path:?} has \"*\" for a part of a name"));
        }
        let number = self.paths.note(if method == "*" { prefix } else { path }, rule, usize::MAX)?;
        if self.prefixes.note(prefix, rule, LOOKED_AT)? as usize == self.first_paths.len() {
            self.first_paths.push(number);
        }
        Ok(number)
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

    /// The index of all rules that were pushed.
    pub(in crate::policy) fn finish(self) -> Result<Index, String> {
        let names: Box<[Arc<str>]> = self.names.iter().map(|name| Arc::from(*name)).collect();
        let mut groups = Groups::new(&self.patterns, &self.callers, names.len());
        let mut paths = Vec::with_capacity(self.paths.rules.len());
        for (text, rules) in self.paths.rules {
            paths.push(Path(ThinArc::from_header_and_slice(groups.group(rules)?, text.as_bytes())));
        }
        let (pairs, bits) = (groups.pairs.into(), groups.bits.into());
        let mut first = vec![NONE; names.len()];
        let mut first_of_any = NONE;
        for (rule, pattern) in (0..).zip(&self.patterns) {
            for number in pattern.callers.of(&self.callers) {
                let first = &mut first[*number as usize];
                *first = rule.min(*first);
            }
            first_of_any = if pattern.any { rule.min(first_of_any) } else { first_of_any };
        }
        let (wildcard, exact) = paths.iter().cloned().partition(Path::is_wildcard);
        let mut beside = Vec::new();
        let mut by_prefix = AHashSet::with_capacity(self.prefixes.rules.len());
        for ((_, rules), path) in self.prefixes.rules.into_iter().zip(self.first_paths) {
            let (start, path) = (beside.len(), paths[path as usize].clone());
            beside.extend(rules);
            by_prefix.insert(Beside { path, rules: Range::since(start, &beside)? });
        }
        Ok(Index {
            numbers: (0..).zip(&names).map(|(number, name)| (Arc::clone(name), number)).collect(),
            names,
            outside: self.outside,
            exact,
            wildcard,
            pairs,
            bits,
            whole: Whole {
                patterns: self.patterns.into(),
                callers: self.callers.into(),
                named: self.named.into(),
                paths: paths.into(),
                by_prefix,
                beside: beside.into(),
            },
            first: first.into(),
            first_of_any,
        })
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
