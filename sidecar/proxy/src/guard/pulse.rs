//! What the guard of a connection tells whoever looks after it now and then: whether it moves at all.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};

use rand::Rng as _;
use tokio::time::Duration;

use super::{frames::Unfinished, why::Why};

/// How often a connection is looked at.
pub const TICK: Duration = Duration::from_secs(2);
/// What a connection preface and a header block may take.
const HEAD: Duration = Duration::from_secs(10);
/// What any other frame may take, and a write of 32 KiB.
const STALL: Duration = Duration::from_secs(30);
/// A connection without a call, and without data, is asked to go after this.
const IDLE: Duration = Duration::from_secs(15 * 60);
/// A connection is asked to go at this age, a tenth more or less.
const AGE: Duration = Duration::from_secs(60 * 60);

const NOBODY: u8 = u8::MAX;

/// Written by the guard, read by [`Watch`]. Both run on one thread: the atomics are for the compiler.
#[derive(Debug)]
pub struct Pulse {
    /// What is half read: a number of its own each, and in the lowest two bits what it is; those are zero for nothing.
    reading: AtomicU64,
    /// The number of the write that waits, shifted by one; the lowest bit is zero when none does.
    writing: AtomicU64,
    /// HEADERS and DATA that went either way.
    work: AtomicU32,
    /// Why the guard closes the connection.
    why: AtomicU8,
    /// Streams of this connection were reset as soon as they were opened.
    wary: AtomicBool,
}

impl Default for Pulse {
    fn default() -> Self {
        let preface = Unfinished::Preface as u64;
        Self {
            reading: preface.into(),
            writing: AtomicU64::default(),
            work: AtomicU32::default(),
            why: NOBODY.into(),
            wary: AtomicBool::default(),
        }
    }
}

impl Pulse {
    /// So much is read by now.
    pub(super) fn reads(&self, unfinished: Unfinished, frames: u32) {
        self.reading.store(u64::from(frames) << 2 | unfinished as u64, Relaxed);
    }

    /// A write was taken, or has to wait.
    pub(super) fn writes(&self, blocked: bool) {
        let writing = self.writing.load(Relaxed);
        if (writing & 1 == 1) != blocked {
            self.writing.store(writing + 1, Relaxed);
        }
    }

    pub(super) fn works(&self, work: u32) {
        self.work.store(work, Relaxed);
    }

    pub(super) fn violated(&self, why: Why) {
        self.why.store(why as u8, Relaxed);
    }

    pub(super) fn beware(&self, wary: bool) {
        self.wary.store(wary, Relaxed);
    }

    /// Whether a call of this connection should be looked at twice before anything is done for it: it may be reset already,
    /// and then neither another connection nor the app has to hear of it.
    pub fn is_wary(&self) -> bool {
        self.wary.load(Relaxed)
    }

    /// Why the guard has closed the connection, if it has.
    pub fn why(&self) -> Option<Why> {
        Why::of(self.why.load(Relaxed))
    }
}

/// What is to be done with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// It takes no new calls, and ends with its last open one.
    Finish(Why),
    /// It ends now.
    Close(Why),
}

/// Looks at a connection every [`TICK`]. A connection that was asked to finish is still looked at.
#[derive(Debug)]
pub struct Watch {
    reading: Still<u64>,
    writing: Still<u64>,
    work: Still<u32>,
    looks: u32,
    /// After so many it is asked to go.
    age: Option<u32>,
    finishing: bool,
}

/// For how many looks a value has not changed.
#[derive(Debug, Default)]
struct Still<V> {
    value: V,
    looks: u32,
}

impl<V: PartialEq> Still<V> {
    fn look(&mut self, value: V) -> u32 {
        self.looks = if self.value == value { self.looks.saturating_add(1) } else { 0 };
        self.value = value;
        self.looks
    }
}

impl Watch {
    /// Of a new connection, which never grows old unless it `ages`.
    pub fn new(ages: bool) -> Self {
        let age = ages.then(|| {
            let tenth = looks(AGE) / 10;
            looks(AGE) - tenth + rand::rng().random_range(0..=2 * tenth)
        });
        let (reading, writing, work) = (Still::default(), Still::default(), Still::default());
        Self { reading, writing, work, looks: 0, age, finishing: false }
    }

    /// One look.
    pub fn look(&mut self, pulse: &Pulse) -> Option<Act> {
        self.looks = self.looks.saturating_add(1);
        if let Some(why) = pulse.why() {
            // It had until now to hear why.
            return Some(Act::Close(why));
        }
        let reading = pulse.reading.load(Relaxed);
        let read = self.reading.look(reading);
        let writing = pulse.writing.load(Relaxed);
        let written = self.writing.look(writing);
        let worked = self.work.look(pulse.work.load(Relaxed));
        let slow = match reading & 3 {
            what if what == Unfinished::Preface as u64 => (read >= looks(HEAD)).then_some(Why::Preface),
            what if what == Unfinished::Block as u64 => (read >= looks(HEAD)).then_some(Why::SlowHead),
            what if what == Unfinished::Frame as u64 => (read >= looks(STALL)).then_some(Why::SlowFrame),
            _nothing => None,
        };
        let unread = (writing & 1 == 1 && written >= looks(STALL)).then_some(Why::Unread);
        if let Some(why) = slow.or(unread) {
            return Some(Act::Close(why));
        }
        let idle = (worked >= looks(IDLE)).then_some(Why::Idle);
        let old = self.age.is_some_and(|age| self.looks >= age).then_some(Why::Age);
        let finish = idle.or(old).filter(|_| !self.finishing);
        self.finishing |= finish.is_some();
        finish.map(Act::Finish)
    }
}

/// So many looks take at least this long.
const fn looks(time: Duration) -> u32 {
    (time.as_secs() / TICK.as_secs()) as u32
}
