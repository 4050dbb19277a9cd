//! An app with a number of servers and one queue, and tenants that call it at random times, with a clock of its own.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    time::Duration,
};

use crate::{
    limits::{
        concurrency::{Concurrency, Party},
        gradient::Gradient,
    },
    route::Limits,
};

/// Microseconds.
type Time = u64;

/// Numbers that look random and are the same each time (`SplitMix64`).
#[derive(Clone)]
pub struct Dice(pub u64);

impl Dice {
    /// From 0 to 1.
    pub fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^= mixed >> 31;
        (mixed >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.unit()).ln()
    }
}

/// One who calls.
pub struct Tenant {
    /// Calls a second, at random times.
    pub rate: f64,
    /// At equal distances instead.
    pub regular: bool,
    /// What the sidecar knows of it.
    pub party: Party,
    /// Calls that it made and that were refused.
    pub calls: u64,
    pub refused: u64,
    /// In milliseconds.
    pub latencies: Vec<f64>,
}

impl Tenant {
    pub fn new(rate: f64) -> Self {
        Self { rate, regular: false, party: Party::default(), calls: 0, refused: 0, latencies: Vec::new() }
    }

    pub fn success(&self) -> f64 {
        1.0 - self.refused as f64 / self.calls.max(1) as f64
    }

    pub fn p99(&self) -> f64 {
        let mut sorted = self.latencies.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() * 99 / 100).copied().unwrap_or_default()
    }

    pub fn forget(&mut self) {
        (self.calls, self.refused) = (0, 0);
        self.latencies.clear();
    }
}

enum Event {
    Arrives(usize),
    Done(Call),
    Look,
}

struct Call {
    tenant: usize,
    since: Time,
    class: usize,
}

pub struct Model {
    pub tenants: Vec<Tenant>,
    pub app: Concurrency,
    pub gradient: Gradient,
    pub limits: Limits,
    /// Calls that the app works on at once.
    pub servers: usize,
    /// How long it works on one, on average, in milliseconds, by class; the class is chosen at random.
    pub work: Vec<f64>,
    /// 0: always as long; 1: exponential.
    pub spread: f64,
    /// Of each look.
    pub limits_seen: Vec<u32>,
    now: Time,
    /// The app is held up until then: nothing is answered before.
    held_up: Time,
    working: usize,
    waiting: VecDeque<Call>,
    events: BinaryHeap<Reverse<(Time, u64)>>,
    kept: std::collections::HashMap<u64, Event>,
    number: u64,
    dice: Dice,
}

impl Model {
    pub fn new(servers: usize, work: f64, limits: Limits, tenants: Vec<Tenant>) -> Self {
        let gradient = Gradient::new(limits);
        let app = Concurrency::new(&gradient);
        let mut model = Self {
            tenants,
            app,
            gradient,
            limits,
            servers,
            work: vec![work],
            spread: 1.0,
            limits_seen: Vec::new(),
            now: 0,
            held_up: 0,
            working: 0,
            waiting: VecDeque::new(),
            events: BinaryHeap::new(),
            kept: std::collections::HashMap::new(),
            number: 0,
            dice: Dice(7),
        };
        model.at(100_000, Event::Look);
        for tenant in 0..model.tenants.len() {
            model.next_arrival(tenant);
        }
        model
    }

    fn at(&mut self, time: Time, event: Event) {
        self.number += 1;
        self.events.push(Reverse((time, self.number)));
        self.kept.insert(self.number, event);
    }

    fn next_arrival(&mut self, tenant: usize) {
        // A tenant without calls is asked again whether it has any.
        let Tenant { rate, regular, .. } = self.tenants[tenant];
        let pause = match (rate > 0.0, regular) {
            (false, _) => 50_000.0,
            (true, false) => self.dice.exponential(1e6 / rate),
            (true, true) => 1e6 / rate,
        };
        self.at(self.now + pause as Time + 1, Event::Arrives(tenant));
    }

    fn begin(&mut self, call: Call) {
        self.working += 1;
        let mean = self.work[call.class] * 1_000.0;
        let work = mean * (1.0 - self.spread) + self.dice.exponential(mean) * self.spread;
        self.at(self.now + work as Time, Event::Done(call));
    }

    pub fn run(&mut self, seconds: f64) {
        let end = self.now + (seconds * 1e6) as Time;
        while let Some(Reverse((time, number))) = self.events.pop() {
            if time > end {
                self.events.push(Reverse((time, number)));
                break;
            }
            self.now = time;
            match self.kept.remove(&number).unwrap() {
                Event::Arrives(tenant) => self.arrives(tenant),
                Event::Done(call) if self.now < self.held_up => self.at(self.held_up, Event::Done(call)),
                Event::Done(call) => {
                    self.working -= 1;
                    let took = self.now - call.since;
                    let tenant = &mut self.tenants[call.tenant];
                    tenant.latencies.push(took as f64 / 1_000.0);
                    self.app.answered(0, call.class, Duration::from_micros(took));
                    self.app.leave(&tenant.party, Duration::from_micros(took));
                    while self.working < self.servers {
                        let Some(next) = self.waiting.pop_front() else { break };
                        self.begin(next);
                    }
                }
                Event::Look => {
                    let (now, tick) = (Duration::from_micros(self.now), Duration::from_millis(100));
                    let parties = self.tenants.iter().map(|tenant| &tenant.party).filter(|party| party.seen() > 0);
                    self.app.look(&mut self.gradient, parties, self.limits, (now, tick));
                    self.limits_seen.push(self.app.figures().limit);
                    self.at(self.now + 100_000, Event::Look);
                }
            }
        }
        self.now = end;
    }

    /// The app answers nothing for so long.
    pub fn stall(&mut self, seconds: f64) {
        self.held_up = self.now + (seconds * 1e6) as Time;
        self.run(seconds);
    }

    fn arrives(&mut self, index: usize) {
        self.next_arrival(index);
        let class = ((self.dice.unit() * self.work.len() as f64) as usize).min(self.work.len() - 1);
        let tenant = &mut self.tenants[index];
        if tenant.rate <= 0.0 {
            return;
        }
        tenant.calls += 1;
        match self.app.admit(&tenant.party) {
            Ok(()) => {
                let call = Call { tenant: index, since: self.now, class };
                if self.working < self.servers { self.begin(call) } else { self.waiting.push_back(call) }
            }
            Err(_) => tenant.refused += 1,
        }
    }

    /// The mean of the limit over the last `looks`.
    pub fn limit(&self, looks: usize) -> f64 {
        let last = &self.limits_seen[self.limits_seen.len() - looks..];
        last.iter().map(|limit| f64::from(*limit)).sum::<f64>() / last.len() as f64
    }
}
