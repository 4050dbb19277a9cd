//! What a peer may do to a connection: a layer between TLS and HTTP/2 that watches the frames pass by and closes the
//! connection of whoever floods it. `docs/limits.md` has every figure with its reason.
//!
//! h2 has limits of its own, but few of them have a rate, some count for as long as the connection lives, and several
//! floods cost it nothing but time. A peer is stopped here, on its own connection, before what it does reaches
//! connections that others share.

mod budget;
mod frames;
mod limits;
mod pulse;
mod shared;
mod why;

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Duration, Instant},
};

use self::{
    budget::Budget,
    frames::{Frame, Walker},
    limits::{CONTINUATIONS, Limits},
    why::Violation,
};
pub use self::{
    limits::{FIELDS, From},
    pulse::{Act, Pulse, TICK, Watch},
    shared::Guarding,
    why::Why,
};

/// A stream that lives for less than this before it is reset was opened for nothing: no deadline is that short. What lives longer is
/// a call like others, and as dear for whoever makes it.
const SHORT_LIFE: Duration = Duration::from_millis(5);
/// How much is read and thrown away after the farewell, so that it is not lost with the connection.
const LINGER: usize = 256 << 10;
/// Bytes of sent data that explain one more WINDOW_UPDATE.
const EXPLAINS: u32 = 1 << 10;
/// Streams that a peer may open while it takes nothing of what is sent to it, in multiples of those it may have open.
const UNHEARD: u32 = 2;

const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE_ERROR: u32 = 6;
const REFUSED_STREAM: u32 = 7;
const COMPRESSION_ERROR: u32 = 9;
const ENHANCE_YOUR_CALM: u32 = 11;

/// One accepted connection, beneath HTTP/2.
#[derive(Debug)]
pub struct Guard<T> {
    io: T,
    /// What the peer sends,
    incoming: Walker,
    /// and what is sent to it.
    outgoing: Walker,
    counts: Counts,
    pulse: Arc<Pulse>,
    closing: Option<Closing>,
}

/// How far the farewell has come.
#[derive(Debug)]
enum Closing {
    Tell(Why),
    Flush(Why),
    Shutdown(Why),
    Drain(Why, usize),
}

impl<T> Guard<T> {
    /// Guards the server's side of a connection whose other end is `from`.
    pub fn new(io: T, from: From, guarding: &Arc<Guarding>, pulse: &Arc<Pulse>) -> Self {
        Self {
            io,
            incoming: Walker::client(),
            outgoing: Walker::server(),
            counts: Counts::new(from, Arc::clone(guarding)),
            pulse: Arc::clone(pulse),
            closing: None,
        }
    }

    fn take_in(&mut self, bytes: &[u8]) -> Result<(), Violation> {
        let counts = &mut self.counts;
        self.incoming.walk(bytes, |frame| counts.received(frame))?;
        self.pulse.beware(counts.wary);
        counts.read_on();
        self.pulse.reads(self.incoming.unfinished(), counts.frames);
        self.pulse.works(counts.work);
        Ok(())
    }

    fn sent(&mut self, bytes: &[u8]) {
        let counts = &mut self.counts;
        // Sending is not refused: what it shows of the peer counts with the next read.
        let _never: Result<(), Violation> = self.outgoing.walk(bytes, |frame| {
            counts.sent(frame);
            Ok(())
        });
        self.pulse.works(counts.work);
    }

    fn wrote<R>(&mut self, written: &Poll<R>) {
        self.counts.blocked = written.is_pending();
        if !self.counts.blocked {
            self.counts.unheard = 0;
        }
        self.pulse.writes(self.counts.blocked);
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Guard<T> {
    /// Says why, as far as the peer takes it, and ends the connection with an error.
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut io = Pin::new(&mut self.io);
        while let Some(closing) = &mut self.closing {
            match *closing {
                Closing::Tell(why) => {
                    if self.outgoing.between_frames() {
                        let frame = goaway(self.counts.last_stream, why);
                        let _best_effort = ready!(io.as_mut().poll_write(cx, &frame));
                    }
                    *closing = Closing::Flush(why);
                }
                Closing::Flush(why) => {
                    let _best_effort = ready!(io.as_mut().poll_flush(cx));
                    *closing = Closing::Shutdown(why);
                }
                Closing::Shutdown(why) => {
                    let _best_effort = ready!(io.as_mut().poll_shutdown(cx));
                    *closing = Closing::Drain(why, 0);
                }
                Closing::Drain(why, drained) => {
                    let mut scratch = [0; 4096];
                    let mut buffer = ReadBuf::new(&mut scratch);
                    let read = ready!(io.as_mut().poll_read(cx, &mut buffer));
                    let drained = drained + buffer.filled().len();
                    if read.is_err() || buffer.filled().is_empty() || drained > LINGER {
                        return Poll::Ready(Err(Violation(why).into()));
                    }
                    *closing = Closing::Drain(why, drained);
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Guard<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.closing.is_some() {
            return this.poll_close(cx);
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        if let Err(Violation(why)) = this.take_in(&buf.filled()[before..]) {
            buf.set_filled(before);
            this.pulse.violated(why);
            this.closing = Some(Closing::Tell(why));
            return this.poll_close(cx);
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Guard<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let written = Pin::new(&mut this.io).poll_write(cx, data);
        this.wrote(&written);
        let taken = ready!(written)?;
        this.sent(&data[..taken]);
        Poll::Ready(Ok(taken))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let written = Pin::new(&mut this.io).poll_write_vectored(cx, data);
        this.wrote(&written);
        let taken = ready!(written)?;
        let mut left = taken;
        for slice in data {
            let of_this = left.min(slice.len());
            this.sent(&slice[..of_this]);
            left -= of_this;
        }
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        self.wrote(&flushed);
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.io).poll_shutdown(cx);
        self.wrote(&shut);
        shut
    }
}

/// GOAWAY with ENHANCE_YOUR_CALM (RFC 9113 §6.8, §7): all streams up to the last one may have been served.
fn goaway(last_stream: u32, why: Why) -> Vec<u8> {
    let text = why.as_str().as_bytes();
    let length = u32::try_from(8 + text.len()).unwrap_or(8);
    let mut frame = length.to_be_bytes()[1..].to_vec();
    frame.extend([frames::GOAWAY, 0, 0, 0, 0, 0]);
    frame.extend(last_stream.to_be_bytes());
    frame.extend(ENHANCE_YOUR_CALM.to_be_bytes());
    frame.extend(text);
    frame
}

/// What a peer has left of everything, and what it did.
#[derive(Debug)]
struct Counts {
    from: From,
    limits: &'static Limits,
    guarding: Arc<Guarding>,
    resets: Budget,
    settings: Budget,
    pings: Budget,
    priorities: Budget,
    window_updates: Budget,
    empty_data: Budget,
    unknown: Budget,
    faults: Budget,
    /// It broke the protocol on more streams than it may: the next read tells.
    faulty: bool,
    /// Of the header block that is being received.
    continuations: u32,
    /// The highest stream that it has opened,
    last_stream: u32,
    /// that when the read before this one ended,
    settled: u32,
    /// and when the last of those were opened.
    opened: Instant,
    /// Streams up to this one were not opened just now.
    ripe: u32,
    /// What `ripe` becomes once this moment is long enough ago.
    ripens: (Instant, u32),
    /// Streams that it has opened and not reset.
    resettable: u32,
    /// Calls that were answered, less the resets that these explain.
    answered: u32,
    /// Some of its resets nothing explained.
    wary: bool,
    /// Frames received, but CONTINUATIONs: a header block counts as one.
    frames: u32,
    /// HEADERS and DATA of both directions.
    work: u32,
    /// It does not take what is sent to it now;
    blocked: bool,
    /// since then it has opened so many streams.
    unheard: u32,
}

impl Counts {
    fn new(from: From, guarding: Arc<Guarding>) -> Self {
        let (limits, now) = (from.limits(), Instant::now());
        Self {
            from,
            limits,
            guarding,
            resets: Budget::new(limits.resets, now),
            settings: Budget::new(limits.settings, now),
            pings: Budget::new(limits.pings, now),
            priorities: Budget::new(limits.priorities, now),
            window_updates: Budget::new(limits.window_updates, now),
            empty_data: Budget::new(limits.empty_data, now),
            unknown: Budget::new(limits.unknown, now),
            faults: Budget::new(limits.faults, now),
            faulty: false,
            continuations: 0,
            last_stream: 0,
            settled: 0,
            opened: now,
            ripe: 0,
            ripens: (now, 0),
            resettable: 0,
            answered: 0,
            wary: false,
            frames: 0,
            work: 0,
            blocked: false,
            unheard: 0,
        }
    }

    fn received(&mut self, frame: Frame) -> Result<(), Violation> {
        let limits = self.limits;
        if self.faulty {
            return Err(Violation(Why::Faults));
        }
        if frame.kind == frames::CONTINUATION {
            self.continuations += 1;
            return within(self.continuations <= CONTINUATIONS, Why::Continuations);
        }
        self.frames = self.frames.wrapping_add(1);
        self.continuations = 0;
        match frame.kind {
            frames::DATA => {
                self.work = self.work.wrapping_add(1);
                // Padded frames may be empty too: gRPC never pads.
                let empty = (frame.length == 0 || frame.is_padded()) && !frame.ends_stream();
                within(!empty || self.empty_data.take(limits.empty_data, 1), Why::EmptyData)
            }
            frames::HEADERS => self.opened(frame.stream),
            frames::RST_STREAM => self.reset(frame.stream),
            frames::SETTINGS | frames::GOAWAY => {
                // One for every 32 settings: what they are applied to are all open streams.
                within(self.settings.take(limits.settings, 1 + frame.length / 192), Why::Settings)
            }
            frames::PING => within(self.pings.take(limits.pings, 1), Why::Pings),
            frames::PRIORITY => within(self.priorities.take(limits.priorities, 1), Why::Priorities),
            frames::WINDOW_UPDATE => within(self.window_updates.take(limits.window_updates, 1), Why::WindowUpdates),
            _unknown => within(self.unknown.take(limits.unknown, 1), Why::Unknown),
        }
    }

    fn opened(&mut self, stream: u32) -> Result<(), Violation> {
        self.work = self.work.wrapping_add(1);
        if stream <= self.last_stream {
            return Ok(());
        }
        self.last_stream = stream;
        self.resettable = self.resettable.saturating_add(1);
        // Some clients say with each stream how much of it they take, and what it depends on.
        self.window_updates.earn(self.limits.window_updates, 4);
        self.priorities.earn(self.limits.priorities, 2);
        self.unknown.earn(self.limits.unknown, 1);
        self.unheard += u32::from(self.blocked);
        within(self.unheard <= UNHEARD * self.limits.streams, Why::Unheard)
    }

    /// What was there to read is read.
    fn read_on(&mut self) {
        if self.settled != self.last_stream {
            let now = Instant::now();
            self.ripen(now);
            (self.settled, self.opened) = (self.last_stream, now);
        }
    }

    /// Streams that lived for a while and were then cancelled are ordinary calls; those that are reset as soon as they
    /// are opened are the rapid reset of CVE-2023-44487, and those that are reset again and again are nothing at all.
    fn reset(&mut self, stream: u32) -> Result<(), Violation> {
        if stream > self.ripe {
            self.ripen(Instant::now());
        }
        if stream <= self.ripe && self.resettable > 0 {
            self.resettable -= 1;
            return Ok(());
        }
        self.resettable = self.resettable.saturating_sub(1);
        if self.answered > 0 {
            // It may well be one of those: many clients reset what was answered before they had ended their request.
            self.answered -= 1;
            return Ok(());
        }
        self.wary = true;
        let own = self.resets.take(self.limits.resets, 1);
        // What others have used up ends only those who do the same; the rest is wary, and opens nothing elsewhere.
        let may = own && (self.guarding.reset(self.from) || !self.resets.is_half_used(self.limits.resets));
        within(may, Why::Resets)
    }

    fn ripen(&mut self, now: Instant) {
        let long_ago = |moment: Instant| now.saturating_duration_since(moment) >= SHORT_LIFE;
        if long_ago(self.opened) {
            self.ripe = self.settled;
        }
        if long_ago(self.ripens.0) {
            self.ripe = self.ripe.max(self.ripens.1);
            self.ripens = (now, self.settled);
        }
    }

    fn sent(&mut self, frame: Frame) {
        let limits = self.limits;
        match frame.kind {
            frames::DATA => {
                self.work = self.work.wrapping_add(1);
                self.window_updates.earn(limits.window_updates, 10 + frame.length / EXPLAINS);
                // Whoever measures bandwidth by PINGs sends one for each round of data (grpc-go, grpc-java, grpc-core).
                self.pings.earn(limits.pings, 1);
            }
            frames::HEADERS => self.work = self.work.wrapping_add(1),
            frames::RST_STREAM => self.faulty |= self.is_fault(frame.code),
            _other => {}
        }
        if frame.ends_stream() {
            self.answered = self.answered.saturating_add(1).min(limits.resets.most);
        }
    }

    fn is_fault(&mut self, code: Option<u32>) -> bool {
        let of_the_peer = matches!(
            code,
            Some(
                PROTOCOL_ERROR
                    | FLOW_CONTROL_ERROR
                    | STREAM_CLOSED
                    | FRAME_SIZE_ERROR
                    | REFUSED_STREAM
                    | COMPRESSION_ERROR
            )
        );
        of_the_peer && !self.faults.take(self.limits.faults, 1)
    }
}

fn within(it_is: bool, why: Why) -> Result<(), Violation> {
    if it_is { Ok(()) } else { Err(Violation(why)) }
}

#[cfg(test)]
mod tests;
