//! Rules that others take calls from. The first rule that matches decides (DESIGN §6), so the second one is then silent.

use std::collections::{BTreeSet, HashMap};

use mesh_config::Caller;

use super::{
    Finding, Placed, Subject,
    checks::{DUPLICATE_RULE, REDUNDANT_ENTRY, RULE_NEVER_MATCHES, RULE_PARTLY_SHADOWED},
    places::Step,
    split,
};

/// Every service, as rules name it.
const ANY: &str = "*";

pub(super) fn check(subject: &Subject<'_>, found: &mut Vec<Finding>) {
    for (service, rules) in &subject.rules {
        let mut seen = Seen::new(subject);
        for placed in rules.iter().copied() {
            redundant_callers(subject, placed, found);
            redundant_paths(subject, placed, found);
            seen.rule(service, placed, found);
        }
    }
}

/// `*` stands for every service, and for no client outside of the mesh: those may stand beside it.
fn redundant_callers(subject: &Subject<'_>, placed: Placed<'_>, found: &mut Vec<Finding>) {
    let callers = &placed.rule.callers;
    if !callers.contains(&Caller::Any) {
        return;
    }
    for (index, caller) in callers.iter().enumerate() {
        if let Caller::Named(name) = caller
            && subject.mesh.services().contains_key(name)
        {
            found.push(Finding {
                check: &REDUNDANT_ENTRY,
                place: subject.place(placed, &[Step::Key("callers"), Step::Item(index)]),
                message: format!("rule {} names {name} beside \"*\", which is every service", placed.rule.name),
                help: format!("delete {name}, or \"*\" if it is not meant"),
            });
        }
    }
}

fn redundant_paths(subject: &Subject<'_>, placed: Placed<'_>, found: &mut Vec<Finding>) {
    let paths = &placed.rule.paths;
    let wildcards: BTreeSet<&str> = paths.iter().filter_map(|path| wildcard_of(path)).collect();
    for (index, path) in paths.iter().enumerate() {
        if let Some((service, method)) = split(path)
            && method != "*"
            && wildcards.contains(service)
        {
            found.push(Finding {
                check: &REDUNDANT_ENTRY,
                place: subject.place(placed, &[Step::Key("paths"), Step::Item(index)]),
                message: format!("rule {} names {path} beside /{service}/*, which is all of it", placed.rule.name),
                help: format!("delete {path}, or /{service}/* if it is not meant"),
            });
        }
    }
}

/// The gRPC service of which a path takes all methods.
fn wildcard_of(path: &str) -> Option<&str> {
    split(path).and_then(|(service, method)| (method == "*").then_some(service))
}

/// What the rules of one service up to here take.
struct Seen<'s, 'a> {
    subject: &'s Subject<'a>,
    /// Caller → its place in the sets, and the way back.
    callers: HashMap<&'a str, usize>,
    names: Vec<&'a str>,
    /// By path as it stands in the rules; a wildcard is an entry of its own.
    taken: HashMap<&'a str, Taken<'a>>,
    /// Callers and paths in order → the first rule that has them.
    alike: HashMap<(Vec<&'a str>, Vec<&'a str>), Placed<'a>>,
}

/// Who takes the calls of one path.
#[derive(Default)]
struct Taken<'a> {
    callers: Set,
    /// Each rule with the callers that it was the first to take. Nobody is in two of them.
    by: Vec<(Placed<'a>, Set)>,
}

impl<'s, 'a> Seen<'s, 'a> {
    fn new(subject: &'s Subject<'a>) -> Self {
        // `*` is every service: its own bit is first, and theirs are looked up beside it.
        let (callers, names) = (HashMap::from([(ANY, 0)]), vec![ANY]);
        Self { subject, callers, names, taken: HashMap::new(), alike: HashMap::new() }
    }

    fn rule(&mut self, service: &str, placed: Placed<'a>, found: &mut Vec<Finding>) {
        let rule = placed.rule;
        let mut callers: Vec<&str> = rule.callers.iter().map(Caller::as_str).collect();
        let mut paths: Vec<&str> = rule.paths.iter().map(String::as_str).collect();
        callers.sort_unstable();
        paths.sort_unstable();
        let first_alike = *self.alike.entry((callers, paths)).or_insert(placed);
        let is_duplicate = !std::ptr::eq(first_alike.rule, rule);
        let (own, inside) = self.sets(placed);
        let mut shadowed = Shadowed::default();
        for path in &rule.paths {
            shadowed.all += own.count();
            let taken = self.taken_of(path, &own, &inside);
            shadowed.taken += taken.count();
            if shadowed.first.is_none()
                && let Some(bit) = taken.first()
            {
                shadowed.first = self.taker(path, bit, &inside).map(|taker| (bit, path.as_str(), taker));
            }
        }
        for path in &rule.paths {
            let taken = self.taken.entry(path).or_default();
            let fresh = own.without(&taken.callers);
            if !fresh.is_empty() {
                taken.callers.add(&fresh);
                taken.by.push((placed, fresh));
            }
        }
        match shadowed.first {
            _ if is_duplicate => found.push(self.duplicate(service, placed, first_alike)),
            Some(first) => found.push(self.shadowed(service, placed, &shadowed, first)),
            None => {}
        }
    }

    /// The callers of a rule, and those of them that `*` stands for.
    fn sets(&mut self, placed: Placed<'a>) -> (Set, Set) {
        let (mut own, mut inside) = (Set::default(), Set::default());
        for caller in &placed.rule.callers {
            let bit = *self.callers.entry(caller.as_str()).or_insert_with(|| {
                self.names.push(caller.as_str());
                self.names.len() - 1
            });
            own.insert(bit);
            if let Caller::Named(name) = caller
                && self.subject.mesh.services().contains_key(name)
            {
                inside.insert(bit);
            }
        }
        (own, inside)
    }

    /// Which of the callers earlier rules take this path from: all of it, for a wildcard.
    ///
    /// No list of names takes anything from `*`, which the control plane's own services belong to as well; and no list of
    /// methods anything from a wildcard, as methods may be added.
    fn taken_of(&self, path: &str, own: &Set, inside: &Set) -> Set {
        let mut taken = Set::default();
        for earlier in self.takers(path) {
            taken.add(&own.both(&earlier.callers));
            if earlier.callers.has(0) {
                taken.add(inside);
            }
        }
        taken
    }

    /// The entries that could take the calls of a path: itself and the wildcard of its gRPC service.
    fn takers(&self, path: &str) -> impl Iterator<Item = &Taken<'a>> {
        let wildcard = split(path).filter(|(_, method)| *method != "*");
        let wildcard = wildcard.and_then(|(service, _)| self.taken.get(format!("/{service}/*").as_str()));
        self.taken.get(path).into_iter().chain(wildcard)
    }

    /// The first rule that takes the path from this caller.
    fn taker(&self, path: &str, caller: usize, inside: &Set) -> Option<Placed<'a>> {
        let takes = |set: &Set| set.has(caller) || (set.has(0) && inside.has(caller));
        self.takers(path).find_map(|taken| taken.by.iter().find(|(_, set)| takes(set)).map(|(placed, _)| *placed))
    }

    fn duplicate(&self, service: &str, placed: Placed<'_>, first: Placed<'_>) -> Finding {
        let (rule, earlier) = (placed.rule, first.rule);
        let same = (rule.tenant, &rule.tenants, rule.proof, rule.rate)
            == (earlier.tenant, &earlier.tenants, earlier.proof, earlier.rate);
        let conditions = if same { "says the same as" } else { "has the callers and paths, and other conditions, of" };
        Finding {
            check: &DUPLICATE_RULE,
            place: self.subject.place(placed, &[]),
            message: format!(
                "rule {} of {service} {conditions} rule {} ({}), which decides",
                rule.name, earlier.name, earlier.source
            ),
            help: match same {
                true => format!("delete rule {}", rule.name),
                false => format!("keep the one of rules {} and {} whose conditions are meant", earlier.name, rule.name),
            },
        }
    }

    fn shadowed(
        &self,
        service: &str,
        placed: Placed<'_>,
        shadowed: &Shadowed<'_>,
        (bit, path, taker): (usize, &str, Placed<'_>),
    ) -> Finding {
        let (rule, earlier) = (placed.rule, taker.rule);
        let caller = self.names.get(bit).copied().unwrap_or(ANY);
        let place = self.subject.place(placed, &[]);
        if shadowed.taken == shadowed.all {
            let message = format!(
                "rule {} of {service} can never match: earlier rules take all of its calls, as {} ({}) does {caller} on {path}",
                rule.name, earlier.name, earlier.source
            );
            let help = format!("delete rule {}, or move it up before them if its conditions are meant", rule.name);
            return Finding { check: &RULE_NEVER_MATCHES, place, message, help };
        }
        Finding {
            check: &RULE_PARTLY_SHADOWED,
            place,
            message: format!(
                "rule {} of {service} does not decide {} of its {} pairs of caller and path: rule {} ({}) takes {caller} on {path}",
                rule.name, shadowed.taken, shadowed.all, earlier.name, earlier.source
            ),
            help: format!("delete {caller} or {path} here or there, so that one rule alone decides it"),
        }
    }
}

/// How much of a rule others take.
#[derive(Default)]
struct Shadowed<'a> {
    /// Pairs of caller and path.
    all: usize,
    taken: usize,
    /// The first of them: caller, path and the rule that takes it.
    first: Option<(usize, &'a str, Placed<'a>)>,
}

/// Callers as bits: a rule with a thousand callers costs sixteen words a path.
#[derive(Debug, Default, Clone)]
struct Set(Vec<u64>);

impl Set {
    fn insert(&mut self, bit: usize) {
        let word = bit / 64;
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (bit % 64);
    }

    fn has(&self, bit: usize) -> bool {
        self.0.get(bit / 64).is_some_and(|word| word & (1 << (bit % 64)) != 0)
    }

    fn add(&mut self, other: &Set) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        self.0.iter_mut().zip(&other.0).for_each(|(word, other)| *word |= other);
    }

    fn both(&self, other: &Set) -> Set {
        Set(self.0.iter().zip(&other.0).map(|(word, other)| word & other).collect())
    }

    fn without(&self, other: &Set) -> Set {
        let others = other.0.iter().copied().chain(std::iter::repeat(0));
        Set(self.0.iter().zip(others).map(|(word, other)| word & !other).collect())
    }

    fn count(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    fn first(&self) -> Option<usize> {
        self.0
            .iter()
            .enumerate()
            .find(|(_, word)| **word != 0)
            .map(|(at, word)| at * 64 + word.trailing_zeros() as usize)
    }
}
